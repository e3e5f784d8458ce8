"""The cross-modal model against closed forms, with Pyro's own tools, and the estimator on cells with a known cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch.nn import functional as F

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import Cells, CrossModalAutoencoder, CrossModalGuide, CrossModalModel
from pyro_cge.imputation.autoencoders.modalities import FLOOR, start_at_cca
from pyro_cge.metrics import retrieval_scores

P, Q = 4, 3
TRUE, FALSE = torch.ones(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)


def cells(has_rna=TRUE, has_atac=TRUE, label=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rna, atac = (torch.randn(10, width, generator=generator, dtype=torch.float64) for width in (P, Q))
    return Cells.of(rna, atac, has_rna, has_atac, label)


def exact():
    """One latent, linear: the product of experts can be the posterior itself."""
    model = CrossModalModel(P, Q, 1, private=2, hidden=0).double()
    guide = CrossModalGuide(model, hidden=0, dropout=0.0).double()
    with torch.no_grad():
        for emission, expert in ((model.rna_decoder, guide.rna_encoder), (model.atac_decoder, guide.atac_encoder)):
            law = emission(torch.zeros(1, 1, dtype=torch.float64))
            w, precision = emission.mean.linear.weight, law.precision_matrix[0]
            tau = (w.T @ precision @ w).squeeze()
            expert.raw_precision.fill_(torch.log(torch.expm1(tau - FLOOR)))
            expert.mean.linear.weight.copy_(w.T @ precision / tau)
            expert.mean.linear.bias.copy_(-(w.T @ precision @ law.mean[0]) / tau)
    return model, guide


def evidence(model, batch):
    """Log marginal density of what was measured, each cell a normal of covariance ``w wᵀ + B Bᵀ + diag(s²)``."""
    laws = [part(torch.zeros(1, 1, dtype=torch.float64)) for part in (model.rna_decoder, model.atac_decoder)]
    mean = torch.cat([law.mean[0] for law in laws])
    w = torch.cat([part.mean.linear.weight for part in (model.rna_decoder, model.atac_decoder)])
    covariance = torch.block_diag(*[law.covariance_matrix[0] for law in laws]) + w @ w.T
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        has = torch.cat([batch.has_rna[i].expand(P), batch.has_atac[i].expand(Q)])
        law = torch.distributions.MultivariateNormal(mean[has], covariance[has][:, has])
        total = total + law.log_prob(torch.cat([batch.rna[i], batch.atac[i]])[has])
    return total.item()


@pytest.mark.parametrize(
    "has_rna, has_atac", [(TRUE, TRUE), (TRUE, FALSE), (FALSE, TRUE), (TRUE, torch.arange(10) < 4)]
)
def test_elbo_of_the_exact_posterior_is_the_evidence(has_rna, has_atac):
    model, guide = exact()
    batch = cells(has_rna, has_atac)
    assert -Trace_ELBO().loss(model, guide, batch) == pytest.approx(evidence(model, batch), rel=1e-8)


def test_a_hidden_modality_lowers_the_bound_but_is_still_explained():
    model, guide = exact()
    batch, hidden = cells(), cells().seeing(TRUE, FALSE)
    seen = Trace_ELBO().loss(model, guide, batch)
    pyro.set_rng_seed(0)
    bound = Trace_ELBO(num_particles=50).loss(model, guide, hidden)
    assert bound > seen
    hidden.atac.add_(10.0)
    pyro.set_rng_seed(0)
    assert Trace_ELBO(num_particles=50).loss(model, guide, hidden) > bound + 100


def test_minibatches_are_unbiased():
    """The bound of the exact posterior has no noise: halves average to the whole."""
    model, guide = exact()
    batch = cells(label=None)
    halves = [Trace_ELBO().loss(model, guide, batch.take(torch.arange(10)[part])) for part in (slice(3), slice(3, 10))]
    whole = Trace_ELBO().loss(model, guide, batch)
    assert (3 * halves[0] + 7 * halves[1]) / 10 == pytest.approx(whole, rel=1e-8)


def test_values_of_missing_modalities_and_labels_do_not_matter():
    model = CrossModalModel(P, Q, 2, classes=3).double()
    guide = CrossModalGuide(model, dropout=0.0).double()
    has = torch.arange(10) < 6
    label = torch.arange(10) % 4 - 1
    one, other = cells(TRUE, has, label), cells(TRUE, has, label)
    other.atac[~has] = 1e3
    losses = []
    for batch in (one, other):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(model, guide, batch))
    assert losses[0] == losses[1]
    trace = poutine.trace(model).get_trace(one)
    trace.compute_log_prob()
    assert (trace.nodes["label"]["log_prob"][label < 0] == 0).all() and (
        trace.nodes["label"]["log_prob"][label >= 0] < 0
    ).all()


def test_posterior_is_the_product_of_normals():
    model = CrossModalModel(P, Q, 2)
    guide = CrossModalGuide(model).double().eval()
    batch = cells(TRUE, torch.arange(10) < 5)
    mean, sd = guide.posterior(batch)
    with torch.no_grad():
        (a, s), (b, t) = guide.rna_encoder(batch.rna), guide.atac_encoder(batch.atac)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for row, experts in ((0, [(a, s), (b, t)]), (7, [(a, s)])):
        log = -(grid**2) / 2 + sum(-(e[1][0]) * (grid - e[0][row, 0]) ** 2 / 2 for e in experts)
        density = torch.softmax(log, 0)
        assert (density * grid).sum().item() == pytest.approx(mean[row, 0].item(), abs=1e-6)
        variance = (density * (grid - mean[row, 0]) ** 2).sum()
        assert variance.sqrt().item() == pytest.approx(sd[row, 0].item(), abs=1e-4)
    torch.testing.assert_close(guide.rna_encoder.posterior_mean(batch.rna)[7], mean[7])


def test_cross_covariance_is_total_over_labels():
    """Between and within labels add up to the whole, the latter shrunk by a / (a + 4 (p + q))."""
    plain, labelled = cells(), cells(label=torch.arange(10) % 3)
    whole = plain.rna.mT @ plain.atac / 10
    torch.testing.assert_close(plain.cross_covariance(), whole)
    few = replace(labelled, has_rna=torch.arange(10) < 5, has_atac=torch.arange(10) > 4)
    means = [
        [x[has & (few.label == k)].mean(0) for k in range(3)]
        for x, has in ((few.rna, few.has_rna), (few.atac, few.has_atac))
    ]
    shares = [(few.label == k).double().mean() for k in range(3)]
    between = sum(share * torch.outer(a, b) for a, b, share in zip(*means, shares))
    torch.testing.assert_close(few.cross_covariance(), between)
    centred = [x.clone() for x in (labelled.rna, labelled.atac)]
    for x in centred:
        for k in range(3):
            x[labelled.label == k] -= x[labelled.label == k].mean(0)
    within = centred[0].mT @ centred[1]
    torch.testing.assert_close(labelled.cross_covariance(), whole - within / 10 + within / (10 + 4 * (P + Q)))
    assert cells(TRUE, FALSE).cross_covariance() is None


def test_the_start_is_probabilistic_cca():
    model = CrossModalModel(P, Q, 2, hidden=0).double()
    guide = CrossModalGuide(model, hidden=0, dropout=0.0).double()
    cross = torch.as_tensor(0.3 * np.random.default_rng(0).normal(size=(P, Q))).clamp(-0.4, 0.4)
    u, s, vt = torch.linalg.svd(cross, full_matrices=False)
    assert s[1] > 0.05 and s[0] < 0.95
    start_at_cca(model, guide, cross)
    rank_two = u[:, :2] * s[:2] @ vt[:2]
    loadings = model.rna_decoder.mean.linear.weight, model.atac_decoder.mean.linear.weight
    torch.testing.assert_close(loadings[0] @ loadings[1].mT, rank_two)
    x = cells().rna
    torch.testing.assert_close(guide.rna_encoder.posterior_mean(x), x @ u[:, :2] * s[:2].sqrt())
    sd = guide.posterior(cells(TRUE, FALSE))[1]
    torch.testing.assert_close(sd[0], (1 - s[:2]).sqrt())


def test_plain_svi_reaches_every_parameter_and_predictive_draws():
    model = CrossModalModel(P, Q, 2, classes=2)
    guide = CrossModalGuide(model)
    batch = Cells.of(torch.randn(10, P), torch.randn(10, Q), TRUE, TRUE, torch.arange(10) % 2)
    before = {name: value.clone() for name, value in torch.nn.ModuleList([model, guide]).named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(50)]
    after = dict(torch.nn.ModuleList([model, guide]).named_parameters())
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    empty = Cells.of(None, None, TRUE, TRUE)
    draws = Predictive(model, num_samples=5)(empty)
    assert draws["rna"].shape == (5, 10, P) and draws["atac"].shape == (5, 10, Q) and draws["z"].shape == (5, 10, 2)
    assert set(draws["label"].unique().tolist()) <= {0, 1}
    translated = Predictive(poutine.uncondition(model), guide=guide, num_samples=3)(batch.seeing(TRUE, FALSE))
    assert translated["atac"].shape == (3, 10, Q)


def test_render_model():
    graph = pytest.importorskip("graphviz")
    picture = pyro.render_model(CrossModalModel(P, Q, 2, classes=2).double(), (cells(label=torch.arange(10) % 2),))
    assert isinstance(picture, graph.Digraph) and all(site in picture.source for site in ("z", "rna", "atac", "label"))


# The estimator


def simulated(n=240, noise=0.5, seed=0):
    """A cause of three dimensions, two of them moved by a label; private noise of two dimensions in each modality."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    z = rng.normal(size=(n, 3)) + 3 * np.eye(3)[label] @ rng.normal(size=(3, 3))
    views = []
    for width in (30, 20):
        private = rng.normal(size=(n, 2)) @ rng.normal(size=(2, width))
        views.append(z @ rng.normal(size=(3, width)) + private + noise * rng.normal(size=(n, width)))
    return views[0], views[1], np.array(["early", "middle", "late"])[label]


