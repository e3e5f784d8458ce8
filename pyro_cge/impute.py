"""Effects of actions in contexts nobody measured, from a file of those that were.

::

    imputed.h5ad               a row a pair: X the mean, layers["std"] the standard deviation of a new measurement
    pairs.png                  what was measured, and how sure the rest is
    scores.csv, scores.png     cross-validation of the methods asked for            (with folds)
    manifest.json              settings, versions, hashes of the files read, processor seconds
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from .config import ImputeConfig
from .data.anndata import write_anndata
from .data.files import read_frame, sha256, whole_folder
from .errors import DataError
from .imputation import (
    DNPP,
    NTKGP,
    ActionMean,
    BayesianSyntheticInterventions,
    ContextMean,
    Effects,
    FaLRTC,
    FixedEffects,
    NTKCompletion,
    ShrunkMean,
    SyntheticInterventions,
    TwoWayMean,
    cross_validate,
    k_fold,
)
from .imputation.protocol import predicted
from .imputation.reading import read_effects
from .train.checkpoint import write_json

PACKAGES = ("pyro-cge", "pyro-ppl", "torch", "numpy", "pandas", "scipy", "anndata")
METHODS: dict[str, Callable[[], Any]] = {
    "ntk-gp": NTKGP,
    "ntk": NTKCompletion,
    "bayesian-synthetic": BayesianSyntheticInterventions,
    "synthetic": SyntheticInterventions,
    "dnpp": DNPP,
    "falrtc": FaLRTC,
    "shrunk": ShrunkMean,
    "fixed": FixedEffects,
    "two-way": TwoWayMean,
    "action-mean": ActionMean,
    "context-mean": ContextMean,
}


def impute(
    config: ImputeConfig,
    effects: Path,
    out: Path,
    *,
    keys: tuple[str, str] = ("context", "action"),
    pairs: Path | None = None,
    context_features: Path | None = None,
    action_features: Path | None = None,
    training_only: Sequence[str] = (),
    progress: bool | None = None,
) -> tuple[anndata.AnnData, pd.DataFrame | None]:
    """Impute missing pairs and write the folder described above, whole or not at all.

    Parameters
    ----------
    effects : path
        .h5ad, or table with a row a signature; ``keys`` name its columns of contexts and of actions. Replicates of a pair
        are averaged.
    pairs : path, optional
        CSV table with columns ``context`` and ``action``; default: every pair of the file that was not measured.
    context_features, action_features : path, optional
        CSV tables of numbers whose first column names the context (basal expression) or action (fingerprint bits).
    training_only : sequence of str
        Contexts that are never held out in cross-validation; the first is the reference of ``"ntk"``.

    Returns
    -------
    imputed : AnnData
    scores : DataFrame or None
        A row a method.

    Raises
    ------
    ConfigError, DataError
    """
    measured = read_effects(effects, *keys)
    measured = replace(
        measured,
        training_only=tuple(training_only),
        context_features=read_features(context_features),
        action_features=read_features(action_features),
    )
    asked = measured.missing if pairs is None else read_pairs(pairs, measured)
    if not len(asked):
        raise DataError(f"{effects}: every pair of its {measured.K} contexts and {measured.A} actions was measured")
    started = time.process_time()
    scores = None
    if config.folds:
        methods = {name: METHODS[name]() for name in dict.fromkeys((config.method, *config.compare))}
        folds = k_fold(measured, config.folds, random_state=config.seed)
        scores = cross_validate(methods, measured, folds, progress=progress)
    imputer = METHODS[config.method]().fit(measured)
    mean, std = predicted(imputer, asked)
    seconds = time.process_time() - started
    obs = asked.astype(str).astype("category").set_axis(pd.RangeIndex(len(asked)).astype(str))
    imputed = anndata.AnnData(
        mean.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(measured.gene_names, dtype=str)),
        layers={} if std is None else {"std": std.astype(np.float32)},
    )
    files = {
        "effects": effects,
        "pairs": pairs,
        "context_features": context_features,
        "action_features": action_features,
    }
    manifest = {
        "settings": config.model_dump(),
        "keys": list(keys),
        "training_only": list(training_only),
        "measured_pairs": measured.m,
        "imputed_pairs": len(asked),
        "files": {
            k: None if path is None else {"file": path.name, "sha256": sha256(path)} for k, path in files.items()
        },
        "processor_seconds": round(seconds, 3),
        "versions": {name: version(name) for name in PACKAGES},
    }
    with whole_folder(out) as part:
        write_anndata(imputed, part / "imputed.h5ad")
        _draw(measured, imputed, scores, part, everything=pairs is None)
        write_json(part / "manifest.json", manifest)
    return imputed, scores


def read_pairs(path: Path, effects: Effects) -> pd.DataFrame:
    """Pairs of a CSV table with columns ``context`` and ``action``, checked against the names of the effects."""
    table = read_frame(path, dtype=str)
    try:
        effects.codes(table)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return table[["context", "action"]]


def read_features(path: Path | None) -> pd.DataFrame | None:
    """A CSV table of numbers, its first column the names."""
    return None if path is None else read_frame(path, index_col=0)


def summary(imputed: anndata.AnnData, scores: pd.DataFrame | None) -> str:
    """A few lines for the screen."""
    lines = [f"{imputed.n_obs:,} pairs imputed, {imputed.n_vars:,} genes"]
    if "std" in imputed.layers:
        spread = np.asarray(imputed.layers["std"]).mean(1)
        surest = imputed.obs.iloc[int(spread.argmin())]
        lines.append(
            f"standard deviation {spread.mean():.3g} on average, least for {surest.action} in {surest.context}"
        )
    if scores is not None:
        lines += [f"  {name:20} r {row['r']:.3f}  R² {row['r2']:.3f}  cosine {row['cosine']:.3f}" for name, row in scores.iterrows()]  # fmt: skip
    return "\n".join(lines)


def _draw(
    effects: Effects, imputed: anndata.AnnData, scores: pd.DataFrame | None, out: Path, *, everything: bool
) -> None:
    from matplotlib import pyplot as plt

    from . import plots
    from .runs import save_figure

    spread = np.asarray(imputed.layers["std"]).mean(1) if everything and "std" in imputed.layers else None
    plots.pair_map(effects, spread, label="standard deviation")
    save_figure(out / "pairs.png")
    if scores is not None:
        scores.to_csv(out / "scores.csv")
        plots.imputation_scores(scores)
        save_figure(out / "scores.png")
    plt.close("all")
