"""What needs no model: means, neighbours, kernel ridge."""

from __future__ import annotations

import numpy as np
import torch
from gaussian_process import NOISE
from splits import Task
from torch import Tensor

from pyro_cge.metrics import pearson_per_profile
from pyro_cge.models.kernels import leave_groups_out

NEIGHBOURS = 20
SHRINKAGE = 0.3  # towards the mean, as by a neighbour of similarity √0.3


def averages(x: Tensor, labels: np.ndarray, wanted: np.ndarray, otherwise: Tensor) -> Tensor:
    """Mean of the profiles with each wanted label ``[m, g]``."""
    means = {label: x[torch.from_numpy(labels == label)].mean(0) for label in np.unique(labels)}
    return torch.stack([means.get(label, row) for label, row in zip(wanted, otherwise, strict=True)])


def baselines(task: Task) -> dict[str, Tensor]:
    """Predictions ``[n_valid, g]`` of every baseline."""
    train, valid = task.fitted, task.held_out
    table = task.data.env_table
    context = "dose" if task.name == "doses" else "cell_line"
    here, there = ({c: table[c].to_numpy()[part.env.numpy()] for c in table} for part in (train, valid))
    mean = train.x.mean(0).expand_as(valid.x)
    cell = averages(train.x, here[context], there[context], mean)
    drug = averages(train.x, here["perturbagen"], there["perturbagen"], mean)
    own = averages(train.x, here[context], here[context], train.x)
    residual = train.x - own
    additive = cell + averages(residual, here["perturbagen"], there["perturbagen"], torch.zeros_like(mean))
    likeness = task.tanimoto[valid.env][:, train.env].float()
    if task.name == "doses":  # doses a factor of three apart: the nearer, the more alike
        steps = np.abs(np.log10(there["dose"][:, None] / here["dose"]))
        likeness = likeness * torch.from_numpy(np.exp(-(steps**2) / (2 * 0.5**2))).float()
    neighbours = torch.empty_like(valid.x)
    for i, label in enumerate(there[context]):
        pool = torch.from_numpy(np.flatnonzero(here[context] == label))
        pool = torch.arange(train.n) if len(pool) == 0 else pool
        near = pool[likeness[i, pool].topk(min(NEIGHBOURS, len(pool))).indices]
        weight = likeness[i, near].square().unsqueeze(1)
        neighbours[i] = ((weight * train.x[near]).sum(0) + SHRINKAGE * cell[i]) / (weight.sum() + SHRINKAGE)
    found = {"mean": mean, "additive": additive, "knn_20": neighbours, "kernel_ridge": ridge(task, residual) + cell}
    return found | (
        {"dose_mean": cell, "compound_mean": drug} if task.name == "doses" else {"cell_mean": cell, "drug_mean": drug}
    )


def ridge(task: Task, residual: Tensor) -> Tensor:
    """Ridge on the Tanimoto kernel of what the cell line's (dose's) mean leaves over; penalty by leaving groups out."""
    train, valid = task.fitted, task.held_out
    inner = task.tanimoto[train.env][:, train.env].float()
    groups = task.groups[task.train]
    errors = [
        float((leave_groups_out(inner, residual, groups, n)[0] - residual).square().mean()) for n in NOISE.tolist()
    ]
    penalty = float(NOISE[int(np.argmin(errors))])
    weights = torch.linalg.solve(inner + penalty * torch.eye(train.n), residual)
    return task.tanimoto[valid.env][:, train.env].float() @ weights


def ceilings(task: Task) -> dict[str, float]:
    """How well profiles predict each other, mean r: what can be hoped for.

    ``same_environment``: two profiles of one compound in one cell line (stereo-isomers, or other salts), ``r_2``. A
    prediction without error would reach ``√r_2``. ``same_compound``: a compound in two cell lines, each at its distance
    from the cell line's mean. ``other_compound``: two compounds in one cell line.
    """
    x, table = task.data.x, task.data.env_table
    env = task.data.env.numpy()
    compound, line = (table[c].to_numpy()[env] for c in ("perturbagen", "cell_line"))
    own = averages(x, line, line, x)

    def mean_r(values: Tensor, alike: np.ndarray) -> float:
        first, second = np.nonzero(np.triu(alike, 1))
        order = np.random.default_rng(0).permutation(len(first))[:20_000]
        if not len(order):
            return float("nan")
        return float(pearson_per_profile(values[first[order]], values[second[order]]).mean())

    same_compound, same_line = (labels[:, None] == labels for labels in (compound, line))
    twice = mean_r(x, env[:, None] == env)
    return {
        "same_environment": twice,
        "errorless": max(twice, 0.0) ** 0.5,
        "same_compound": mean_r(x, same_compound & ~same_line),
        "same_compound_beyond_cell_line": mean_r(x - own, same_compound & ~same_line),
        "other_compound": mean_r(x, same_line & ~same_compound),
    }
