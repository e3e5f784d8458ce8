"""The one place that talks to ArviZ (0.x ``InferenceData``)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor

from .scm.shifts import NoiseShift

if TYPE_CHECKING:
    import arviz


def inference_data(
    *, z: Tensor, c: Tensor, shift: NoiseShift, x: Tensor, names: dict[str, list[str]]
) -> arviz.InferenceData:
    """Posterior draws ``z, c [S, n, d]`` and environment laws as ``InferenceData``; see ``Posterior.to_arviz``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz

    draws = z.shape[0]
    env_loc, env_log_scale = (v.expand(draws, *v.shape) for v in (shift.loc, shift.log_scale))
    posterior = {"z": z, "c": c, "env_loc": env_loc, "env_log_scale": env_log_scale}
    return arviz.from_dict(
        posterior={name: value.numpy()[None] for name, value in posterior.items()},
        observed_data={"x": x.cpu().numpy()},
        coords=names,
        dims={
            "z": ["profile", "latent"],
            "c": ["profile", "latent"],
            "env_loc": ["environment", "latent"],
            "env_log_scale": ["environment", "latent"],
            "x": ["profile", "gene"],
        },
    )
