"""ChiRho's interventions and counterfactuals work on our models as they are (optional dependency)."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine

import pyro_cge as cge

pytest.importorskip("chirho", reason="ChiRho is not installed: pip install 'pyro_cge[chirho]'")

from chirho.counterfactual.handlers import MultiWorldCounterfactual
from chirho.indexed.ops import IndexSet, gather
from chirho.interventional.handlers import do

N, D, G = 20, 3, 8
VALUE = torch.full((N, 1), 5.0)


@pytest.fixture(params=["given graph", "learned graph"])
def model(request):
    truth = cge.simulate.simulator("chain", n_latents=D, n_genes=G, seed=0)
    scm = truth.scm if request.param == "given graph" else cge.LearnedSCM(D, order=[0, 1, 2], probability=0.9)
    model = cge.CellModel(cge.StandardPrior(truth.prior.environments, D), scm, truth.decoder)
    return model, truth.sample(N).batch().unobserved()


def values(trace):
    return {name: trace.nodes[name]["value"] for name in ("c_1", "c_2", "c_3")}


def test_do_is_our_hard_intervention(model):
    model, batch = model
    with do(actions={"c_2": VALUE}):
        theirs = poutine.trace(model).get_trace(batch)
    replayed = poutine.replay(model, trace=theirs)
    with cge.HardIntervention(latent=1, value=5.0):
        ours = poutine.trace(replayed).get_trace(batch)
    torch.testing.assert_close(values(ours)["c_1"], values(theirs)["c_1"])
    torch.testing.assert_close(values(ours)["c_3"], values(theirs)["c_3"])


def test_counterfactual_worlds_share_their_noise(model):
    model, batch = model
    with MultiWorldCounterfactual(first_available_dim=-3), do(actions={"c_2": VALUE}):
        trace = poutine.trace(model).get_trace(batch)
        x = pyro.deterministic("x_all", trace.nodes["x"]["fn"].mean, event_dim=1)
        factual, intervened = (gather(x, IndexSet(c_2={world}), event_dim=1).squeeze() for world in (0, 1))
    z = trace.nodes["z"]["value"]
    assert z.shape == (N, D)
    edges = {"edge": trace.nodes["edge"]["value"]} if "edge" in trace.nodes else {}
    with poutine.condition(data={"z": z, **edges}):
        plain = poutine.trace(model).get_trace(batch).nodes["x"]["fn"].mean
        with cge.HardIntervention(latent=1, value=5.0):
            ours = poutine.trace(model).get_trace(batch).nodes["x"]["fn"].mean
    torch.testing.assert_close(factual, plain)
    torch.testing.assert_close(intervened, ours)
