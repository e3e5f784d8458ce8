"""Every prior, guide, decoder, mechanism and preset, as ``(model, guide)`` factories the laws run over.

A new part joins the suite by adding a line here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import torch

import pyro_cge as cge
from pyro_cge.presets import PRESETS
from pyro_cge.scm.mechanisms import LinearMechanism, NeuralMechanism, PolynomialMechanism

D, G, E, N, F = 3, 8, 4, 24, 5
Pair = tuple[cge.CellModel, cge.AmortizedGuide]
GRAPH = nx.DiGraph([(0, 1), (0, 2), (2, 1)])  # not in topological order, so that reordering is exercised


def make_data(features: bool = True) -> cge.EnvironmentData:
    generator = torch.Generator().manual_seed(3)
    return cge.EnvironmentData(
        x=torch.randn(N, G, generator=generator),
        env=torch.arange(N) % E,
        gene_names=[f"gene {k}" for k in range(G)],
        env_names=[f"env {e}" for e in range(E)],
        env_features=torch.randn(E, F, generator=generator) if features else None,
        control=[0],
    )


def as_counts(data: cge.EnvironmentData) -> cge.EnvironmentData:
    return replace(data, x=(5 * data.x.abs()).round())


def fed_to(model: cge.CellModel, data: cge.EnvironmentData) -> cge.EnvironmentData:
    """The data a model can be fed: its prior's own environments, counts where its likelihood is of counts."""
    data = replace(data, env_features=model.prior.environments.env_features)
    return as_counts(data) if model.decoder.likelihood.counts else data


def pair(
    data: cge.EnvironmentData,
    prior: torch.nn.Module | None = None,
    scm: cge.LatentSCM | None = None,
    decoder: torch.nn.Module | None = None,
    conditioning: str | None = None,
    hidden: tuple[int, ...] = (7,),
    guide: Callable = cge.AmortizedGuide,
) -> Pair:
    prior = prior or cge.SoftmaxPrior(data, D)
    decoder = decoder or cge.MLPDecoder(D, G, hidden=(6,))
    kind = cge.ConditionalCellModel if isinstance(decoder, cge.ConditionalDecoder) else cge.CellModel
    model = kind(prior, scm, decoder)
    return model, guide(model, conditioning, hidden=hidden)


def table(data: cge.EnvironmentData) -> cge.TablePrior:
    loc, log_scale = torch.randn(2, data.n_envs, D)
    return cge.TablePrior(data, cge.NoiseShift(loc, 0.3 * log_scale))


MASK = (torch.arange(D * G).reshape(D, G) % 3 > 0).float()


def doses(data: cge.EnvironmentData, pairs: bool = True) -> cge.EnvironmentData:
    """The same data, its environments made of three perturbations: the control, two single ones, one of two."""
    table = torch.tensor([[0, 0, 0], [0.1, 0, 0], [0, 3.0, 0], [1.0, 0, 2.0 * pairs]])
    return replace(data, env_features=table)


def made_of_perturbations(inner: Callable, **options) -> Callable[[cge.EnvironmentData], torch.nn.Module]:
    def make(data):
        features = torch.randn(3, 2) if data.env_features is not None else None
        return cge.PerturbationPrior(doses(data), inner, features=features, **options)

    return make


