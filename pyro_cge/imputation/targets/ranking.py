"""Drugs by how well they reverse a disease: anticorrelation of signatures, with a posterior of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from ...errors import ConfigError, DataError
from ..effects import Array, Codes, Effects
from ..protocol import predicted
from .signatures import checked_signature, matched

LEVEL = 0.9
Draw = Callable[[np.random.Generator], Array]


def rank_drugs(
    disease: pd.Series | pd.DataFrame,
    effects: Effects,
    *,
    context: str | None = None,
    imputer: Any = None,
    aliases: Mapping[str, str] | pd.Series | None = None,
    score: str = "pearson",
    top: int = 10,
    draws: int = 500,
    random_state: int = 0,
) -> pd.DataFrame:
    """Rank drugs by the correlation of their signature with a disease's: the most negative reverses it best.

    ::

        score_a = Σ_g w_g (x_ag − x̄_a)(y_g − ȳ) / (sd(x_a) sd(y))        means and deviations under the weights w

    The posterior of ranks is that of the scores of all drugs drawn together, as many times as ``draws``:

    - where the imputer has an sd, signatures are drawn from its predictive ``Normal(mean, sd²)``, gene by gene, ``w = 1``.
      Errors of one signature's genes are taken as independent; where they are not, ranks are less sure than they look;
    - where there is none, ``w ~ Dirichlet(1, …, 1)`` is the Bayesian bootstrap of genes (Rubin 1981): how far the ranking
      hangs on single genes; and of the contexts of a drug measured in several.

    Replicates of the disease signature are resampled in the same way in both.

    Parameters
    ----------
    disease : Series gene → log2 fold change, or DataFrame ``[genes, replicates]`` of them
    effects : Effects
        Drugs are its actions; gene names are matched, see ``aliases``.
    context : str, optional
        Where the drugs act. With an ``imputer`` every drug is predicted there, measured or not, so that effects are
        transported to contexts in which little or nothing was measured; without one the drugs measured there are
        ranked. Default: each drug's mean over the contexts it was measured in.
    imputer : optional
        Already fitted; anything of this subpackage.
    aliases : mapping or Series, optional
        From gene names of the disease signature to those of ``effects`` (symbol → Entrez number, say).
    score : {"pearson", "spearman", "cosine"}
        Spearman is the Pearson correlation of ranks over genes; the cosine leaves the means in.
    top : int
        ``k`` of ``p_top``.

    Returns
    -------
    DataFrame
        A row a drug, best first: ``score``, ``rank`` (of the mean signatures, ties shared), ``rank_median``, ``rank_low``
        and ``rank_high`` (90 % interval), ``p_top``: the posterior probability to be among the best ``k``.
        ``attrs["genes"]`` is the number of genes compared.

    Raises
    ------
    DataError
        For a signature that is not finite or constant, genes that do not match, drugs that were not measured, a context
        that does not exist. A drug whose signature is constant has score 0.
    """
    if score not in ("pearson", "spearman", "cosine"):
        raise ConfigError(f"score must be 'pearson', 'spearman' or 'cosine', got {score!r}")
    if top < 1 or draws < 1:
        raise ConfigError(f"top and draws must be at least 1, got {top} and {draws}")
    replicates = _replicates(disease)
    rows, columns = matched(replicates.index, effects.gene_names, aliases)
    y = replicates.to_numpy()[rows]
    if not np.ptp(y.mean(1)) > 0:
        raise DataError(
            f"the disease signature is constant over the {len(rows):,} genes it shares with the drugs' signatures"
        )
    names, mean, draw, sure = _signatures(effects, context, imputer, columns)
    rng = np.random.default_rng(random_state)

    def scores(x: Array, y: Array, w: Array) -> Array:
        if score == "spearman":
            x, y = rankdata(x, axis=1), rankdata(y)
        return _correlation(x, y, w, centred=score != "cosine")

    drawn = np.empty((draws, len(names)))
    for s in range(draws):
        share = rng.dirichlet(np.ones(y.shape[1]))
        w = np.ones(len(y)) if sure else rng.exponential(size=len(y))
        drawn[s] = scores(draw(rng), y @ share, w)
    ranks = rankdata(drawn, axis=1)
    low, median, high = np.quantile(ranks, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
    best = scores(mean, y.mean(1), np.ones(len(y)))
    table = pd.DataFrame(
        {
            "score": best,
            "rank": rankdata(best),
            "rank_median": median,
            "rank_low": low,
            "rank_high": high,
            "p_top": (ranks <= top).mean(0),
        },
        index=pd.Index(names, name="drug"),
    ).sort_values("rank", kind="stable")
    table.attrs["genes"] = len(rows)
    return table


def _replicates(disease: pd.Series | pd.DataFrame) -> pd.DataFrame:
    if isinstance(disease, pd.DataFrame):
        if not disease.shape[1]:
            raise DataError("the disease signature has no column of log2 fold changes")
        return pd.DataFrame({name: checked_signature(disease[name]) for name in disease})
    return checked_signature(disease).to_frame()


def _signatures(
    effects: Effects, context: str | None, imputer: Any, genes: Codes
) -> tuple[list[str], Array, Draw, bool]:
    """Drugs, their mean signatures ``[A, g]``, a function that draws them, and whether draws hold all there is to doubt."""
    names = np.asarray(effects.action_names, dtype=object)
    if imputer is not None:
        if context is None:
            raise ConfigError("an imputer predicts drugs in one context: say which with context=")
        pairs = pd.DataFrame({"context": context, "action": names})
        mean, std = predicted(imputer, pairs)
        mean, std = mean[:, genes], None if std is None else np.broadcast_to(std, mean.shape)[:, genes]
        if not np.isfinite(mean).all() or (std is not None and not np.isfinite(std).all()):
            raise DataError(f"{type(imputer).__name__} predicts values that are not finite in context {context!r}")
        if std is None:
            return list(names), mean, lambda rng: mean, False
        return list(names), mean, lambda rng: mean + std * rng.standard_normal(mean.shape), True
    if context is not None:
        place = effects.codes(pd.DataFrame({"context": [context], "action": [names[0]]}))[0][0]
        there = np.flatnonzero(effects.context == place)
        if not len(there):
            raise DataError(
                f"no drug was measured in context {context!r}: give a fitted imputer= to transport effects to it"
            )
        x = effects.x[there][:, genes]
        return list(names[effects.action[there]]), x, lambda rng: x, False
    if not effects.m:
        raise DataError("effects hold no measured pair: there is no drug to rank")
    seen, drug = np.unique(effects.action, return_inverse=True)
    x = np.ascontiguousarray(effects.x[:, genes])

    def average(weight: Array) -> Array:
        weight = weight / np.bincount(drug, weight)[drug]
        return sparse.csr_array((weight, (drug, np.arange(len(drug)))), shape=(len(seen), len(drug))) @ x

    return list(names[seen]), average(np.ones(len(x))), lambda rng: average(rng.exponential(size=len(x))), False


def _correlation(x: Array, y: Array, w: Array, *, centred: bool) -> Array:
    """Weighted correlation of each row of ``x [A, g]`` with ``y [g]``; 0 where a row is constant."""
    w = w / w.sum()
    told = np.ptp(x, axis=1) > 0 if centred else x.any(1)
    if centred:
        x, y = x - (x @ w)[:, None], y - y @ w
    norm = np.sqrt((x * x) @ w * (y * y @ w))
    return np.divide(x @ (w * y), norm, out=np.zeros(len(x)), where=told & (norm > 0))
