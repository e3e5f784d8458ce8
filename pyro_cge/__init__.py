"""Cell causal embeddings in Pyro.

Names are loaded when first used, so that ``import pyro_cge`` and ``pyro-cge --help`` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AmortizedGuide": "guides.amortized",
    "CellModel": "models.cell",
    "ConditionalCellModel": "models.cell",
    "ConditionalDecoder": "models.decoders",
    "DensePrior": "models.priors",
    "Elbo": "objectives.elbo",
    "EnvironmentData": "data.environment",
    "Fit": "train.fit",
    "HardIntervention": "scm.handlers",
    "LatentSCM": "scm.latent",
    "LinearDecoder": "models.decoders",
    "MLPDecoder": "models.decoders",
    "MechanismDecoder": "models.decoders",
    "MechanismIntervention": "scm.handlers",
    "NoiseIntervention": "scm.handlers",
    "NoiseShift": "scm.shifts",
    "Posterior": "posterior",
    "SoftmaxPrior": "models.priors",
    "StandardPrior": "models.priors",
    "Standardizer": "data.standardize",
    "TablePrior": "models.priors",
    "basic_vae": "presets",
    "conditional_vae": "presets",
    "environment_vae": "presets",
    "fit": "train.fit",
    "from_anndata": "data.anndata",
    "isolated": "seeds",
    "iwae_bound": "objectives.elbo",
    "read_h5ad": "data.anndata",
    "split": "data.splits",
    "to_anndata": "data.anndata",
    "write_h5ad": "data.anndata",
}
_MODULES = ("data", "errors", "guides", "metrics", "models", "plots", "presets", "scm", "simulate", "sites")

__all__ = sorted([*_EXPORTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
