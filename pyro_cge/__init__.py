"""Cell causal embeddings in Pyro.

Names are loaded when first used, so that ``import pyro_cge`` and ``pyro-cge --help`` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AdversarialPrior": "objectives.adversarial",
    "AmortizedGuide": "guides.amortized",
    "CategoricalPrior": "models.effects",
    "CellModel": "models.cell",
    "ConditionalCellModel": "models.cell",
    "ConditionalDecoder": "models.decoders",
    "DensePrior": "models.priors",
    "Elbo": "objectives.elbo",
    "Effects": "imputation.effects",
    "Ensemble": "train.ensembles.ensemble",
    "EnsemblePosterior": "train.ensembles.mixture",
    "EnvironmentData": "data.environment",
    "Fit": "train.fit",
    "FlowGuide": "guides.families",
    "FullCovarianceGuide": "guides.families",
    "GaussianLikelihood": "models.likelihoods",
    "HardIntervention": "scm.handlers",
    "HorseshoePrior": "models.effects",
    "IntervenedCellModel": "models.intervened",
    "Irm": "objectives.irm",
    "Iwae": "objectives.iwae",
    "KernelPrior": "models.kernels",
    "LaplacePrior": "models.effects",
    "LatentSCM": "scm.latent",
    "LearnedSCM": "scm.learned",
    "LinearDecoder": "models.decoders",
    "MLPDecoder": "models.decoders",
    "MechanismDecoder": "models.decoders",
    "MechanismIntervention": "scm.handlers",
    "Mmd": "objectives.mmd",
    "NegativeBinomialLikelihood": "models.likelihoods",
    "NoiseIntervention": "scm.handlers",
    "NoiseShift": "scm.shifts",
    "PerturbationPrior": "models.perturbations",
    "PoissonLikelihood": "models.likelihoods",
    "Posterior": "posterior",
    "RefinedGuide": "guides.refined",
    "SoftmaxPrior": "models.priors",
    "SparseDecoder": "models.decoders",
    "SpikeSlabPrior": "models.effects",
    "StandardPrior": "models.priors",
    "Standardizer": "data.standardize",
    "StreamedData": "data.streamed",
    "StructuredGuide": "guides.families",
    "StudentTLikelihood": "models.likelihoods",
    "TablePrior": "models.priors",
    "TensorBoardLog": "train.tensorboard",
    "adversarial_prior_ae": "presets",
    "basic_vae": "presets",
    "choose_latents": "train.transfer",
    "conditional_vae": "presets",
    "dense_vae": "presets",
    "discrepancy_vae": "presets",
    "dosed": "models.perturbations",
    "environment_vae": "presets",
    "fit": "train.fit",
    "fit_ensemble": "train.ensembles.ensemble",
    "fresh_critic": "objectives.adversarial",
    "from_anndata": "data.anndata",
    "isolated": "seeds",
    "iwae_bound": "objectives.elbo",
    "read_h5ad": "data.anndata",
    "rotate": "train.rotation",
    "rotate_and_refit": "train.transfer",
    "sams_vae": "presets",
    "split": "data.splits",
    "stream": "data.opening",
    "structured_translation_vae": "presets",
    "structured_vae": "presets",
    "superfluous": "train.prune",
    "svae_plus": "presets",
    "to_anndata": "data.anndata",
    "transfer": "train.transfer",
    "translation_vae": "presets",
    "without_latents": "train.prune",
    "write_h5ad": "data.anndata",
}
_MODULES = (
    "data",
    "discovery",
    "errors",
    "guides",
    "imputation",
    "interpret",
    "metrics",
    "models",
    "plots",
    "presets",
    "report",
    "scm",
    "simulate",
    "sites",
)

__all__ = sorted([*_EXPORTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