PRIORS: dict[str, Callable[[cge.EnvironmentData], torch.nn.Module]] = {
    "standard": lambda data: cge.StandardPrior(data, D),
    "table": table,
    "dense": lambda data: cge.DensePrior(data, D),
    "dense, linear in features": lambda data: cge.DensePrior(data, D, hidden=()),
    "dense, known targets": lambda data: cge.DensePrior(data, D, targets=torch.arange(E * D).reshape(E, D) % 2 == 0),
    "softmax": lambda data: cge.SoftmaxPrior(data, D, temperature=0.3),
    "softmax, mean only": lambda data: cge.SoftmaxPrior(data, D, moves="loc"),
    "softmax, scale only": lambda data: cge.SoftmaxPrior(data, D, moves="scale"),
    "softmax, learned temperature": lambda data: cge.SoftmaxPrior(data, D, learn_temperature=True),
    "laplace": lambda data: cge.LaplacePrior(data, D),
    "horseshoe": lambda data: cge.HorseshoePrior(data, D),
    "spike-slab": lambda data: cge.SpikeSlabPrior(data, D, probability=0.4),
    "spike-slab, both": lambda data: cge.SpikeSlabPrior(data, D, probability=0.4, moves="both"),
    "spike-slab, scale only": lambda data: cge.SpikeSlabPrior(data, D, probability=0.4, moves="scale"),
    "categorical": lambda data: cge.CategoricalPrior(data, D),
    "categorical, both": lambda data: cge.CategoricalPrior(data, D, moves="both"),
    "additive spike-slab": made_of_perturbations(lambda units: cge.SpikeSlabPrior(units, D, probability=0.4)),
    "additive dense": made_of_perturbations(lambda units: cge.DensePrior(units, D)),
    "kernel": lambda data: cge.KernelPrior(replace(data, env_features=torch.randn(E, F)), D),
    "kernel, own noise": lambda data: cge.KernelPrior(replace(data, env_features=torch.rand(E, F)), D, own=True),
    "doses, softmax": made_of_perturbations(lambda units: cge.SoftmaxPrior(units, D), hill=True),
    "doses, laplace": made_of_perturbations(lambda units: cge.LaplacePrior(units, D, moves="both"), hill=True),
}
SCMS: dict[str, Callable[[], cge.LatentSCM | None]] = {
    "none": lambda: None,
    "linear": lambda: cge.LatentSCM(GRAPH, LinearMechanism),
    "neural": lambda: cge.LatentSCM(GRAPH, NeuralMechanism),
    "polynomial": lambda: cge.LatentSCM(GRAPH, PolynomialMechanism),
    "autoregressive": lambda: cge.LatentSCM.autoregressive(D, NeuralMechanism),
    "own noise": lambda: cge.LatentSCM(GRAPH, LinearMechanism, own_noise=0.5),
    "learned": lambda: cge.LearnedSCM(D, probability=0.4),
    "learned, neural, known order": lambda: cge.LearnedSCM(D, NeuralMechanism, probability=0.4, order=[2, 0, 1]),
}
DECODERS: dict[str, Callable[[cge.EnvironmentData], torch.nn.Module]] = {
    "linear": lambda data: cge.LinearDecoder(D, G),
    "deep": lambda data: cge.MLPDecoder(D, G, hidden=(6, 5)),
    "sparse": lambda data: cge.SparseDecoder(D, G),
    "Student-t": lambda data: cge.MLPDecoder(D, G, hidden=(6,), likelihood=cge.StudentTLikelihood(G)),
    "Poisson": lambda data: cge.LinearDecoder(D, G, likelihood=cge.PoissonLikelihood(as_counts(data))),
    "negative binomial, sparse": lambda data: cge.SparseDecoder(
        D, G, likelihood=cge.NegativeBinomialLikelihood(as_counts(data))
    ),
    "mechanism linear": lambda data: cge.MechanismDecoder(LinearMechanism(MASK)),
    "mechanism neural": lambda data: cge.MechanismDecoder(NeuralMechanism(MASK)),
    "conditional": lambda data: cge.ConditionalDecoder(data, D, G, hidden=(6,)),
    "conditional linear": lambda data: cge.ConditionalDecoder(data, D, G, hidden=()),
}
GUIDES = {
    "mean field": cge.AmortizedGuide,
    "full": cge.FullCovarianceGuide,
    "structured": cge.StructuredGuide,
    "flow": cge.FlowGuide,
}
CONDITIONING = (None, "concat", "film", "shift")


def _one_at_a_time() -> dict[str, Callable[[cge.EnvironmentData], Pair]]:
    cases: dict[str, Callable[[cge.EnvironmentData], Pair]] = {}
    for name, prior in PRIORS.items():
        cases[f"prior {name}"] = lambda data, prior=prior: pair(data, prior(data))
    for name, scm in SCMS.items():
        cases[f"scm {name}"] = lambda data, scm=scm: pair(data, scm=scm())
    for name, decoder in DECODERS.items():
        cases[f"decoder {name}"] = lambda data, decoder=decoder: pair(data, decoder=decoder(data))
    for name, guide in GUIDES.items():
        cases[f"guide {name}"] = lambda data, guide=guide: pair(data, scm=SCMS["linear"](), guide=guide)
    for name in CONDITIONING[1:]:
        cases[f"guide {name}"] = lambda data, name=name: pair(data, conditioning=name, hidden=(7, 6))
    cases["guide linear"] = lambda data: pair(data, hidden=())
    for name, preset in PRESETS.items():
        cases[f"preset {name}"] = lambda data, preset=preset: preset(data, D, hidden=(6,))
    cases["preset sams, additive"] = lambda data: cge.sams_vae(doses(data), D, hidden=(6,), additive=True, hill=True)
    return cases


def combination(seed: int) -> tuple[str, Callable[[cge.EnvironmentData], Pair]]:
    """A random element of the product of all parts."""
    rng = random.Random(seed)
    prior, scm, decoder, guide = (rng.choice(list(parts)) for parts in (PRIORS, SCMS, DECODERS, GUIDES))
    conditioning = rng.choice(CONDITIONING)

    def make(data: cge.EnvironmentData) -> Pair:
        law = PRIORS[prior](data)
        head = DECODERS[decoder](law.environments)
        return pair(data, law, SCMS[scm](), head, conditioning, guide=GUIDES[guide])

    return f"{prior} / {scm} / {decoder} / {guide} / {conditioning}", make


CASES = _one_at_a_time()
