"""Five latents in a growing network, thirty genes, unseen environments (paper, section 6.4): which model extrapolates?

Every model is trained and tested on the same graphs, environments and profiles, so that differences between models are
taken graph by graph. The five validation environments are other draws than the training ones: each shifts one latent by
N(0, variance 5). A model that looks at environments is told of an unseen one in two ways: *described*, by the features
the training environments have (a fixed random projection of the shift, in the place of a fingerprint), or *reference*,
as if it were unperturbed, which is to say nothing about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from network_plots import plot, plot_counts
from rows import Job, collect

import pyro_cge as cge
from pyro_cge.errors import DataError
from pyro_cge.metrics import reconstruction_loss

LATENTS, GENES, ATTACH, VARIANCE, FEATURES = 5, 30, 0.2, 5.0, 8
PROFILES = 600  # in all, however many environments they come from
TESTED = 100  # profiles a validation environment
FIT: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 64,
    "lr": 3e-3,
    "validation": None,
    "patience": None,
    "progress": False,
}
EVERY = 5  # epochs between two looks at the validation environments
COUNTS = (1, 2, 5, 10, 20, 50)
MODELS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "basic": cge.basic_vae,
    "conditional": cge.conditional_vae,
    "environment": cge.environment_vae,
    "translation": cge.translation_vae,
    "structured": cge.structured_vae,
    "dense": cge.dense_vae,
}
LONGER = "basic, as long"  # trained on like the rotated one: the control of the row "dense, rotated"
UNSEEN = ("described", "reference")


@dataclass(frozen=True)
class Experiment:
    """Training profiles of some environments, and profiles of five others of the same graph."""

    train: cge.EnvironmentData
    test: cge.EnvironmentData

    @classmethod
    def draw(cls, graph: int, seed: int, environments: int = 5, profiles: int = PROFILES) -> Experiment:
        """``graph`` decides the truth and what environments do, ``seed`` the profiles."""
        describe = cge.simulate.descriptors(LATENTS, FEATURES, seed=graph)

        def shifts(n: int, kind: int, control: bool) -> cge.simulate.Environments:
            return describe(
                cge.simulate.random_shifts(LATENTS, n, variance=VARIANCE, control=control, seed=1000 + 2 * graph + kind)
            )

        truth = cge.simulate.growing_network(
            n_latents=LATENTS,
            n_genes=GENES,
            decoder="neural",
            attach=ATTACH,
            environments=shifts(environments, 0, True),
            seed=graph,
        )
        each = profiles // (environments + 1)
        other = shifts(5, 1, False)
        named = replace(other, names=[f"other {i + 1}" for i in range(5)])
        return cls(truth.sample(each, seed=100 + seed), truth.sample(TESTED, environments=named, seed=200 + seed))

    def unseen(self, how: str) -> cge.EnvironmentData:
        if how == "described":
            return self.test
        assert self.test.env_features is not None
        return replace(self.test, env_features=0 * self.test.env_features, control=range(self.test.n_envs))


class Watch:
    """Reconstruction loss in the validation environments every few epochs: squared error at the posterior mean, a gene."""

    def __init__(self, pair: tuple[Any, Any], experiment: Experiment) -> None:
        self.pair, self.experiment = pair, experiment
        self.scaler = cge.Standardizer.fit(experiment.train)
        self.losses: dict[str, list[float]] = {how: [] for how in UNSEEN}
        self.epochs: list[int] = []

    def __call__(self, epoch: int) -> None:
        """For ``fit(on_epoch=…)``: ``epoch`` epochs are done."""
        if epoch % EVERY == 0:
            self.epochs.append(epoch)
            for how in UNSEEN:
                data = self.experiment.unseen(how)
                posterior = cge.Posterior(*self.pair, data, self.scaler, schema=self.experiment.train.schema())
                self.losses[how].append(reconstruction(posterior, data))


def reconstruction(posterior: cge.Posterior, data: cge.EnvironmentData) -> float:
    return float(reconstruction_loss(data.x, posterior.reconstruct()).mean()) / data.g


def prediction(posterior: cge.Posterior, data: cge.EnvironmentData) -> float:
    """Squared error a gene of the predicted mean profile of an environment, from its description alone."""
    predicted = posterior.predict(data, n_samples=200)
    means = np.stack([data.x[data.env == e].mean(0).numpy() for e in range(data.n_envs)])
    return float(np.square(means - predicted.numpy()).mean())


def job(name: str, graph: int, seed: int, environments: int = 5, **options: Any) -> list[dict[str, Any]]:
    """One fit of one model: a record an answer to what an unseen environment is."""
    experiment = Experiment.draw(graph, seed, environments, options.pop("profiles", PROFILES))
    with cge.isolated(seed):
        pair = MODELS[name.removesuffix(", as long")](experiment.train, LATENTS)
    watch = Watch(pair, experiment)
    training = {**FIT, **options}
    fit = cge.fit(*pair, experiment.train, on_epoch=watch, seed=seed, **training)
    watch(training["epochs"])
    if name == LONGER:
        return continued(name, fit, watch, experiment, seed, training)
    records = recorded(name, watch.epochs, watch.losses, fit, experiment)
    if name == "dense":
        records += continued("dense, rotated", fit, watch, experiment, seed, training)
    return records


def continued(
    name: str, first: cge.Fit, before: Watch, experiment: Experiment, seed: int, training: dict[str, Any]
) -> list[dict[str, Any]]:
    """Trained on for half as long, a dense fit after the rotation step (as it was where there is nothing to rotate to)."""
    options = {**training, "epochs": training["epochs"] // 2, "lr": training["lr"] / 2, "kl_warmup": 0, "seed": seed}
    if name == LONGER:
        fit = cge.fit(first.model, first.guide, experiment.train, **options)
    else:
        try:
            fit = cge.rotate_and_refit(first, experiment.train, **options)
        except DataError:
            fit = first
    losses = {}
    for how in UNSEEN:
        data = experiment.unseen(how)
        losses[how] = [*before.losses[how], reconstruction(fit.posterior(data), data)]
    return recorded(name, [*before.epochs, training["epochs"] + options["epochs"]], losses, fit, experiment)


def recorded(
    name: str, epochs: list[int], losses: dict[str, list[float]], fit: cge.Fit, experiment: Experiment
) -> list[dict[str, Any]]:
    train = fit.posterior(experiment.train)
    seen = reconstruction(train, experiment.train)
    predicted = prediction(fit.posterior(experiment.test), experiment.test)
    return [
        {
            "model": name,
            "unseen": how,
            "epochs": epochs,
            "losses": losses[how],
            "best": min(losses[how]),
            "last": losses[how][-1],
            "training": seen,
            "predicted": predicted if how == "described" else None,
        }
        for how in UNSEEN
    ]


def trivial(graph: int, seed: int, environments: int = 5, profiles: int = PROFILES) -> list[dict[str, Any]]:
    """Baselines: the mean training profile, and the first principal components of the training profiles."""
    experiment = Experiment.draw(graph, seed, environments, profiles)
    train, test = experiment.train.x.double(), experiment.test.x.double()
    mean, scale = train.mean(0), train.std(0)
    axes = ((train - mean) / scale).svd().V[:, :LATENTS]
    scores = (test - mean) / scale
    means = np.stack([test[experiment.test.env == e].mean(0).numpy() for e in range(5)])
    away = float(np.square(means - mean.numpy()).mean())
    found = {"mean profile": test - mean, "PCA": (scores - scores @ axes @ axes.T) * scale}
    return [
        {"model": name, "unseen": how, "best": (v := float(left.square().mean())), "last": v, "predicted": away}
        for name, left in found.items()
        for how in UNSEEN
    ]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    graphs, seeds, fewer, options = 10, 3, 3, {}
    models: Iterable[str] = [*MODELS, LONGER]
    if arguments.quick:
        graphs, seeds, fewer, options = 2, 1, 0, {"epochs": 10, "profiles": 300}
        models = ("basic", "conditional", "environment", "translation", "structured")
    for seed in range(seeds):
        for graph in range(graphs):
            yield from every_model(models, graph, seed, 5, **options)
    for graph in range(fewer):
        for count in COUNTS:  # five are among the above
            yield from every_model(MODELS, graph, 0, count, **options)


def every_model(models: Iterable[str], graph: int, seed: int, environments: int, **options: Any) -> Iterator[Job]:
    common = {"environments": environments, "graph": graph, "seed": seed}
    yield {**common, "part": "baselines"}, lambda: trivial(graph, seed, environments)
    for name in models:
        yield {**common, "part": name}, lambda n=name: job(n, graph, seed, environments, **options)


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Figure 9, and the same against the number of training environments."""
    rows = collect(jobs(arguments), out / "network", arguments.resume)
    models = rows[rows["environments"] == 5]
    counts = rows[rows["model"] != LONGER]
    counts = counts[counts["graph"].isin(rows[rows["environments"] != 5]["graph"].unique()) & (counts["seed"] == 0)]
    table = against_basic(models)
    print(table.round(4).to_string())
    plot(models, out / "network.png")
    figures: dict[str, Any] = {"ood_6_4": {}, "ood_6_4_gain": {}, "ood_6_4_over_basic": {}}
    for (model, how), row in table.iterrows():
        if how == "reference" and row["last"] == table.loc[(model, "described"), "last"]:
            continue  # the encoder and decoder do not look at the environment
        name = model if how == "described" else f"{model}, {how}"
        figures["ood_6_4"][name] = round(float(row["last"]), 4)
        figures["ood_6_4_gain"][name] = [round(-float(row[c]), 4) for c in ("difference", "high", "low")]
        figures["ood_6_4_over_basic"][name] = [round(float(row[c]), 4) for c in ("ratio", "ratio low", "ratio high")]
    by_graph = models[models["unseen"] == "described"].groupby(["model", "graph"])["last"].mean()
    if {"dense, rotated", LONGER} <= set(by_graph.index.get_level_values(0)):  # trained as long as each other
        figures["ood_6_4_rotated_gain"] = [
            round(float(v), 4) for v in interval(by_graph[LONGER] - by_graph["dense, rotated"])
        ]
    if len(counts):
        each = counts[counts["unseen"] == "described"].groupby(["model", "environments"])
        for key, column in (("ood_6_4_by_environments", "last"), ("prediction_by_environments", "predicted")):
            wide = each[column].mean().unstack()
            print(f"\n{key}\n{wide.round(3).to_string()}")
            figures[key] = {m: {int(k): round(float(v), 4) for k, v in row.items()} for m, row in wide.iterrows()}
        plot_counts(counts, out / "environments.png")
    return figures


def against_basic(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over graphs and seeds; the last loss minus the basic VAE's, and over it (geometric mean), paired by graph.

    ``low`` and ``high`` bound the mean over graphs with 95 % confidence (Student's t).
    """
    each = rows.groupby(["model", "unseen", "graph"], sort=False)[["training", "best", "last", "predicted"]].mean()
    basic = each.loc["basic"]["last"]
    records = {}
    for key, some in each.groupby(level=[0, 1], sort=False):
        some = some.droplevel([0, 1])
        difference = interval(some["last"] - basic[key[1]])
        ratio = interval(np.log(some["last"] / basic[key[1]]))
        records[key] = {
            **some.mean(),
            **dict(zip(("difference", "low", "high"), difference, strict=True)),
            **dict(zip(("ratio", "ratio low", "ratio high"), map(np.exp, ratio), strict=True)),
        }
    return pd.DataFrame.from_dict(records, orient="index")


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and its 95 % confidence interval."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 1 else np.nan
    return values.mean(), values.mean() - half, values.mean() + half
