"""Every preset on real level-5 data, and with IRM; what presets refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.errors import ConfigError
from pyro_cge.presets import GUIDES, PRESETS
from pyro_cge.runs import build, objective_of


@pytest.fixture(scope="module")
def level5(real_data):
    """1,000 level-5 signatures of the compounds most often measured, known by name."""
    with np.load(real_data / "l1000_level5_gps24.npz") as file:
        x, genes = file["X"].astype(np.float32), file["gene"].astype(str)
    obs = pd.read_csv(real_data / "l1000_level5_gps24_obs.csv.gz")
    rows = obs.groupby("compound_key")["compound_key"].transform("size").to_numpy().argsort(kind="stable")[::-1][:1000]
    names, env = np.unique(obs["compound_key"].to_numpy()[rows].astype(str), return_inverse=True)
    return cge.EnvironmentData(
        x=torch.from_numpy(np.ascontiguousarray(x[rows])),
        env=torch.from_numpy(env),
        gene_names=list(genes),
        env_names=list(names),
    )


@pytest.mark.parametrize("irm", [0.0, 1.0])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_on_real_data(level5, name, irm):
    config = RunConfig(model=name, latents=10, hidden=(64,), irm=irm)
    model, guide = build(config, level5)
    objective = objective_of(config, level5)
    fit = cge.fit(model, guide, level5, objective=objective, epochs=3, kl_warmup=1, batch_size=64, seed=0)
    assert np.isfinite(fit.history.to_numpy(dtype=float)).all()
    assert fit.history["valid_loss"].iloc[-1] < fit.history["valid_loss"].iloc[0]


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("conditioning", [None, "concat", "film", "shift"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_every_guide_and_conditioning(data, name, guide, conditioning):
    model, encoder = PRESETS[name](data, 4, hidden=(8,), conditioning=conditioning, guide=guide)
    loss = cge.Elbo()(model, encoder, data.batch())["loss"]
    assert type(encoder) is GUIDES[guide] and loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "structured", "depth": 3}, "depth must divide the number of latents, got depth=3 and d=4"),
        ({"name": "structured", "mechanism": "cubic"}, "mechanism must be 'linear' or 'neural'"),
        ({"name": "basic", "guide": "exact"}, "guide must be one of mean_field"),
        ({"name": "basic", "decoder": "forest"}, "decoder must be"),
        ({"name": "conditional", "decoder": "sparse"}, "'linear' or 'mlp', got 'sparse'"),
    ],
)
def test_bad_options_are_named(data, options, message):
    options = dict(options)
    with pytest.raises(ConfigError, match=message):
        PRESETS[options.pop("name")](data, 4, **options)
