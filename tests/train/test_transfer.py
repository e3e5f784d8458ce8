"""Between two fits: another prior that starts where the last one ended, and the number of latents."""

from __future__ import annotations

import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.train.rotation import rotate
from pyro_cge.train.transfer import choose_latents, transfer


def build(data, d, prior=None):
    with cge.isolated(1):
        prior = cge.DensePrior(data, d, moves="loc") if prior is None else prior
        model = cge.CellModel(prior, None, cge.LinearDecoder(d, data.g))
        return model, cge.AmortizedGuide(model, hidden=())


@pytest.fixture(scope="module")
def turned(request):
    fits = {}
    for which in ("data", "featured"):
        data = request.getfixturevalue(which)
        fit = cge.fit(*build(data, 5), data, epochs=60, lr=1e-2, validation=None, progress=False)
        fits[which] = rotate(fit, data)
    return fits


@pytest.mark.parametrize("which", ["data", "featured"])
def test_transfer_starts_the_new_prior_at_the_old_law(which, request, turned):
    data, fit = request.getfixturevalue(which), turned[which]
    moved = transfer(fit, cge.DensePrior(data, 5, moves="both"), data)
    old, new = fit.posterior(data).shift(), moved.posterior(data).shift()
    tolerance = 1e-5 if which == "data" else 0.1  # a table takes the law exactly, a network by regression
    torch.testing.assert_close(new.loc, old.loc, atol=tolerance, rtol=0.1)
    torch.testing.assert_close(new.log_scale, old.log_scale, atol=tolerance, rtol=0)
    torch.testing.assert_close(moved.posterior(data).reconstruct(), fit.posterior(data).reconstruct())
    assert moved.model is not fit.model and fit.model.prior.moves == "loc"
    assert moved.guide.model is moved.model


@pytest.mark.parametrize("prior", ["LaplacePrior", "HorseshoePrior", "SpikeSlabPrior", "CategoricalPrior"])
def test_sparse_priors_start_near_it_and_train_on(prior, data, turned):
    fit = turned["data"]
    moved = transfer(fit, getattr(cge, prior)(data, 5), data)
    old, new = fit.posterior(data).shift().loc, moved.posterior(data).shift().loc
    strongest = old.abs() == old.abs().amax(1, keepdim=True)
    large = strongest & (old.abs() > 1)
    assert large.any()
    torch.testing.assert_close(new[large], old[large], atol=0.2, rtol=0.2)
    again = cge.fit(moved.model, moved.guide, data, epochs=2, validation=None, progress=False)
    assert torch.isfinite(again.posterior(data).shift().loc).all()


def test_another_number_of_latents_is_refused(data, turned):
    with pytest.raises(ConfigError, match="latents"):
        transfer(turned["data"], cge.DensePrior(data, 4), data)


def test_the_number_of_latents_is_the_smallest_within_a_standard_error():
    environments = cge.simulate.random_shifts(2, 6, variance=5, cover=True)
    truth = cge.simulate.independent(n_latents=2, n_genes=12, environments=environments)
    data = truth.sample(80)
    options = {"epochs": 60, "lr": 1e-2, "batch_size": 128, "progress": False, "n_samples": 20}
    table, best = choose_latents(lambda d: build(data, d), data, [4, 1, 2], **options)
    assert list(table.index) == [1, 2, 4] and table["chosen"].sum() == 1
    assert (table["gap"] >= 0).all() and table.loc[table["bound"].idxmax(), "gap"] == 0
    # One latent cannot explain the genes of two; a third and fourth explain nothing more.
    assert table.loc[1, "gap"] > 10 * table.loc[1, "gap_se"]
    assert table.index[table["chosen"]].item() == best.model.d == 2
    again, _ = choose_latents(lambda d: build(data, d), data, [1, 2], **options)
    assert again.loc[[1, 2], "bound"].tolist() == table.loc[[1, 2], "bound"].tolist()
    with pytest.raises(ConfigError, match="candidate"):
        choose_latents(lambda d: build(data, d), data, [])
