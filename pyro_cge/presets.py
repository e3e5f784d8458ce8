"""The paper's models, and later systems' ideas, as compositions of parts. A preset returns a ``(model, guide)`` pair.

==================================== ====================== ============= ============ ============ ==============
preset                               prior                  latent SCM    decoder      encoder sees trained with
==================================== ====================== ============= ============ ============ ==============
:func:`basic_vae`                    N(0, I)                C = Z         D(c)         x            ELBO
:func:`conditional_vae`              N(0, I)                C = Z         D(c, e)      x, e         ELBO
:func:`environment_vae`              softmax-sparse         C = Z         D(c)         x, e         ELBO
:func:`dense_vae`                    free means             C = Z         D(c)         x            ELBO, then rotate
:func:`translation_vae`              softmax-sparse means   C = Z         D(c)         x            ELBO
:func:`structured_vae`               softmax-sparse         autoregressive D(c)        x, e         ELBO
:func:`structured_translation_vae`   softmax-sparse means   autoregressive D(c)        x            ELBO
:func:`adversarial_prior_ae`         N(0, I)                C = Z         D(c)         x            AdversarialPrior
:func:`sams_vae`                     spike-slab             C = Z         D(c)         x, the shift ELBO
:func:`svae_plus`                    spike-slab, or known   C = Z         D(c)         x            ELBO
:func:`discrepancy_vae`              softmax-sparse means   autoregressive D(c)        x            Mmd
==================================== ====================== ============= ============ ============ ==============

All take ``conditioning`` (``"concat"``, ``"film"``, ``"shift"`` or None), ``guide`` (the family of the encoder) and
``decoder`` and ``likelihood``, and any can be trained with :class:`~pyro_cge.objectives.irm.Irm` instead. They sit above ``models`` and
``guides`` because they join the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import networkx as nx
from torch import Tensor

from .data.environment import EnvironmentData
from .errors import ConfigError
from .guides.amortized import AmortizedGuide
from .guides.conditioning import Conditioning
from .guides.families import FlowGuide, FullCovarianceGuide, StructuredGuide
from .models.cell import CellModel, ConditionalCellModel
from .models.decoders import ConditionalDecoder, Decoder, LinearDecoder, MLPDecoder, SparseDecoder
from .models.effects import SpikeSlabPrior
from .models.likelihoods import (
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from .models.perturbations import PerturbationPrior
from .models.priors import DensePrior, LatentPrior, Moves, SoftmaxPrior, StandardPrior
from .scm.latent import LatentSCM
from .scm.mechanisms import LinearMechanism, Mechanism, NeuralMechanism

Pair = tuple[CellModel, AmortizedGuide]
DecoderKind = Literal["linear", "mlp", "sparse"]
LikelihoodKind = Literal["gaussian", "student_t", "poisson", "negative_binomial"]
GuideKind = Literal["mean_field", "full", "structured", "flow"]
MechanismKind = Literal["linear", "neural"]

GUIDES: dict[str, type[AmortizedGuide]] = {
    "mean_field": AmortizedGuide,
    "full": FullCovarianceGuide,
    "structured": StructuredGuide,
    "flow": FlowGuide,
}


def basic_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
) -> Pair:
    """Variational autoencoder that knows nothing of environments: ``z ~ N(0, I)``, ``q(z | x)``."""
    return _pair(StandardPrior(data, d), None, data, hidden, decoder, likelihood, conditioning, guide)


def conditional_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "concat",
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
) -> Pair:
    """Conditional VAE (Sohn et al. 2015): decoder and encoder see the environment, ``z ~ N(0, I)``."""
    if decoder == "sparse":
        raise ConfigError("the conditional model's decoder is 'linear' or 'mlp', got 'sparse'")
    layers = hidden if decoder == "mlp" else ()
    head = ConditionalDecoder(data, d, data.g, hidden=layers, likelihood=_likelihood(data, likelihood))
    model = ConditionalCellModel(StandardPrior(data, d), None, head)
    return model, _guide(model, hidden, conditioning, guide)


def environment_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "concat",
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    temperature: float = 0.5,
    moves: Moves = "both",
) -> Pair:
    """Environment VAE (paper, section 4.5): softmax-sparse prior per environment, decoder blind to it."""
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves=moves)
    return _pair(prior, None, data, hidden, decoder, likelihood, conditioning, guide)


def dense_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    moves: Moves = "loc",
) -> Pair:
    """The Environment VAE with no sparsity: what :func:`~pyro_cge.train.rotation.rotate` starts from.

    Give it a few more latents than there are causes: with none to spare, a nonlinear encoder may settle on a folded one
    (|z| in the place of z). Those not needed collapse, and the rotation leaves them alone.
    """
    prior = DensePrior(data, d, hidden=hidden, moves=moves)
    return _pair(prior, None, data, hidden, decoder, likelihood, conditioning, guide)


def translation_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    temperature: float = 0.5,
) -> Pair:
    """Translation VAE (paper, section 4.7): ``C = C_prev + μ̄_e``, ``C_prev ~ N(0, I)``.

    The Environment VAE with a location-only prior, written without the reparameterisation: under
    ``LocScaleReparam(0)`` of ``z`` it samples ``C_prev`` and adds the environment's sparse translation.
    """
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves="loc")
    return _pair(prior, None, data, hidden, decoder, likelihood, conditioning, guide)


def structured_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "concat",
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    temperature: float = 0.5,
    moves: Moves = "both",
    depth: int | None = None,
    mechanism: MechanismKind = "linear",
    graph: nx.DiGraph | None = None,
) -> Pair:
    """Structured VAE (paper, section 4.9): the environment moves the noise, an autoregressive SCM makes causes of it.

    Parameters
    ----------
    depth : int, optional
        Layers of the SCM, which must divide ``d``; default ``d``, one latent a layer: any DAG.
    mechanism : {"linear", "neural"}
    graph : networkx.DiGraph, optional
        A known graph over ``0 … d−1`` instead.
    """
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves=moves)
    return _pair(prior, _scm(d, depth, mechanism, graph), data, hidden, decoder, likelihood, conditioning, guide)


def structured_translation_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    temperature: float = 0.5,
    depth: int | None = None,
    mechanism: MechanismKind = "linear",
    graph: nx.DiGraph | None = None,
) -> Pair:
    """The Structured VAE whose environments translate the noise only (paper, sections 4.7 and 4.9)."""
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves="loc")
    return _pair(prior, _scm(d, depth, mechanism, graph), data, hidden, decoder, likelihood, conditioning, guide)


def adversarial_prior_ae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
) -> Pair:
    """Adversarial Prior Autoencoder (paper, section 4.10): sparse change between environments by a critic, not a prior.

    Train it with ``fit(..., objective=AdversarialPrior(data, d))``; see :mod:`pyro_cge.objectives.adversarial`.
    """
    return _pair(StandardPrior(data, d), None, data, hidden, decoder, likelihood, conditioning, guide)


def sams_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "shift",
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    additive: bool = False,
    hill: bool = False,
) -> Pair:
    """Sparse additive shifts (SAMS-VAE, Bereket & Karaletsos 2023): spike-slab effects of perturbations that add up.

    Parameters
    ----------
    additive : bool
        The environment features are doses (:func:`~pyro_cge.models.perturbations.dosed`), and environments are sums of
        perturbations; otherwise every environment has effects of its own.
    hill : bool
        With ``additive``: fit a dose-response curve a perturbation.
    """

    def effects(units: EnvironmentData) -> LatentPrior:
        return SpikeSlabPrior(units, d, hidden=hidden)

    prior = PerturbationPrior(data, effects, hill=hill) if additive else effects(data)
    return _pair(prior, None, data, hidden, decoder, likelihood, conditioning, guide)


def svae_plus(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    targets: Tensor | None = None,
) -> Pair:
    """Sparse mechanism shifts (sVAE+, Lopez et al. 2023): each environment moves a few latents, others keep their law.

    Parameters
    ----------
    targets : Tensor ``[E, d]``, bool, optional
        Which latents each environment may move, where that is known; else it is learned, with the sparsity level.
    """
    prior: LatentPrior = SpikeSlabPrior(data, d, hidden=hidden)
    if targets is not None:
        prior = DensePrior(data, d, hidden=hidden, moves="loc", targets=targets)
    return _pair(prior, None, data, hidden, decoder, likelihood, conditioning, guide)


def discrepancy_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = None,
    likelihood: LikelihoodKind = "gaussian",
    guide: GuideKind = "mean_field",
    temperature: float = 0.5,
    depth: int | None = None,
    mechanism: MechanismKind = "linear",
) -> Pair:
    """Soft interventions on a latent DAG (discrepancy-VAE, Zhang et al. 2023).

    Train it with ``fit(..., objective=Mmd())``, which compares what the model generates for an environment with what was
    measured in it; see :mod:`pyro_cge.objectives.mmd`.
    """
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves="loc")
    return _pair(prior, _scm(d, depth, mechanism, None), data, hidden, decoder, likelihood, conditioning, guide)


PRESETS = {
    "basic": basic_vae,
    "conditional": conditional_vae,
    "environment": environment_vae,
    "dense": dense_vae,
    "translation": translation_vae,
    "structured": structured_vae,
    "structured_translation": structured_translation_vae,
    "adversarial": adversarial_prior_ae,
    "sams": sams_vae,
    "svae_plus": svae_plus,
    "discrepancy": discrepancy_vae,
}


def _pair(
    prior: LatentPrior,
    scm: LatentSCM | None,
    data: EnvironmentData,
    hidden: Sequence[int],
    decoder: DecoderKind,
    likelihood: LikelihoodKind,
    conditioning: Conditioning,
    guide: GuideKind,
) -> Pair:
    model = CellModel(prior, scm, _decoder(data, prior.d, hidden, decoder, likelihood))
    return model, _guide(model, hidden, conditioning, guide)


def _guide(model: CellModel, hidden: Sequence[int], conditioning: Conditioning, kind: GuideKind) -> AmortizedGuide:
    if kind not in GUIDES:
        raise ConfigError(f"guide must be one of {', '.join(GUIDES)}, got {kind!r}")
    return GUIDES[kind](model, conditioning, hidden=hidden)


def _decoder(
    data: EnvironmentData, d: int, hidden: Sequence[int], kind: DecoderKind, likelihood: LikelihoodKind
) -> Decoder:
    law = _likelihood(data, likelihood)
    if kind == "linear":
        return LinearDecoder(d, data.g, likelihood=law)
    if kind == "mlp":
        return MLPDecoder(d, data.g, hidden=hidden, likelihood=law)
    if kind == "sparse":
        return SparseDecoder(d, data.g, likelihood=law)
    raise ConfigError(f"decoder must be 'linear', 'mlp' or 'sparse', got {kind!r}")


def _likelihood(data: EnvironmentData, kind: LikelihoodKind) -> Likelihood:
    if kind == "gaussian":
        return GaussianLikelihood(data.g)
    if kind == "student_t":
        return StudentTLikelihood(data.g)
    if kind == "poisson":
        return PoissonLikelihood(data)
    if kind == "negative_binomial":
        return NegativeBinomialLikelihood(data)
    raise ConfigError(f"likelihood must be 'gaussian', 'student_t', 'poisson' or 'negative_binomial', got {kind!r}")


def _scm(d: int, depth: int | None, mechanism: MechanismKind, graph: nx.DiGraph | None) -> LatentSCM:
    # Weights start near zero: a deep SCM of unit weights would multiply its noise at every layer.
    kinds: dict[str, Callable[[Tensor], Mechanism]] = {
        "linear": partial(LinearMechanism, weights="small"),
        "neural": partial(NeuralMechanism, hidden=16, weights="small"),
    }
    if mechanism not in kinds:
        raise ConfigError(f"mechanism must be 'linear' or 'neural', got {mechanism!r}")
    if graph is not None:
        return LatentSCM(graph, kinds[mechanism])
    depth = d if depth is None else depth
    if depth < 1 or d % depth:
        raise ConfigError(f"depth must divide the number of latents, got depth={depth} and d={d}")
    return LatentSCM.layered(depth, d // depth, kinds[mechanism])
