"""Every preset on data with heavy tails: are losses, weights and predictions finite?"""

from __future__ import annotations

import numpy as np
import torch

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.errors import NonFiniteLossError
from pyro_cge.presets import PRESETS
from pyro_cge.runs import build, objective_of

PROFILES, GENES, ENVIRONMENTS, FEATURES = 120, 30, 8, 12


def heavy(seed: int) -> tuple[cge.EnvironmentData, bool]:
    """Student-t profiles, and whether to standardise them: four kinds of data, in turn.

    ::

        x[i, g] = scale · t(df),   df = 1 (seed even) or 2,   scale = 1 (seeds 0 and 1 of four) or 100

    standardised at scale 1 and as they are at scale 100; environments have features in every other group of four.
    """
    rng = np.random.default_rng(seed)
    raw = seed % 4 >= 2
    x = rng.standard_t(1 + seed % 2, (PROFILES, GENES)) * (100.0 if raw else 1.0)
    features = rng.standard_t(1 + seed % 2, (ENVIRONMENTS, FEATURES)).astype(np.float32)
    data = cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.arange(PROFILES) % ENVIRONMENTS,
        gene_names=[f"g{k}" for k in range(GENES)],
        env_names=[f"e{e}" for e in range(ENVIRONMENTS)],
        env_features=torch.from_numpy(features) if seed % 8 < 4 else None,
        control=[0],
    )
    return data, not raw


def explosions(seeds: int, epochs: int = 15) -> dict[str, int]:
    """Fits with anything not finite in them, by preset; a ``NonFiniteLossError`` counts."""
    counts = dict.fromkeys(PRESETS, 0)
    for seed in range(seeds):
        data, standardize = heavy(seed)
        for preset in PRESETS:
            config = RunConfig(model=preset, latents=3, hidden=(16,), seed=seed, epochs=epochs, batch_size=32, lr=1e-2)  # type: ignore[arg-type]
            counts[preset] += not finite(config, data, standardize)
    return counts


def finite(config: RunConfig, data: cge.EnvironmentData, standardize: bool) -> bool:
    model, guide = build(config, data)
    try:
        fitted = cge.fit(
            model,
            guide,
            data,
            objective=objective_of(config, data),
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            standardize=standardize,
            seed=config.seed,
            progress=False,
        )
    except NonFiniteLossError as error:
        print(f"  {config.model}, seed {config.seed}: {error}")
        return False
    posterior = fitted.posterior(data)
    parts = [*model.state_dict().values(), *guide.state_dict().values(), posterior.predict(n_samples=10)]
    parts += [posterior.reconstruct(), torch.from_numpy(fitted.history.to_numpy(dtype=float))]
    return all(bool(values.isfinite().all()) for values in parts if values.is_floating_point())
