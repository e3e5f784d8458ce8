"""Every objective trains every prior, latent SCM, decoder, guide and preset of the law suite."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError

_spec = importlib.util.spec_from_file_location("law_parts", Path(__file__).parents[1] / "laws" / "parts.py")
assert _spec and _spec.loader
parts = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("law_parts", parts)
_spec.loader.exec_module(parts)

OBJECTIVES = {
    "iwae": lambda data: cge.Iwae(3),
    "irm": lambda data: cge.Irm(),
    "mmd": lambda data: cge.Mmd(),
    "adversarial": lambda data: cge.AdversarialPrior(data, parts.D, hidden=(6,)),
}


@pytest.mark.parametrize("case", list(parts.CASES))
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_it_trains(objective, case):
    data = parts.make_data()
    torch.manual_seed(1)
    model, guide = parts.CASES[case](data)
    data = parts.fed_to(model, data)
    loss_of = OBJECTIVES[objective](data)
    if objective == "mmd" and model.decoder.likelihood.counts:
        with pytest.raises(ConfigError, match="counts"):
            loss_of(model, guide, data.batch())
        return
    for _ in range(5):  # a single draw may leave an edge out, and with it the mechanism behind it
        terms = loss_of(model, guide, data.batch(torch.arange(16)))
        terms["loss"].backward()
    gradients = [p.grad for module in (model, guide) for p in module.parameters() if p.requires_grad]
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    assert all(g is None or g.isfinite().all() for g in gradients)
    missing = [
        name
        for module in (model, guide)
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)
    ]
    assert not missing
