"""Leaving out latents that say nothing, or nothing that the others do not say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ..data.align import align
from ..data.profiles import Profiles
from ..errors import ConfigError
from ..models.priors import DensePrior
from ..scm.latent import LatentSCM
from .fit import Fit
from .fold import check_foldable, first_layer
from .rotation import INFORMED, posterior_moments

REDUNDANT = 0.6  # real latents reach 0.5 while a fit has latents to spare, superfluous ones 0.7 to 1
FEATURES = 500  # random ReLU features of the regression of one latent on the others
ROWS = 20_000


def redundancy(z: Tensor, seed: int = 0) -> Tensor:
    """How well each latent is predicted from the others: held-out R² ``[d]`` of a regression, at least 0.

    Noise latents are independent, so a latent that is a function of the others (``|z_1|`` beside ``z_1``, which an
    encoder with latents to spare finds early and gives up late) is not one of them. The regression is ridge on random
    ReLU features, half of the profiles to fit and half to judge.

    Parameters
    ----------
    z : Tensor ``[n, d]``
    seed : int
        Of features and halves.
    """
    n, d = z.shape
    z = z.double()
    z = (z - z.mean(0)) / z.std(0).clamp_min(1e-12)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n, generator=generator)[:ROWS].to(z.device)
    fitted, judged = z[rows].tensor_split(2)
    if d == 1 or len(judged) < 2:
        return z.new_zeros(d)
    weight = torch.randn(d, FEATURES, generator=generator).to(z) * (1.5 / (d - 1) ** 0.5)
    bias = torch.randn(FEATURES, generator=generator).to(z)
    shares = []
    for j in range(d):
        others = weight.clone()
        others[j] = 0

        def features(rows: Tensor, j: int = j, others: Tensor = others) -> Tensor:
            linear = torch.cat([rows[:, :j], rows[:, j + 1 :]], -1)
            return torch.cat([(rows @ others + bias).relu(), linear.abs(), linear, torch.ones_like(rows[:, :1])], -1)

        design = features(fitted)
        gram = design.mT @ design + 1e-3 * len(fitted) * torch.eye(design.shape[1]).to(z)
        solution = torch.linalg.solve(gram, design.mT @ fitted[:, j])
        error = (judged[:, j] - features(judged) @ solution).square().mean()
        shares.append(1 - error / judged[:, j].var())
    return torch.stack(shares).clamp_min(0)


def superfluous(fit: Fit, data: Profiles, threshold: float = REDUNDANT) -> list[int]:
    """Latents that have collapsed to the prior, and those the others predict with R² above ``threshold``.

    The most predictable goes first, and the rest are judged again without it: of two latents that predict each other one
    stays.
    """
    loc, variance = posterior_moments(fit, align(data, fit.schema))
    signal = loc.var(0)
    informed = signal / (signal + variance.mean(0)) > INFORMED
    kept = informed.nonzero().flatten().tolist()
    while len(kept) > 1:
        share = redundancy(loc[:, kept])
        worst = int(share.argmax())
        if share[worst] <= threshold:
            break
        del kept[worst]
    return [j for j in range(loc.shape[1]) if j not in kept]


def without_latents(fit: Fit, drop: Sequence[int]) -> Fit:
    """The fit with some latents left out, held at zero: smaller encoder, decoder and prior. Train on afterwards.

    Ask :func:`superfluous` which, after :func:`~pyro_cge.train.rotation.rotate`: before it no axis is special.

    Raises
    ------
    ConfigError
        If none would be left, or the fit is of a kind that cannot be rotated either.
    """
    check_foldable(fit.model, fit.guide)
    d = fit.model.d
    keep = torch.tensor([j for j in range(d) if j not in set(drop)], dtype=torch.long)
    if not len(keep) or not set(drop) <= set(range(d)):
        raise ConfigError(f"cannot leave out latents {sorted(drop)} of {d}")
    if not drop:
        return fit
    model, guide = copy.deepcopy((fit.model, fit.guide))
    prior, size = cast(DensePrior, model.prior), len(keep)
    twice = torch.cat([keep, d + keep])
    guide.head = _part(guide.head, rows=twice)
    first = first_layer(model.decoder)
    smaller = _part(first, columns=keep)
    first.weight, first.in_features = smaller.weight, size
    outputs = twice if prior.moves == "both" else keep
    if prior.network.table is not None:
        table = prior.network.table.weight.detach()
        prior.network.table = nn.Embedding.from_pretrained(table[:, outputs.to(table.device)].clone(), freeze=False)
    else:
        layers = cast(nn.Sequential, prior.network.network)
        layers[-1] = _part(cast(nn.Linear, layers[-1]), rows=outputs)
    model.scm = LatentSCM.identity(size).to(guide.head.weight.device)
    guide.d = prior.d = model.decoder.d = size
    return replace(fit, model=model, guide=guide, settings={**fit.settings, "latents": size})


def _part(layer: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Some outputs or inputs of a linear layer."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if rows is not None:
        weight, bias = weight[rows.to(weight.device)], bias[rows.to(weight.device)]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    part = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return part
