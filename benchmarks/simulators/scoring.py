"""How every method is scored, and the trivial ones: one convention for all, the peers' own beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import pyro_cge as cge
from pyro_cge.metrics import linear_r2, match_latents, target_recovery
from pyro_cge.train.rotation import find_rotation

Array = NDArray[np.float64]


def environment_means(z: Array, data: cge.EnvironmentData, centre: Array | None = None) -> Array:
    """Mean latents ``[E, k]`` of each environment, from ``centre`` (default :func:`centre_of`).

    The same reading for every method, whether it has a prior that knows environments or not.
    """
    centre = centre_of(z, data) if centre is None else centre
    return (_means(z, data) - centre) * present(data)[:, None]


def centre_of(z: Array, data: cge.EnvironmentData) -> Array:
    """Where unperturbed profiles lie ``[k]``: the mean of the controls, or the median environment where there are none."""
    means = _means(z, data)
    return means[list(data.control)].mean(0) if data.control else np.median(means[present(data)], 0)


def _means(z: Array, data: cge.EnvironmentData) -> Array:
    sums = torch.zeros(data.n_envs, z.shape[1], dtype=torch.float64)
    sums.index_add_(0, data.env, torch.as_tensor(z).double())
    return (sums / data.env_counts.clamp_min(1).unsqueeze(-1)).numpy()


def present(data: cge.EnvironmentData) -> NDArray[np.bool_]:
    return (data.env_counts > 0).numpy()


def otsu(values: Array) -> float:
    """The threshold that splits numbers into two groups of least variance within (Otsu 1979): no size of effect is given."""
    v = np.sort(np.abs(values).ravel())
    n, below = len(v), np.arange(1, len(v))
    total = v.cumsum()
    gap = total[:-1] / below - (total[-1] - total[:-1]) / (n - below)
    best = int((below * (n - below) * gap**2).argmax())
    return float((v[best] + v[best + 1]) / 2)


def overlap_f1(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """SAMS-VAE's convention: latents are assigned so that as many targets as possible agree."""
    hits = truth.T.astype(float) @ found.astype(float)
    return float(2 * hits[linear_sum_assignment(-hits)].sum() / max(found.sum() + truth.sum(), 1))


def score(z: Array, data: cge.EnvironmentData, own: Array | None = None) -> dict[str, float]:
    """What was found of the true noise and targets, over the environments present in ``data``.

    ``mcc`` and ``f1``: latents assigned by |Pearson correlation| with the true noise; targets are the mean shifts above
    :func:`otsu`'s threshold. ``ceiling``: root of the R² of the best linear map. Peers' own: ``spearman`` (MCC with rank
    correlations) and ``mask_f1`` (targets assigned by overlap). ``own_f1``: targets as the model itself names them.

    Parameters
    ----------
    z : ``[n, k]``
    own : ``[E, k]``, optional
        The model's own probability that a latent is a target.
    """
    assert data.truth is not None
    truth, here = data.truth, present(data)
    here[list(data.control)] = False
    matching = match_latents(z, truth.z)
    shift, targets = np.abs(environment_means(z, data))[here], truth.targets.numpy()[here]
    threshold = otsu(shift)
    recovery = target_recovery(shift, targets, matching, threshold=threshold)
    scores = {
        "mcc": matching.mcc,
        "f1": recovery.f1,
        "precision": recovery.precision,
        "recall": recovery.recall,
        "top1": recovery.top1,
        "threshold": threshold,
        "ceiling": float(np.sqrt(max(linear_r2(z, truth.z), 0.0))),
        "spearman": match_latents(z, truth.z, "spearman").mcc,
        "mask_f1": overlap_f1(shift >= threshold, targets),
        "latents": z.shape[1],
    }
    if own is not None:
        scores["own_f1"] = target_recovery(own[here], targets, matching, threshold=0.5).f1
    return scores


def expression(data: cge.EnvironmentData, counts: bool) -> Array:
    """Standardised expression, after ``log(1 + x)`` where it is counts."""
    x = data.x.double().log1p() if counts else data.x.double()
    return ((x - x.mean(0)) / x.std(0)).numpy()


def trivial(data: cge.EnvironmentData, counts: bool, d: int, seed: int) -> dict[str, Array]:
    """Latents ``[n, d]`` without a model: PCA, FastICA, random directions, and PCA turned to sparse environment means."""
    from sklearn.decomposition import FastICA

    x = expression(data, counts)
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:d].T
    pca = x @ axes
    ica = FastICA(d, random_state=seed, max_iter=500, tol=1e-3).fit_transform(x)
    return {
        "random directions": x @ np.random.default_rng(seed).standard_normal((data.g, d)),
        "PCA": pca,
        "FastICA": ica,
        "PCA, means rotated": _turned(pca, data),
    }


def _turned(z: Array, data: cge.EnvironmentData) -> Array:
    """The rotation step on environment means of principal components: sparse means without a model."""
    values, means = torch.as_tensor(z), torch.as_tensor(_means(z, data))
    residual = values - means[data.env]
    within = residual.mT @ residual / (data.n - int(present(data).sum()))
    rotation = find_rotation(means, counts=data.env_counts, within=within, control=data.is_control)
    return rotation.apply(values).numpy()


def oracle(
    data: cge.EnvironmentData, fresh: cge.EnvironmentData, counts: bool, seed: int, steps: int
) -> dict[str, float]:
    """The ceiling: a network trained to predict the true noise from expression, judged on fresh cells.

    Two hidden layers of 256, steps of 512 of the profiles the models see.
    """
    assert data.truth is not None and fresh.truth is not None
    x, z = torch.as_tensor(expression(data, counts)).float(), data.truth.z
    logs = data.x.log1p() if counts else data.x
    other = ((fresh.x.log1p() if counts else fresh.x) - logs.mean(0)) / logs.std(0)
    with cge.isolated(seed):
        network = cge.models.networks.mlp([data.g, 256, 256, z.shape[1]])
        optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
        for _ in range(steps):
            rows = torch.randint(data.n, (512,))
            loss = (network(x[rows]) - z[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            seen, unseen = network(x), network(other)
    return {"mcc": _diagonal(unseen, fresh.truth.z), "mcc_seen": _diagonal(seen, z)}


def _diagonal(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    return float(((a * b).mean(0) / (a.std(0, correction=0) * b.std(0, correction=0))).mean())


def summary(scores: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.3f}" for k, v in scores.items() if k in ("mcc", "ceiling", "f1", "shd", "mmd_double"))
