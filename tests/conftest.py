"""Fixtures every test shares, and the guard that no test leaks a global setting."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

import pyro_cge as cge

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def clean_state():
    """Fresh param store and seed before each test; the same defaults after it."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    from matplotlib import pyplot as plt

    plt.close("all")
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before


@pytest.fixture(scope="session")
def truth():
    """A growing network of 5 latents over 30 genes under 12 random shifts and a control."""
    environments = cge.simulate.random_shifts(5, 12, variance=5, cover=True)
    return cge.simulate.growing_network(n_latents=5, n_genes=30, environments=environments)


@pytest.fixture(scope="session")
def data(truth):
    """20 profiles in each environment, known by name only."""
    return truth.sample(20)


@pytest.fixture(scope="session")
def featured(data):
    """The same with environment features."""
    features = torch.randn(data.n_envs, 6, generator=torch.Generator().manual_seed(1))
    return replace(data, env_features=features)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data; tests on it skip where the variable is unset."""
    folder = os.environ.get("PYRO_CGE_DATA")
    if not folder:
        pytest.skip("PYRO_CGE_DATA is not set: no real data here")
    return Path(folder)
