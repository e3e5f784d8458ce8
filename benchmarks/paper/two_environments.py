"""Two dependent latents, two environments (paper, section 6.3): why do models that know environments extrapolate badly?

The second latent is a function of the first, but for an offset of 0.5 in the second environment: enough for the basic VAE
to tell the two apart. Conditional and Environment VAE are then changed by one choice at a time. Every model starts from
the same encoder and decoder weights and sees the same minibatches, because a ReLU encoder of five units extrapolates
well or badly by the luck of its weights.

An unseen environment is given to a model that looks at environments in two ways: *described* by its offsets, as the
training environments were, or as the *reference* environment, which is to say nothing about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import linear
import linear_plots
import numpy as np
import pandas as pd
import torch
from rows import Job, collect

import pyro_cge as cge

Build = Callable[..., tuple[Any, Any]]
EARLY = {"validation": 0.1, "patience": 2}


@dataclass(frozen=True)
class Variant:
    """A preset with some choices changed, and what else is changed in its training."""

    build: Build
    training: dict[str, Any] = field(default_factory=dict)
    staged: bool = False  # trained as a basic VAE first, and then a fifth as long with its own prior
    decay: float = 0.0  # weight decay of the prior's network (AdamW), which keeps what it says small


ENVIRONMENT, CONDITIONAL = cge.environment_vae, cge.conditional_vae
VARIANTS = {
    "basic": Variant(cge.basic_vae),
    "conditional": Variant(CONDITIONAL),
    "conditional, encoder blind": Variant(partial(CONDITIONAL, conditioning=None)),
    "environment": Variant(ENVIRONMENT),
    "environment, location only": Variant(partial(ENVIRONMENT, moves="loc")),
    "environment, dense": Variant(partial(cge.dense_vae, conditioning="concat", moves="both")),
    "environment, early stopping": Variant(ENVIRONMENT, EARLY),
    "environment, FiLM": Variant(partial(ENVIRONMENT, conditioning="film")),
    "environment, encoder blind": Variant(partial(ENVIRONMENT, conditioning=None)),
    "environment, weight decay": Variant(ENVIRONMENT, decay=10.0),
    "translation": Variant(cge.translation_vae),  # encoder blind, location only
    "translation, after the basic VAE": Variant(cge.translation_vae, staged=True),
    "translation, weight decay": Variant(cge.translation_vae, decay=10.0),
}
BEST = "translation, weight decay"
PAPER = ("basic", "conditional", "environment", BEST)  # also trained as the paper did, with five units
PAPER_SEEDS = 3
# With five units most seeds never use the second latent, whatever the model: choices are compared with more of them.
WIDE: dict[str, Any] = {"hidden": linear.WIDE, "epochs": 15, "batch_size": 50, "lr": 5e-3}


def described(environments: cge.simulate.Environments) -> cge.simulate.Environments:
    """The paper's notation (T_0, T_1) as features of an environment."""
    return replace(environments, features=environments.shift.loc)


def undescribed(data: cge.EnvironmentData) -> cge.EnvironmentData:
    """The same profiles, all said to be in the reference environment."""
    return replace(data, env_features=torch.zeros_like(data.env_features), control=range(data.n_envs))


def pair_of(
    variant: Variant, data: cge.EnvironmentData, seed: int, hidden: tuple[int, ...] = linear.HIDDEN
) -> tuple[Any, Any]:
    """Model and guide, with the encoder and decoder weights of the basic VAE of this seed."""
    size = {"hidden": hidden, "decoder": "linear"}
    with cge.isolated(seed):
        first, first_guide = cge.basic_vae(data, 2, **size)
        model, guide = variant.build(data, 2, **size)
    guide.layers.load_state_dict(first_guide.layers.state_dict())
    guide.head.load_state_dict(first_guide.head.state_dict())
    into = model.decoder.latent if isinstance(model.decoder, cge.ConditionalDecoder) else model.decoder.linear
    into.load_state_dict(first.decoder.linear.state_dict())
    return model, guide


