"""Drugs that reverse a disease signature and, with a protein network and single cells, targets upstream of its genes.

::

    drugs.csv, drugs.png            drugs by anticorrelation, with posterior intervals of their ranks
    genes.csv, tree.graphml         disease genes and what connects them in the network      (with --network)
    targets.csv, targets.png        drug targets, most disease genes downstream first        (with --network)
    edges.csv, graph.graphml        causal graph: probabilities of edges; those above one half
    manifest.json                   settings, versions, hashes of the files read, processor seconds
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd

from .config import RankDrugsConfig
from .data.environment import some
from .data.files import read_frame, sha256, whole_folder
from .discovery import edge_table, named_graph, write_graph
from .errors import ConfigError, DataError
from .imputation import (
    NTKGP,
    ActionMean,
    FixedEffects,
    ShrunkMean,
    TargetSearch,
    disease_genes,
    identify_targets,
    protein_network,
    rank_drugs,
)
from .imputation.reading import read_effects
from .train.checkpoint import write_json

PACKAGES = ("pyro-cge", "numba", "numpy", "networkx", "pandas", "scipy")
IMPUTERS = {"ntk-gp": NTKGP, "mean": ActionMean, "shrunk": ShrunkMean, "fixed": FixedEffects}


def rank(
    config: RankDrugsConfig,
    disease: Path,
    effects: Path,
    out: Path,
    *,
    context: str | None = None,
    change: Sequence[str] = ("log2fc",),
    keys: tuple[str, str] = ("context", "action"),
    aliases: Path | None = None,
    network: Path | None = None,
    expression: Path | None = None,
    drug_targets: Path | None = None,
) -> tuple[pd.DataFrame, TargetSearch | None]:
    """Rank drugs, search targets where the files for that are given, and write the folder described above, whole or not.

    Parameters
    ----------
    disease : path
        Table whose first column names genes; ``change`` are its columns of log2 fold changes (several: replicates).
    effects : path
        .h5ad, or table with a row a signature; ``keys`` name the columns of contexts and of actions (drugs). Signatures
        of one pair are averaged.
    aliases : path, optional
        Table of two columns: a gene's name in ``disease`` and in ``effects``.
    network : path, optional
        Table: two proteins, and a column ``cost`` or ``confidence``.
    expression : path
        Table of single cells, genes in columns; a first column without a name holds the cells'.
    drug_targets : path
        Table with columns ``gene`` and ``drug``.

    Raises
    ------
    ConfigError, DataError
    """
    further = {"network": network, "expression": expression, "drug_targets": drug_targets}
    if any(further.values()) and (absent := [name for name, path in further.items() if path is None]):
        raise ConfigError(f"targets need network=, expression= and drug_targets=; missing: {'=, '.join(absent)}=")
    signature = read_signature(disease, change)
    measured = read_effects(effects, *keys)
    names = None if aliases is None else read_frame(aliases)
    started = time.process_time()
    imputer = None
    if config.imputer is not None:
        if context is not None and context not in measured.context_names:  # a context in which nothing was measured
            measured = replace(measured, context_names=(*measured.context_names, context))
        imputer = IMPUTERS[config.imputer]().fit(measured)
    drugs = rank_drugs(
        signature,
        measured,
        context=context,
        imputer=imputer,
        aliases=None if names is None else dict(zip(names.iloc[:, 0], names.iloc[:, 1], strict=True)),
        score=config.score,
        top=config.top,
        draws=config.draws,
        random_state=config.seed,
    )
    if (
        imputer is not None
        and context is not None
        and not (measured.context == measured.context_names.index(context)).any()
    ):
        drugs.attrs["transported"] = context
    drugs.attrs["left out"] = [name for name in measured.action_names if name not in drugs.index]
    found = None
    if network is not None and expression is not None and drug_targets is not None:
        found = _targets(config, signature.mean(axis=1), drugs, network, expression, drug_targets)
    seconds = time.process_time() - started
    files = {"disease": disease, "effects": effects, "aliases": aliases, **further}
    manifest = {
        "settings": config.model_dump(),
        "context": context,
        "change": list(change),
        "genes_compared": drugs.attrs["genes"],
        "drugs_left_out": drugs.attrs["left out"],
        "terminals_not_in_network": None if found is None else found.tree.missing,
        "files": {
            k: None if path is None else {"file": path.name, "sha256": sha256(path)} for k, path in files.items()
        },
        "processor_seconds": round(seconds, 3),
        "versions": {name: version(name) for name in PACKAGES},
    }
    with whole_folder(out) as part:
        _write(drugs, found, part)
        write_json(part / "manifest.json", manifest)
    return drugs, found


def _targets(
    config: RankDrugsConfig, signature: pd.Series, drugs: pd.DataFrame, network: Path, cells: Path, acting: Path
) -> TargetSearch:
    edges = read_frame(network)
    kind = next((name for name in ("cost", "confidence") if name in edges), None)
    if kind is None:
        raise DataError(f"{network}: no column 'cost' or 'confidence'; there are {', '.join(map(str, edges.columns))}")
    interactions = protein_network(edges, **{kind: kind}, hub_penalty=config.hub_penalty)
    there = signature[signature.index.isin(list(interactions))]
    if not len(there):
        raise DataError(f"{network}: none of the {len(signature):,} genes of the disease signature is in the network")
    expression = read_frame(cells)
    if str(expression.columns[0]).startswith("Unnamed:"):
        expression = expression.iloc[:, 1:]
    return identify_targets(
        disease_genes(there, n=min(config.n_genes, int((there != 0).sum()))),
        interactions,
        expression.select_dtypes("number"),
        read_frame(acting),
        drugs=drugs
        if drugs.index.isin(read_frame(acting).get("drug", pd.Series(dtype=str)).astype(str)).any()
        else None,
        omega=config.omega,
        scope=config.scope,
        noise=config.noise,
        draws=config.graphs,
        random_state=config.seed,
    )


def read_signature(path: Path, change: Sequence[str]) -> pd.DataFrame:
    """Log2 fold changes ``[genes, replicates]`` of a table whose first column names the genes."""
    table = read_frame(path)
    if absent := [name for name in change if name not in table.columns[1:]]:
        raise DataError(
            f"{path}: no column {absent[0]!r} of log2 fold changes; there are {some(list(table.columns))}: name one with "
            "change="
        )
    return table.set_index(table.columns[0])[list(change)]


def summary(drugs: pd.DataFrame, found: TargetSearch | None) -> str:
    """A few lines for the screen."""
    lines = [f"{len(drugs):,} drugs by {drugs.attrs['genes']:,} genes; rank with 90 % interval"]
    if without := drugs.attrs.get("left out"):
        lines.append(f"  not measured there and left out (--imputer predicts them): {some(without, 3)}")
    lines += [
        f"  {row.Index}  {row.rank:g} ({row.rank_low:.0f}–{row.rank_high:.0f})" for row in drugs.head(5).itertuples()
    ]
    if drugs.attrs.get("transported"):
        lines.insert(
            1, f"  (nothing was measured in {drugs.attrs['transported']}: what drugs do elsewhere, transported)"
        )
    if found is not None:
        lines.append(f"{len(found.genes):,} genes in the tree; targets by disease genes downstream")
        lines += [f"  {row.Index}  {row.downstream:.2f}  {row.drugs}" for row in found.targets.head(5).itertuples()]
    return "\n".join(lines)


def _write(drugs: pd.DataFrame, found: TargetSearch | None, out: Path) -> None:
    from matplotlib import pyplot as plt

    from . import plots
    from .runs import save_figure

    def draw(table: pd.DataFrame, name: str) -> None:
        table.to_csv(out / f"{name}.csv")
        plots.drug_ranks(table)
        save_figure(out / f"{name}.png")

    draw(drugs, "drugs")
    if found is not None:
        draw(found.targets, "targets")
        found.genes.to_csv(out / "genes.csv")
        nx.write_graphml(found.tree.graph, out / "tree.graphml")
        write_graph(found.graph, out / "graph.graphml")
        share: Any = found.graphs.probabilities.to_numpy()
        edge_table(named_graph(share, found.graphs.genes, probability=share)).to_csv(out / "edges.csv", index=False)
    plt.close("all")
