"""The inner loop of training: one pass over the profiles, and one over those held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor, nn

from ..data.environment import Batch
from ..data.profiles import Profiles
from ..errors import NonFiniteLossError
from ..guides.amortized import AmortizedGuide
from ..models.cell import CellModel
from ..objectives.elbo import Elbo, traces
from ..seeds import isolated
from .distributed import ALONE, World

EVALUATION_BATCH = 1024


class Objective(Protocol):
    """What ``fit`` minimises: named terms per profile, ``"loss"`` among them."""

    def __call__(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]: ...


def train_epoch(
    modules: Mapping[str, Any],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    train: Profiles,
    batch_size: int,
    rates: list[list[float]],
    warmup: float,
    clip: float,
    parameters: list[nn.Parameter],
    epoch: int,
    world: World = ALONE,
) -> dict[str, float]:
    """One pass over the training profiles, shuffled: ``train_*`` terms per profile and the mean gradient norm.

    Of several processes (``world``) each takes its part of every batch, and all take the same step.

    Raises
    ------
    NonFiniteLossError
        With site, epoch and batch; weights are those from before the failing step.
    """
    names: list[str] = []
    totals: Tensor | None = None  # of the terms, on the device until the epoch is over
    model, guide = modules["model"], modules["guide"]
    for number, batch in enumerate(world.batches(train, batch_size)):
        for group, rate in zip(optimizer.param_groups, rates[number], strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        if len(batch):  # a last batch may be smaller than the number of processes
            terms = objective(model, guide, batch, warmup=warmup)
            terms["loss"].backward()
        loss = world.average(parameters, terms.get("loss"), len(batch))
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        # The one look at the device in a step: false too where the norm or (times zero) the loss is not finite.
        fine = bool(torch.add(norm, loss, alpha=0.0) <= clip)
        if not fine and not (loss + norm).isfinite():
            site = min(world.gather(blame(modules, batch)), key=lambda name: name.startswith("gradient"))
            raise NonFiniteLossError(
                f"loss became {loss.item()} (gradient norm {norm.item()}) at site {site!r}, epoch {epoch}, "
                f"batch {number}. The model keeps the weights from before this step; try a smaller lr or clip, or look "
                "for extreme values in the data.",
                site=site,
                epoch=epoch,
                batch=number,
            )
        if not fine:  # a pass over all gradients, seldom needed
            nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        optimizer.step()
        if terms:
            names, row = [*terms, "grad_norm"], torch.stack([*terms.values(), norm]).detach()
            totals = row * len(batch) if totals is None else totals.add_(row, alpha=len(batch))
    sums = {} if totals is None else dict(zip(names, totals.tolist(), strict=True))
    means = {name: value / train.n for name, value in world.add(sums).items()}
    norm_mean = means.pop("grad_norm")
    return {f"train_{name}": value for name, value in means.items()} | {"grad_norm": norm_mean}


def blame(modules: Mapping[str, Any], batch: Batch) -> str:
    """Name of the first site whose log density is not finite, or of the parameter whose gradient is not."""
    with torch.no_grad():
        for trace in traces(modules["model"], modules["guide"], batch) if len(batch) else ():
            nodes: dict[str, Any] = trace.nodes
            for name, site in nodes.items():
                if site["type"] == "sample" and not site["infer"].get("_deterministic"):
                    value = site["value"]
                    if not (torch.isfinite(value).all() and torch.isfinite(site["fn"].log_prob(value)).all()):
                        return name
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"gradient of {prefix}.{name}"
    return "x"


@torch.no_grad()
def evaluate(
    model: CellModel,
    guide: AmortizedGuide,
    data: Profiles,
    objective: Objective | None = None,
    *,
    seed: int | None = 0,
    world: World = ALONE,
) -> dict[str, float]:
    """Mean of the objective's terms over all profiles of ``data`` (in the units the model was trained in)."""
    objective = Elbo() if objective is None else objective
    totals: dict[str, Any] = {}
    with isolated(seed, world.stream("posterior")), pyro.validation_enabled(False):
        for batch in world.parts(data.batches(EVALUATION_BATCH * world.size)):
            if not len(batch):
                continue
            for name, value in objective(model, guide, batch).items():
                totals[name] = totals.get(name, 0.0) + value * len(batch)
    sums = world.add({name: float(value) for name, value in totals.items()})
    return {name: value / data.n for name, value in sums.items()}