def decayed(parameters: list[Any], *, prior: torch.nn.Module, decay: float, lr: float) -> torch.optim.Optimizer:
    """AdamW that decays the prior's weights and no others."""
    own = {id(p) for p in prior.parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) in own], "weight_decay": decay},
        {"params": [p for p in parameters if id(p) not in own], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def job(
    name: str,
    seed: int,
    profiles: int = linear.PROFILES,
    hidden: tuple[int, ...] = linear.HIDDEN,
    **options: Any,
) -> list[dict[str, Any]]:
    truth = linear.truth_of(True, described(cge.simulate.offsets([(0, 0), (0, 0.5)])), seed)
    data = linear.sample(truth, profiles, seed)
    test = truth.sample(linear.TESTED, environments=described(linear.directions()), seed=seed)
    variant = VARIANTS[name]
    # Profiles of both environments are held out, as where an environment is only its name.
    training = {**options, **variant.training}
    if "validation" in training:
        held = np.random.default_rng(seed).random(data.n) < training["validation"]
        training["validation"], data = data.rows(np.flatnonzero(held)), data.rows(np.flatnonzero(~held))
    pair = pair_of(variant, data, seed, hidden)
    if variant.staged:
        first = linear.fitted(pair_of(VARIANTS["basic"], data, seed, hidden), data, seed, **training)
        moved = cge.transfer(first, pair[0].prior, data)
        pair, training = (moved.model, moved.guide), {**training, "epochs": training["epochs"] // 5}
    if variant.decay:
        rate = training.get("lr", linear.FIT["lr"])
        training["optimizer"] = partial(decayed, prior=pair[0].prior, decay=variant.decay, lr=rate)
    fit = linear.fitted(pair, data, seed, **training)
    found = {} if name.startswith("conditional") else linear.compared(fit, truth, data)
    shift = fit.posterior(data).shift()
    common = {
        **found,
        "training_loss": float(linear.losses(fit, data).mean()),
        "best_epoch": fit.best_epoch,
        "loc": shift.loc[1].tolist(),
        "log_scale": shift.log_scale[1].tolist(),
    }
    return [
        {
            "unseen": unseen,
            **common,
            "curve": linear.curve(linear.losses(fit, profiles_)),
            "exact": linear.curve(linear.exact_losses(fit, profiles_)),
        }
        for unseen, profiles_ in (("described", test), ("reference", undescribed(test)))
    ]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    if arguments.quick:
        for name in PAPER:
            key = {"setting": "wide", "model": name, "seed": 0}
            yield key, lambda n=name: job(n, 0, profiles=1000, **WIDE)
        return
    few = min(arguments.seeds, PAPER_SEEDS)
    for setting, seeds, names, options in (("wide", arguments.seeds, VARIANTS, WIDE), ("paper", few, PAPER, {})):
        for seed in range(seeds):
            for name in names:
                key = {"setting": setting, "model": name, "seed": seed}
                yield key, lambda n=name, s=seed, o=options: job(n, s, **o)


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Figures 13 and 14 (basic), 7 (Environment VAE), 8 (Conditional VAE), and what helps."""
    rows = measured(collect(jobs(arguments), out / "two_environments", arguments.resume))
    table = summary(rows)
    print(table.round(3).to_string())
    plot(rows[rows["setting"] == "wide"], out / "two_environments.png")
    figures: dict[str, Any] = {}
    for setting, key in (("wide", "ood_ratio_6_3"), ("paper", "ood_ratio_6_3_five_units")):
        best = rows[(rows["setting"] == setting) & (rows["model"] == BEST) & (rows["unseen"] == "described")]["ratio"]
        if len(best):
            figures |= {key: round(float(best.mean()), 3), f"{key}_worst": round(float(best.max()), 3)}
    figures["ood_ratio_6_3_by_model"] = {
        f"{setting}, {unseen}": part.droplevel([0, 1])[["ratio", "worst", "exact ratio"]].round(3).to_dict("index")
        for (setting, unseen), part in table.groupby(level=[0, 1])
    }
    for key, some in rows[(rows["model"] == "basic") & (rows["unseen"] == "described")].groupby("setting"):
        for measure in ("sd", "sd_scaled", "span"):
            figures[f"two_environments_{measure}_deg_{key}"] = round(float(some[measure].mean()), 2)
    return figures


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Losses near (|T| = 2) and far (|T| = 20), of the encoder and of exact inference, and over the basic VAE's.

    Ratios are taken seed by seed: in each direction, and of the mean of both.
    """
    rows["near"] = [mean_loss(c, 2) for c in rows["curve"]]
    for kind in ("curve", "exact"):
        for i in (0, 1):
            rows[f"{kind} {i}"] = [linear.at_twenty(c, i) for c in rows[kind]]
    basic = rows[rows["model"] == "basic"].set_index(["setting", "seed", "unseen"])
    basic = basic.loc[list(zip(rows["setting"], rows["seed"], rows["unseen"], strict=True))]
    for kind, name in (("curve", "ratio"), ("exact", "exact ratio")):
        far = [f"{kind} 0", f"{kind} 1"]
        rows[name] = rows[far].sum(axis=1).to_numpy() / basic[far].sum(axis=1).to_numpy()
        for i in (0, 1):
            rows[f"{name} {i}"] = rows[far[i]].to_numpy() / basic[far[i]].to_numpy()
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    order = {name: i for i, name in enumerate(VARIANTS)}
    groups = rows.sort_values("model", key=lambda c: c.map(order)).groupby(["setting", "unseen", "model"], sort=False)
    means = groups[
        [
            "training_loss",
            "near",
            "curve 0",
            "curve 1",
            "ratio 0",
            "ratio 1",
            "ratio",
            "exact 0",
            "exact 1",
            "exact ratio",
        ]
    ].mean()
    means.insert(0, "seeds", groups["seed"].nunique())
    means.insert(8, "worst", groups["ratio"].max())
    return means


def mean_loss(records: list[dict[str, Any]], size: int) -> float:
    return float(np.mean([r["loss"] for r in records if abs(r["offset"]) == size]))


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Losses out of distribution of the four models, and the angles of a basic VAE."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), squeeze=False)
    seen = rows[rows["unseen"] == "described"].sort_values("seed")
    for axis, name in zip((axes[0, 0], axes[1, 0], axes[1, 1], axes[1, 2]), PAPER, strict=True):
        linear_plots.draw_losses(axis, seen[seen["model"] == name]["curve"])
        axis.set_title(name, fontsize=10)
    bottom = min(axis.get_ylim()[0] for axis in (axes[0, 0], *axes[1]))
    top = max(axis.get_ylim()[1] for axis in (axes[0, 0], *axes[1]))
    for axis in (axes[0, 0], *axes[1]):
        axis.set_ylim(bottom, top)
    basic = seen[seen["model"] == "basic"].sort_values("span")
    median = basic.iloc[len(basic) // 2]
    for axis, mirrored in zip(axes[0, 1:], (False, True), strict=True):
        linear_plots.draw_distances(axis, np.array(median["M"]), np.array(median["found"]), mirrored)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
