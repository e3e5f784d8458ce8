"""The environment model with a Gaussian-process prior, started in closed form and trained on by ``fit``.

With a linear decoder and principal components for latents the model is a Gaussian process for each component, all with
one kernel. How much of a component is signal is learned by leaving whole groups out (compounds, cell lines, …), because
the question is about groups never seen; the marginal likelihood trusts likeness too much (README).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import pyro_cge as cge
from pyro_cge.models.kernels import fit_kernel, leave_groups_out, nystroem
from pyro_cge.models.likelihoods import StudentTLikelihood

NOISE = torch.logspace(-1.5, 2.0, 8)  # noise variances tried, relative to a kernel of mean diagonal 1
SAMPLE = 1200  # profiles the kernel's weights are learned on
DEGREES = 3.5  # of freedom to start from, learned for each gene; fewer cost likelihood, more widen the 50 % intervals
COMPONENTS = 60  # principal components they are learned on


def learn_kernel(parts: dict[str, Tensor], train: cge.EnvironmentData, groups: np.ndarray, seed: int) -> Tensor:
    """The weighted sum of the kernels ``[E, E]`` that explains the training profiles best, of mean diagonal 1."""
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    cumulative = np.cumsum([(groups == group).sum() for group in order])
    chosen = order[: int(np.searchsorted(cumulative, SAMPLE)) + 1]
    rows = torch.from_numpy(np.flatnonzero(np.isin(groups, chosen)))
    x = cge.Standardizer.fit(train).transform(train).x
    basis = torch.linalg.svd(x, full_matrices=False).Vh[:COMPONENTS]
    env = train.env[rows]
    found = fit_kernel(torch.stack([k[env][:, env] for k in parts.values()]), x[rows] @ basis.T, steps=40)
    total = sum((w * k for w, k in zip(found.weights, parts.values(), strict=True)), torch.zeros(()))
    print("  kernel:", ", ".join(f"{n} {w:.3f}" for n, w in zip(parts, found.weights, strict=True)), flush=True)
    return total / total.diagonal()[train.env].mean()


def model_of(
    data: cge.EnvironmentData, kernel: Tensor, train: cge.EnvironmentData, groups: np.ndarray, d: int, seed: int
) -> tuple[cge.CellModel, cge.AmortizedGuide, cge.EnvironmentData]:
    """Model, guide and data (with kernel features), at the closed-form start.

    Parameters
    ----------
    data : EnvironmentData
        All environments, those to predict included; of its profiles nothing is read.
    kernel : Tensor ``[E, E]``
    train : EnvironmentData
        Training profiles, with the environments of ``data``.
    groups : ndarray ``[n]``
        What is to be predicted unseen, of each training profile.
    """
    features = nystroem(kernel, torch.unique(train.env), own=True)
    data, train = replace(data, env_features=features), replace(train, env_features=features)
    with cge.isolated(seed):
        prior = cge.KernelPrior(data, d, own=True)
        # Heavy tails: a Gaussian's 50 % intervals are too wide where its 90 % intervals are right.
        noise = StudentTLikelihood(data.g, df=DEGREES)
        model = cge.CellModel(prior, None, cge.LinearDecoder(d, data.g, likelihood=noise))
        guide = cge.AmortizedGuide(model, hidden=())
    start(model, guide, train, kernel, groups)
    return model, guide, data


@torch.no_grad()
def start(
    model: cge.CellModel, guide: cge.AmortizedGuide, train: cge.EnvironmentData, kernel: Tensor, groups: np.ndarray
) -> None:
    """Decoder = principal components, prior = the process of each, encoder = the linear posterior mean."""
    d = model.d
    x = cge.Standardizer.fit(train).transform(train).x
    components = torch.linalg.svd(x, full_matrices=False).Vh[:d]
    scores = x @ components.T
    gene_noise = (x - scores @ components).square().mean(0)
    inner = kernel[train.env][:, train.env]
    error, scale = [], []
    for noise in NOISE.tolist():
        predicted, variance = leave_groups_out(inner, scores, groups, noise)
        squared = (scores - predicted).square()
        error.append(squared.mean(0))
        scale.append((squared / variance[:, None]).mean(0))  # the process's own variance, for calibrated intervals
    best = torch.stack(error).argmin(0)
    signal = torch.stack(scale)[best, torch.arange(d)]
    noise = signal * NOISE[best]
    weight = (noise - components.square() @ gene_noise).clamp_min(0.05 * noise).sqrt()
    decoder, prior = model.decoder, model.prior
    decoder.linear.weight.copy_(components.T * weight)
    decoder.linear.bias.zero_()
    decoder.set_scale(gene_noise.sqrt() * ((DEGREES - 2) / DEGREES) ** 0.5)  # the same variance
    prior.set_spread((signal.sqrt() / weight).clamp_min(1e-3))

    loading = decoder.linear.weight / gene_noise.sqrt()[:, None]
    precision = loading.T @ loading + torch.diag(1 / (1 + prior.spread**2))
    covariance = torch.linalg.inv(precision)
    guide.head.weight[:d] = covariance @ (loading.T / gene_noise.sqrt())
    guide.head.bias[:d] = 0
    guide.head.weight[d:] = 0
    log_sd = -0.5 * precision.diagonal().log()
    guide.head.bias[d:] = -2 + 5 * torch.atanh(((log_sd + 2) / 5).clamp(-0.99, 0.99))

    batch = train.batch()
    counted = torch.zeros(len(batch.envs), 1).index_add_(0, batch.env, torch.ones(len(batch.env), 1))
    loc = torch.zeros(len(batch.envs), d).index_add_(0, batch.env, scores / weight) / counted.clamp_min(1)
    seen = (counted[:, 0] > 0).nonzero()[:, 0]
    present = replace(
        batch, envs=batch.envs[seen], env_features=batch.env_features[seen], is_control=batch.is_control[seen]
    )
    mean, sd = prior.condition(loc[seen], present, noise.sqrt() / weight)
    spread = -2.5 + 4.5 * torch.atanh(((sd.log() + 2.5) / 4.5).clamp(-0.999, 0.999)) + 2.0
    guide.environment.network.table.weight.copy_(torch.cat([mean, spread], 1))
