"""The discrepancy-VAE's simulator: targets, graph, and unseen double interventions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe import ALWAYS, combined, latents, preset
from scoring import environment_means, otsu
from structure import EDGE, maximum_likelihood
from torch import Tensor

import pyro_cge as cge
from pyro_cge.data.environment import Truth
from pyro_cge.data.standardize import Standardizer
from pyro_cge.metrics import match_latents, structural_hamming_distance
from pyro_cge.models.cell import ConditionalCellModel
from pyro_cge.scm import graphs
from pyro_cge.scm.shifts import NoiseShift

CELLS = 1024  # an intervention; five times as many controls, as in their file
WIDTH, CHUNK = 1000.0, 256  # of their kernels; cells compared at a time
SINGLES = 5


def fresh(seed: int, cells: int = CELLS) -> tuple[cge.EnvironmentData, cge.EnvironmentData]:
    """Control and single interventions to train on; the ten doubles, held out."""
    truth = cge.simulate.latent_chain()
    everything = truth.sample([SINGLES * cells] + [cells] * (len(truth.environments) - 1), seed=seed)
    single = everything.env <= SINGLES
    return _parts(everything, single)


def published(path: Path) -> tuple[cge.EnvironmentData, cge.EnvironmentData]:
    """Their own instance: arrays ``single_X, single_Xc [n, 10]``, ``single_ptbs``, and the same of ``double``.

    The second half of the cells of a single intervention is for training, as in their code; all doubles are for testing.
    """
    with np.load(path, allow_pickle=False) as file:
        single, double = ({k: file[f"{part}_{k}"] for k in ("X", "Xc", "ptbs")} for part in ("single", "double"))
    schema = cge.simulate.latent_chain().environments
    x, env = [], []
    for j in range(SINGLES):
        rows = np.flatnonzero(single["ptbs"] == str(j))[CELLS:]
        x += [single["X"][rows], single["Xc"][rows]]
        env += [np.zeros(len(rows), int), np.full(len(rows), 1 + j)]
    for e, name in enumerate(schema.names[1 + SINGLES :], start=1 + SINGLES):
        i, j = (part.removeprefix("shift ") for part in name.split("+"))
        rows = np.flatnonzero(double["ptbs"] == f"{i},{j}")
        x.append(double["Xc"][rows])
        env.append(np.full(len(rows), e))
    values = torch.from_numpy(np.concatenate(x)).float()
    c = values[:, :SINGLES]
    before = torch.cat([torch.zeros_like(c[:, :1]), c[:, :-1].relu()], 1)
    truth = Truth(graphs.chain(SINGLES), schema.shift, schema.targets, c - before, c)
    everything = replace(
        schema.schema([f"gene {k}" for k in range(values.shape[1])]),
        x=values,
        env=torch.from_numpy(np.concatenate(env)),
        obs=schema.table.iloc[[]].reindex(range(len(values))),
        truth=truth,
    )
    return _parts(everything, everything.env <= SINGLES)


def _parts(everything: cge.EnvironmentData, single: Tensor) -> tuple[cge.EnvironmentData, cge.EnvironmentData]:
    train = everything.rows(single.nonzero().flatten()).without_constant_genes()
    return train, everything.rows((~single).nonzero().flatten()).genes(list(train.gene_names))


def kernel_discrepancy(x: Tensor, y: Tensor) -> float:
    """MMD² in the peers' convention: ten Gaussian kernels ``exp(−|a − b|² / h)``, summed, ``h = 1000 / 2⁵ · 2ⁱ``, biased.

    Means over chunks of 256 cells; two samples of one law are not at zero.
    """
    values = []
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        both = torch.cat([a, b]).double()
        distance = torch.cdist(both, both).square()
        kernel = torch.stack([torch.exp(-distance / (WIDTH / 2**5 * 2**i)) for i in range(10)]).sum(0)
        n = len(a)
        values.append(float((kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()))
    return float(np.mean(values))


def double_discrepancy(predicted: Tensor, doubles: cge.EnvironmentData) -> float:
    """Mean over the double interventions; ``predicted`` has the cells of each, in order of environment."""
    per = predicted.split(doubles.env_counts[1 + SINGLES :].tolist())
    pairs = enumerate(per, start=1 + SINGLES)
    return float(np.mean([kernel_discrepancy(doubles.x[doubles.env == e], y) for e, y in pairs]))


def named(z: np.ndarray, data: cge.EnvironmentData) -> dict[int, int]:
    """Environment → the latent it moves most, where that passes the threshold and no other latent does."""
    shift = np.abs(environment_means(z, data))[1 : 1 + SINGLES]
    above = shift >= otsu(shift)
    return {1 + e: int(row.argmax()) for e, row in enumerate(above) if row.sum() == 1}


def dense(data: cge.EnvironmentData, seed: int, epochs: int) -> cge.Fit:
    with cge.isolated(seed):
        model = cge.CellModel(
            cge.DensePrior(data, SINGLES, moves="loc"), None, cge.MLPDecoder(SINGLES, data.g, hidden=(128,))
        )
        guide = cge.AmortizedGuide(model, None, hidden=(128, 128))
    options = {"epochs": epochs, "batch_size": 256, "lr": 1e-2, "kl_warmup": epochs // 2, "kl_start": 1.0, "seed": seed}
    return cge.fit(model, guide, data, **options, **ALWAYS)


def ours(data: cge.EnvironmentData, doubles: cge.EnvironmentData, seed: int, epochs: int = 40) -> dict[str, dict]:
    """Targets from the rotated dense fit; graph and causes from structural equations with those targets."""
    first = dense(data, seed, epochs)
    turned = cge.rotate(first, data)
    rows: dict[str, dict[str, Any]] = {"ours, dense": scores(first, data, doubles, seed)}
    rows["ours, rotated"] = scores(turned, data, doubles, seed)
    target = named(latents(turned, data), data)
    if len(target) < SINGLES or len(set(target.values())) < SINGLES:  # some target not named: no graph to speak of
        rows["ours"] = rows["ours, rotated"]
        return rows
    structure = maximum_likelihood(data, target)
    matching = match_latents(structure.noise(data.x).numpy(), data.truth.z)
    solved = replace(turned, model=structure.model(data), scaler=Standardizer.identity(data.gene_names))
    predicted = _doubles(solved, data, doubles, seed, structure.shift)
    rows["ours"] = {
        "mcc": matching.mcc,
        "top1": rows["ours, rotated"]["top1"],
        "shd": _distance(structure.adjacency, matching.order),
        "mmd_double": double_discrepancy(predicted, doubles),
    }
    return rows


def scores(fit: cge.Fit, data: cge.EnvironmentData, doubles: cge.EnvironmentData, seed: int) -> dict[str, Any]:
    """Targets named, graph where the model has one, unseen doubles from sums of shifts."""
    z = latents(fit, data)
    matching = match_latents(z, data.truth.z)
    row: dict[str, Any] = {"mcc": matching.mcc, "top1": _top1(z, data)}
    if len(fit.model.scm.layers) > 1:
        row["shd"] = _distance((_weights(fit.model.scm).abs() >= EDGE).double(), matching.order)
    if not isinstance(fit.model, ConditionalCellModel):  # its decoder has no sums of environments
        row["mmd_double"] = double_discrepancy(_doubles(fit, data, doubles, seed), doubles)
    return row


def trivial(
    data: cge.EnvironmentData, doubles: cge.EnvironmentData, seed: int, cells: int = CELLS
) -> dict[str, dict[str, Any]]:
    """No effect; effects on the mean that add up; a second sample of the truth (the floor); principal components."""
    rng = torch.Generator().manual_seed(seed)
    control = data.x[data.env == 0]
    counts = doubles.env_counts[1 + SINGLES :]
    draws = control[torch.randint(len(control), (int(counts.sum()),), generator=rng)]
    means = torch.stack([data.x[data.env == e].mean(0) for e in range(1 + SINGLES)]) - control.mean(0)
    added = torch.stack([means[data.environments(text.split("+"))].sum(0) for text in _pairs(doubles)])
    again = fresh(seed + 1000, cells)[1].genes(list(doubles.gene_names))
    z = np.linalg.svd((data.x - data.x.mean(0)).double().numpy(), full_matrices=False)
    pca = z[0][:, :SINGLES] * z[1][:SINGLES]
    return {
        "no effect": {"mmd_double": double_discrepancy(draws, doubles), "shd": _distance(torch.zeros(5, 5), None)},
        "mean effects added": {"mmd_double": double_discrepancy(draws + added.repeat_interleave(counts, 0), doubles)},
        "PCA": {"mcc": match_latents(pca, data.truth.z).mcc, "top1": _top1(pca, data)},
        "the truth, sampled again": {"mmd_double": double_discrepancy(again.x[: int(counts.sum())], doubles)},
    }


def in_loop(
    name: str, data: cge.EnvironmentData, doubles: cge.EnvironmentData, seed: int, steps: int
) -> dict[str, Any]:
    fit, read = preset(name, data, SINGLES, False, seed, steps)
    return scores(fit, read, doubles, seed)


def _pairs(doubles: cge.EnvironmentData) -> list[str]:
    return list(doubles.env_table["parts"].iloc[1 + SINGLES :])


def _doubles(
    fit: cge.Fit, data: cge.EnvironmentData, doubles: cge.EnvironmentData, seed: int, shift: Tensor | None = None
) -> Tensor:
    law = None if shift is None else NoiseShift(shift.float(), torch.zeros_like(shift).float())
    return combined(fit, data, _pairs(doubles), int(doubles.env_counts[-1]), seed, law)


def _top1(z: np.ndarray, data: cge.EnvironmentData) -> float:
    """Share of single interventions whose most moved latent is the true target; a latent may not stand for two."""
    matching = match_latents(z, data.truth.z)
    shift = np.abs(environment_means(z, data))[1 : 1 + SINGLES]
    return float((shift.argmax(1) == matching.order).mean())


def _weights(scm: cge.LatentSCM) -> Tensor:
    """Coefficients ``[d, d]`` of a latent SCM of linear mechanisms, latents in their own numbering."""
    weights = torch.zeros(scm.d, scm.d)
    for layer, mechanism in zip(scm.layers[1:], scm.mechanisms, strict=True):
        weights[scm.order[: len(mechanism.W)].unsqueeze(-1), torch.tensor(layer)] = mechanism.W.detach()
    return weights


def _distance(adjacency: Tensor, order: np.ndarray | None) -> int:
    """Structural Hamming distance to the chain; ``order`` says which latent stands for each true one."""
    truth = graphs.adjacency(graphs.chain(SINGLES))
    aligned = adjacency if order is None else adjacency[order][:, order]
    return structural_hamming_distance(aligned, truth)
