"""A small table of effects with known structure."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.imputation import Effects


@pytest.fixture(scope="session")
def effects() -> Effects:
    """5 contexts × 14 actions × 12 genes, additive with noise; 60 % of the pairs, every action twice at least."""
    rng = np.random.default_rng(0)
    alpha, beta = rng.normal(size=(5, 12)), rng.normal(size=(14, 12))
    seen = rng.random((5, 14)) < 0.6
    seen[0], seen[1] = True, True
    context, action = np.nonzero(seen)
    x = alpha[context] + beta[action] + 0.1 * rng.normal(size=(len(context), 12))
    names = [f"cell{i}" for i in range(5)], [f"drug{i}" for i in range(14)], [f"g{i}" for i in range(12)]
    return Effects(x, context, action, *names, training_only=("cell0",))
