"""Superfluous latents are found and left out without changing what is left."""

from __future__ import annotations

import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.train.prune import redundancy, superfluous, without_latents


def noise(n=4000, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def small(data, d=5, *, decoder="mlp", conditioning=None, moves="loc", epochs=2):
    with cge.isolated(1):
        head = cge.LinearDecoder(d, data.g) if decoder == "linear" else cge.MLPDecoder(d, data.g, hidden=(16,))
        model = cge.CellModel(cge.DensePrior(data, d, moves=moves), None, head)
        guide = cge.AmortizedGuide(model, conditioning, hidden=(16,))
    return cge.fit(model, guide, data, epochs=epochs, batch_size=64, validation=None, progress=False)


def test_independent_latents_are_not_redundant():
    assert redundancy(noise()).max() < 0.05


@pytest.mark.parametrize("function", [torch.abs, torch.square, torch.sin])
def test_a_function_of_the_others_is(function):
    z = noise()
    share = redundancy(torch.cat([z, function(z[:, :1]) + 0.2 * z[:, 1:2]], -1))
    assert share[-1] > 0.8 and share[-1] > share[:-1].max()


def test_redundancy_ignores_units_and_one_latent_has_none():
    z = torch.cat([noise(), noise()[:, :1].abs()], -1)
    torch.testing.assert_close(redundancy(z * 100 + 5), redundancy(z), atol=1e-3, rtol=0)
    assert redundancy(z[:, :1]).tolist() == [0.0]


@pytest.mark.parametrize("conditioning", [None, "concat"])
@pytest.mark.parametrize("moves", ["loc", "both"])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@pytest.mark.parametrize("which", ["data", "featured"])
def test_leaving_latents_out_is_holding_them_at_zero(which, decoder, moves, conditioning, request):
    data = request.getfixturevalue(which)
    fit = small(data, decoder=decoder, moves=moves, conditioning=conditioning)
    fewer, keep = without_latents(fit, [1, 3]), [0, 2, 4]
    before, after = fit.posterior(data), fewer.posterior(data)
    z = torch.from_numpy(before.latents().to_numpy())
    torch.testing.assert_close(torch.from_numpy(after.latents().to_numpy()), z[:, keep])
    old, new = before.shift(), after.shift()
    torch.testing.assert_close(new.loc, old.loc[:, keep])
    torch.testing.assert_close(new.log_scale, old.log_scale[:, keep])
    held = z.clone()
    held[:, [1, 3]] = 0
    batch = after.data.batch()
    with torch.no_grad():
        torch.testing.assert_close(fewer.model.mean(z[:, keep], batch), fit.model.mean(held, batch))
    assert fit.model.d == 5 and fewer.model.d == fewer.guide.d == 3
    again = cge.fit(fewer.model, fewer.guide, data, epochs=1, validation=None, progress=False)
    assert again.posterior(data).latents().shape[1] == 3
    assert without_latents(again, [0]).model.d == 2


def test_collapsed_and_redundant_latents_are_superfluous(truth):
    data = truth.sample(150)
    model = cge.CellModel(cge.DensePrior(data, 6, moves="loc"), None, cge.LinearDecoder(6, data.g))
    fit = cge.fit(model, cge.AmortizedGuide(model, hidden=()), data, epochs=1, validation=None, progress=False)
    with torch.no_grad():  # an encoder that reads the true noise off the causes' first genes, linearly
        scaled = fit.scaler.transform(data).x
        solution = torch.linalg.lstsq(torch.cat([scaled, torch.ones(data.n, 1)], -1), data.truth.z).solution
        fit.guide.head.weight.zero_()
        fit.guide.head.bias.fill_(-4.0)
        fit.guide.head.weight[:5], fit.guide.head.bias[:5] = solution[:-1].mT, solution[-1]
        fit.guide.head.bias[5] = 0.7  # latent 5: the same mean for every profile, the prior's scale
        fit.guide.head.bias[11] = 0.0
    assert superfluous(fit, data) == [5]
    with torch.no_grad():  # latent 5 repeats latent 1 in other units: one of the two has to go
        fit.guide.head.weight[5], fit.guide.head.bias[5] = -2 * solution[:-1, 1], 1.0
        fit.guide.head.bias[11] = -4.0
    assert superfluous(fit, data) in ([1], [5])


def test_nothing_to_leave_out_is_the_same_fit_and_nonsense_is_refused(data):
    fit = small(data)
    assert without_latents(fit, []) is fit
    for wrong in ([7], list(range(5))):
        with pytest.raises(ConfigError, match="leave out"):
            without_latents(fit, wrong)
