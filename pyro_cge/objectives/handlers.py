"""Effect handlers with which an objective reads or changes what the objective it wraps runs."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class Drawn(Messenger):
    """Keeps the value of every latent site that is drawn while it is in force (the latest, by name).

    ``cells`` are those in the cells plate, ``shared`` those outside it (targets and shifts of environments, masks).
    """

    def __init__(self) -> None:
        super().__init__()
        self.cells: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_latent(msg):
            (self.cells if in_cells(msg) else self.shared)[msg["name"]] = msg["value"]


class ScaledMean(Messenger):
    """Multiplies the mean of the observed expression by a dummy scale a profile, ``scale [n]``.

    The likelihood is rebuilt by the decoder itself, so this holds for every decoder and kind of noise.
    """

    def __init__(self, decoder: Any, scale: Tensor) -> None:
        super().__init__()
        self.decoder, self.scale = decoder, scale

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "x" and msg["is_observed"]:
            msg["fn"] = self.decoder.likelihood(self.scale.unsqueeze(-1) * msg["fn"].mean)


class Repeated(Messenger):
    """Draws every latent site of the cells plate ``n_samples`` times, in a new leading dimension.

    Sites outside the plate keep one draw, which all samples share.
    """

    def __init__(self, n_samples: int) -> None:
        super().__init__()
        self.n_samples = n_samples

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and in_cells(msg) and len(msg["fn"].batch_shape) == 1:
            msg["fn"] = msg["fn"].expand(torch.Size((self.n_samples, *msg["fn"].batch_shape)))


def is_random(site: Any) -> bool:
    """Whether a site has a density, observed or latent: neither deterministic, nor a plate's own indices."""
    return site["type"] == "sample" and not site["infer"].get("_deterministic") and not site_is_subsample(site)


def is_latent(site: Any) -> bool:
    """Whether a site is a latent variable."""
    return is_random(site) and not site["is_observed"]


def in_cells(site: Any) -> bool:
    """Whether a site has one value a profile."""
    return any(frame.name == "cells" for frame in site["cond_indep_stack"])