SMALL = {"n_latents": 4, "n_private": 3, "n_components": (8, 8), "hidden": 16, "members": 1, "steps": 80}
SMALL |= {"dropout": 0.1, "batch_size": 100, "learning_rate": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def trained():
    rna, atac, label = simulated()
    return CrossModalAutoencoder(**SMALL).fit(rna[:160], atac[:160], rna_labels=label[:160], atac_labels=label[:160])


def test_partners_are_found_and_modalities_translated(trained):
    rna, atac, label = simulated()
    a, b = trained.transform(rna=rna[160:]), trained.transform(atac=atac[160:])
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1)
    scores = retrieval_scores(a, b, k=(5,))
    assert scores["knn_5"] > 0.5 and scores["foscttm"] < 0.1  # chance: 0.06 and 0.5
    for source, values, target in (("rna", rna, atac), ("atac", atac, rna)):
        guess = trained.translate(values[160:], source)
        left = ((target[160:] - guess) ** 2).sum() / ((target[160:] - target[:160].mean(0)) ** 2).sum()
        assert left < 0.75  # private noise is about half of the variance
        known = trained.classes_[trained.label_probabilities(values[160:], source).argmax(1)] == label[160:]
        assert known.mean() > 0.6
    both = trained.transform(rna=rna[160:], atac=atac[160:])
    assert retrieval_scores(both, a, k=(5,))["knn_5"] > scores["knn_5"]


