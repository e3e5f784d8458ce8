"""The inner loop of training: one pass over the profiles, and one over those held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import NonFiniteLossError
from ..guides.amortized import AmortizedGuide
from ..models.cell import CellModel
from ..objectives.elbo import Elbo, traces
from ..seeds import isolated

EVALUATION_BATCH = 1024


class Objective(Protocol):
    """What ``fit`` minimises: named terms per profile, ``"loss"`` among them."""

    def __call__(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]: ...


def train_epoch(
    modules: Mapping[str, Any],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    train: EnvironmentData,
    batch_size: int,
    rates: list[list[float]],
    warmup: float,
    clip: float,
    parameters: list[nn.Parameter],
    epoch: int,
) -> dict[str, float]:
    """One pass over the training profiles, shuffled: ``train_*`` terms per profile and the mean gradient norm.

    Raises
    ------
    NonFiniteLossError
        With site, epoch and batch; weights are those from before the failing step.
    """
    totals: dict[str, Any] = {}
    model, guide = modules["model"], modules["guide"]
    for number, batch in enumerate(train.batches(batch_size, shuffle=True)):
        for group, rate in zip(optimizer.param_groups, rates[number], strict=True):
            group["lr"] = rate
        terms = objective(model, guide, batch, warmup=warmup)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if not (terms["loss"].detach() + norm).isfinite():
            site = _blame(modules, batch)
            raise NonFiniteLossError(
                f"loss became {terms['loss'].item()} (gradient norm {norm.item()}) at site {site!r}, epoch {epoch}, "
                f"batch {number}. The model keeps the weights from before this step; try a smaller lr or clip, or look "
                "for extreme values in the data.",
                site=site,
                epoch=epoch,
                batch=number,
            )
        if norm > clip:  # a pass over all gradients, seldom needed
            nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        optimizer.step()
        for name, value in {**terms, "grad_norm": norm}.items():
            totals[name] = totals.get(name, 0.0) + value.detach() * len(batch)
    means = {name: float(value) / train.n for name, value in totals.items()}
    norm_mean = means.pop("grad_norm")
    return {f"train_{name}": value for name, value in means.items()} | {"grad_norm": norm_mean}


def _blame(modules: Mapping[str, Any], batch: Batch) -> str:
    """Name of the first site whose log density is not finite, or of the parameter whose gradient is not."""
    with torch.no_grad():
        for trace in traces(modules["model"], modules["guide"], batch):
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
    data: EnvironmentData,
    objective: Objective | None = None,
    *,
    seed: int | None = 0,
) -> dict[str, float]:
    """Mean of the objective's terms over all profiles of ``data`` (in the units the model was trained in)."""
    objective = Elbo() if objective is None else objective
    totals: dict[str, Any] = {}
    with isolated(seed, "posterior"), pyro.validation_enabled(False):
        for batch in data.batches(EVALUATION_BATCH):
            for name, value in objective(model, guide, batch).items():
                totals[name] = totals.get(name, 0.0) + value * len(batch)
    return {name: float(value) / data.n for name, value in totals.items()}
