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


class Sites(Messenger):
    """Every sample site of a program by name (``nodes``), its latent ones replayed from ``given``.

    What ``poutine.trace(poutine.replay(program, given))`` records, in one handler that keeps nothing else. Handlers
    entered before it, and those the program enters, act as they do around Pyro's two.
    """

    def __init__(self, given: Sites | None = None) -> None:
        super().__init__()
        self.given = {} if given is None else given.nodes
        self.nodes: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        site = self.given.get(msg["name"])
        if site is not None and not msg["is_observed"]:
            if site["is_observed"]:
                raise RuntimeError(f"site {msg['name']!r} is latent in the model but observed in the guide")
            msg["done"], msg["value"], msg["infer"] = True, site["value"], site["infer"]

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.nodes:
            raise RuntimeError(f"two sample sites are named {name!r}")
        if not msg["infer"].get("_do_not_trace"):
            self.nodes[name] = msg.copy()


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