def test_shared_latents_are_invariant(trained):
    rna, atac, _ = simulated()
    table = trained.invariance_of_latents(rna[160:], atac[160:])
    assert len(table) == 4 and table["correlation"].is_monotonic_decreasing
    assert table["correlation"].iloc[0] > 0.7 and abs(table["auc"].iloc[0] - 0.5) < 0.15
    wrong = trained.invariance_of_latents(rna[160:], np.roll(atac[160:], 7, axis=0))
    assert wrong["correlation"].max() < table["correlation"].max()


def test_labels_tie_the_modalities_without_anchors():
    rna, atac, label = simulated()
    rows = np.random.default_rng(1).permutation(160)
    fit = CrossModalAutoencoder(**SMALL).fit(
        rna[:160], atac[rows], None, rna_labels=label[:160], atac_labels=label[rows]
    )
    scores = retrieval_scores(fit.transform(rna=rna[160:]), fit.transform(atac=atac[160:]), k=(5,))
    assert scores["foscttm"] < 0.35


def test_order_of_rows_does_not_matter():
    rna, atac, label = (values[:60] for values in simulated())
    rows = np.random.default_rng(2).permutation(60)
    settings = SMALL | {"steps": 10}
    one = CrossModalAutoencoder(**settings).fit(rna, atac, rna_labels=label)
    other = CrossModalAutoencoder(**settings).fit(
        rna, atac[rows], np.c_[np.arange(60), np.argsort(rows)], rna_labels=label
    )
    np.testing.assert_allclose(one.transform(atac=atac), other.transform(atac=atac), atol=1e-8)


