"""``EnsemblePosterior`` answers what a posterior answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.posterior import Posterior
from pyro_cge.train.ensembles.mixture import EnsemblePosterior


@pytest.fixture(scope="module")
def members(data):
    posteriors = []
    for seed in range(2):
        with cge.isolated(seed):
            model, guide = cge.environment_vae(data, 3, hidden=(8,))
        fit = cge.fit(model, guide, data, epochs=10, lr=1e-2, validation=None, progress=False)
        posteriors.append(fit.posterior(data))
    return posteriors


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_question_to_one_posterior_can_be_put_to_several():
    of_one_model = {"samples", "replicate", "log_evidence", "log_likelihood", "every_environment", "moves_latents"}
    assert public(Posterior) - public(EnsemblePosterior) == of_one_model | {"treated", "treated_names", "latent_names"}


def test_the_aggregate_is_the_mean_of_the_profiles_latents(members, data):
    """Means by environment of the mixture's own latents, from the control's."""
    mixed = EnsemblePosterior(members)
    means = mixed.latents().groupby(data.env.numpy()).mean().to_numpy()
    np.testing.assert_allclose(mixed.aggregate().loc, means - means[0], atol=1e-5)
    assert (mixed.aggregate().log_scale[0] != 0).all()


def test_counterfactuals_and_similarities_are_means_over_members(members):
    mixed = EnsemblePosterior(members)
    one, other = (p.counterfactual("env 1") for p in members)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(mixed.counterfactual("env 1"), (one + other) / 2)
    for kind in ("targets", "direction"):
        tables = [p.similarity(kind) for p in members]
        np.testing.assert_allclose(mixed.similarity(kind), np.mean(tables, 0), atol=1e-12)
        assert list(mixed.similarity(kind)) == list(tables[0])


def test_many_profiles_leave_environments_to_export(members):
    out = EnsemblePosterior(members).to_arviz(4, profiles=False)
    assert out.groups() == ["posterior"] and set(out.posterior) == {"env_loc", "env_log_scale"}
    assert out.posterior.sizes["chain"] == 2
