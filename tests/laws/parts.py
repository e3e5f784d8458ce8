"""Every prior, guide, decoder, mechanism and preset, as ``(model, guide)`` factories the laws run over.

A new part joins the suite by adding a line here.
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import torch

import pyro_cge as cge
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


def pair(
    data: cge.EnvironmentData,
    prior: torch.nn.Module | None = None,
    scm: cge.LatentSCM | None = None,
    decoder: torch.nn.Module | None = None,
    conditioning: str | None = None,
    hidden: tuple[int, ...] = (7,),
) -> Pair:
    prior = prior or cge.SoftmaxPrior(data, D)
    decoder = decoder or cge.MLPDecoder(D, G, hidden=(6,))
    kind = cge.ConditionalCellModel if isinstance(decoder, cge.ConditionalDecoder) else cge.CellModel
    model = kind(prior, scm, decoder)
    return model, cge.AmortizedGuide(model, conditioning, hidden=hidden)


def table(data: cge.EnvironmentData) -> cge.TablePrior:
    loc, log_scale = torch.randn(2, data.n_envs, D)
    return cge.TablePrior(data, cge.NoiseShift(loc, 0.3 * log_scale))


MASK = (torch.arange(D * G).reshape(D, G) % 3 > 0).float()

CASES: dict[str, Callable[[cge.EnvironmentData], Pair]] = {
    # priors
    "prior standard": lambda data: pair(data, cge.StandardPrior(data, D)),
    "prior table": lambda data: pair(data, table(data)),
    "prior dense": lambda data: pair(data, cge.DensePrior(data, D)),
    "prior dense, linear in features": lambda data: pair(data, cge.DensePrior(data, D, hidden=())),
    "prior softmax": lambda data: pair(data, cge.SoftmaxPrior(data, D, temperature=0.3)),
    "prior softmax, mean only": lambda data: pair(data, cge.SoftmaxPrior(data, D, moves="loc")),
    "prior softmax, scale only": lambda data: pair(data, cge.SoftmaxPrior(data, D, moves="scale")),
    # mechanisms
    "mechanism linear": lambda data: pair(data, scm=cge.LatentSCM(GRAPH, LinearMechanism)),
    "mechanism neural": lambda data: pair(data, scm=cge.LatentSCM(GRAPH, NeuralMechanism)),
    "mechanism polynomial": lambda data: pair(data, scm=cge.LatentSCM(GRAPH, PolynomialMechanism)),
    # decoders
    "decoder linear": lambda data: pair(data, decoder=cge.LinearDecoder(D, G)),
    "decoder deep": lambda data: pair(data, decoder=cge.MLPDecoder(D, G, hidden=(6, 5))),
    "decoder mechanism linear": lambda data: pair(data, decoder=cge.MechanismDecoder(LinearMechanism(MASK))),
    "decoder mechanism neural": lambda data: pair(data, decoder=cge.MechanismDecoder(NeuralMechanism(MASK))),
    "decoder conditional": lambda data: pair(data, decoder=cge.ConditionalDecoder(data, D, G, hidden=(6,))),
    "decoder conditional linear": lambda data: pair(data, decoder=cge.ConditionalDecoder(data, D, G, hidden=())),
    # guides
    "guide linear": lambda data: pair(data, hidden=()),
    "guide concat": lambda data: pair(data, conditioning="concat"),
    "guide film": lambda data: pair(data, conditioning="film", hidden=(7, 6)),
    # presets
    "preset basic": lambda data: cge.basic_vae(data, D, hidden=(6,)),
    "preset conditional": lambda data: cge.conditional_vae(data, D, hidden=(6,)),
    "preset environment": lambda data: cge.environment_vae(data, D, hidden=(6,)),
    "preset environment film": lambda data: cge.environment_vae(data, D, hidden=(6,), conditioning="film"),
    "preset environment linear": lambda data: cge.environment_vae(data, D, hidden=(6,), decoder="linear"),
}