def test_same_seed_same_latents_and_no_global_state():
    rna, atac, _ = (values[:50] for values in simulated())
    settings = SMALL | {"steps": 5, "members": 2}
    state = torch.get_rng_state()
    first, second = (CrossModalAutoencoder(**settings).fit(rna, atac) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and not len(pyro.get_param_store())
    np.testing.assert_array_equal(first.transform(rna=rna), second.transform(rna=rna))
    assert first.transform(rna=rna).shape == (50, 8)
    halves = [F.normalize(z, dim=-1).numpy() for z in first._means(rna=rna)]
    assert not np.allclose(halves[0], halves[1])
    inner = first.transform(rna=rna) @ first.transform(atac=atac).T
    other = [F.normalize(z, dim=-1).numpy() for z in first._means(atac=atac)]
    np.testing.assert_allclose(inner, (halves[0] @ other[0].T + halves[1] @ other[1].T) / 2)


def test_bad_input(trained):
    rna, atac, label = (values[:30] for values in simulated())
    for settings in ({"n_latents": 0}, {"n_components": (3,)}, {"contrast": -1.0}, {"dropout": 1.0}, {"members": 0}):
        with pytest.raises(ConfigError):
            CrossModalAutoencoder(**settings)
    model = CrossModalAutoencoder(**SMALL)
    hole = rna.copy()
    hole[3, 4] = np.nan
    for arguments, match in (
        ((hole, atac), "row 3, column 4"),
        ((rna, atac[:20]), "as many rows"),
        ((rna, atac, [[0, 0], [0, 1]]), "twice"),
        ((rna, atac, [[0, 30]]), "outside"),
        ((rna, atac, [0, 1]), r"\[a, 2\]"),
        ((rna[0], atac), "cells × features"),
        ((np.ones_like(rna), atac), "same values"),
    ):
        with pytest.raises(DataError, match=match):
            model.fit(*arguments)
    with pytest.raises(DataError, match="a label a cell"):
        model.fit(rna, atac, rna_labels=label[:4])
    with pytest.raises(ConfigError, match="'all'"):
        model.fit(rna, atac, "some")
    with pytest.raises(DataError, match="30 features in fit, now 20"):
        trained.transform(rna=atac)
    with pytest.raises(DataError, match="rna, atac or both"):
        trained.transform()
    with pytest.raises(ConfigError, match="source"):
        trained.translate(rna, "protein")


@pytest.mark.slow
def test_sci_car_partners_are_nearer_than_ridge_finds_them(real_data):
    """A third of the cells held out; ridge regression is at a FOSCTTM of 0.36, chance at 0.5."""
    from scipy.sparse import load_npz

    rna, atac = (
        load_npz(real_data / "scicar" / f"diff_{name}_shared_cells.npz").T.toarray() for name in ("expr", "atac")
    )
    rna, atac = np.log1p(rna / rna.sum(1, keepdims=True) * np.median(rna.sum(1))), np.log1p(atac)
    test = np.random.default_rng(0).random(len(rna)) < 0.3
    rna = (rna - rna[~test].mean(0)) / np.maximum(rna[~test].std(0), 1e-9)
    fit = CrossModalAutoencoder(members=1, steps=50, progress=False).fit(rna[~test], atac[~test])
    scores = retrieval_scores(fit.transform(rna=rna[test]), fit.transform(atac=atac[test]))
    assert scores["foscttm"] < 0.35
