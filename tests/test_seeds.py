"""Seeds: the caller's state is left alone, and a posterior does not share the simulator's noise."""

from __future__ import annotations

import torch

import pyro_cge as cge


def test_isolated_repeats_and_leaves_the_callers_state_alone():
    state = torch.get_rng_state()
    draws = []
    for stream in ("", "", "posterior"):
        with cge.isolated(0, stream):
            draws.append(torch.randn(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_posterior_draws_are_not_the_noise_the_data_were_made_of():
    """Both of seed 0: they once drew the same stream, and every profile's posterior draw pointed at its true noise."""
    truth = cge.simulate.independent(n_latents=3, n_genes=10, gene_noise=1.0, seed=1)
    data = truth.sample(500, seed=0)
    with cge.isolated(2):
        guide = cge.AmortizedGuide(truth)
    posterior = cge.fit(truth, guide, data, epochs=1, standardize=False, validation=None).posterior(data)
    noise = posterior.samples(1, seed=0)[0] - torch.from_numpy(posterior.latents().to_numpy())
    correlation = torch.corrcoef(torch.stack([noise.flatten(), data.truth.z.flatten()]))[0, 1]
    assert correlation.abs() < 5 / 1500**0.5  # five standard errors: fails once in a million
