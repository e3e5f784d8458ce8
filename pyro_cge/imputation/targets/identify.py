"""From a disease signature to ranked drugs and targets, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from ...errors import ConfigError, DataError
from .signatures import checked_signature
from .steiner import SteinerTree, inclusion_frequency, steiner_tree
from .upstream import GraphDraws, causal_graphs, upstream_genes

MOST = 300  # genes of a network whose causal graphs are drawn without asking


@dataclass(frozen=True, eq=False)
class TargetSearch:
    """What :func:`identify_targets` found.

    Attributes
    ----------
    targets : DataFrame
        Drug targets, most disease genes downstream first: the columns of :func:`upstream_genes`, and ``drugs``, the drugs
        that act on it, the best ranked first, with the ``drug_rank`` of that one.
    genes : DataFrame
        Genes of the tree: those of :meth:`SteinerTree.table`, ``log2fc``, ``frequency`` of inclusion when prizes and
        costs are perturbed, and ``expressed``: whether the gene is in the causal graphs.
    drugs : DataFrame or None
        The ranking of drugs that was given.
    tree : SteinerTree
    graphs : GraphDraws
    """

    targets: pd.DataFrame
    genes: pd.DataFrame
    drugs: pd.DataFrame | None
    tree: SteinerTree
    graphs: GraphDraws

    @property
    def graph(self) -> nx.DiGraph:
        """Edges more probable than not, with ``probability``."""
        return self.graphs.graph()


def identify_targets(
    genes: pd.Series,
    network: nx.Graph,
    expression: pd.DataFrame,
    drug_targets: pd.DataFrame,
    *,
    drugs: pd.DataFrame | None = None,
    top: int | None = None,
    omega: float | None = None,
    noise: float = 0.2,
    least_share: float = 0.1,
    restrict: bool = True,
    scope: str | None = None,
    by: str = "downstream",
    draws: int = 200,
    subsamples: int = 0,
    random_state: int = 0,
    **graph_settings: Any,
) -> TargetSearch:
    """Drug targets upstream of a disease's genes::

        disease genes ── prizes ──► Steiner tree on a protein network ──► its genes
        their expression in single cells ──► causal graphs drawn from a posterior
        targets of the drugs ∩ genes of the graphs, by expected number of disease genes downstream

    Parameters
    ----------
    genes : Series gene → log2 fold change
        Of the disease; see :func:`disease_genes`. Prizes are absolute values.
    network : Graph
        With ``cost`` on its edges; see :func:`protein_network`.
    expression : DataFrame ``[n, g]``
        Log expression of cells in one condition; columns are genes, of which those of the tree are used.
    drug_targets : DataFrame
        Columns ``gene`` and ``drug``: what acts on what. Others are left alone.
    drugs : DataFrame, optional
        From :func:`rank_drugs`; names as in ``drug_targets``. With ``top``, only targets of the ``top`` best by ``rank``
        count.
    omega : float, optional
        Of the Steiner forest; see :func:`steiner_tree`.
    noise : float
        Standard deviation of the logarithms of prizes and costs when they are perturbed.
    least_share : float
        Genes above their lowest value in at most this share of cells are left out of the causal graphs.
    restrict : bool
        Only proteins that interact act on each other directly.
    scope : {"tree", "network"}, optional
        Genes of the causal graphs: those of the tree, as in Belyaeva et al., or all of the network. A tree leaves out
        proteins that drive the disease without lying between its genes (``benchmarks/targets``), so by default the
        network is taken where at most 300 of its genes are measured.
    by : {"downstream", "excess"}
        What ranks targets; see :func:`upstream_genes`.
    draws, subsamples, random_state, **graph_settings
        Of :func:`causal_graphs`.

    Raises
    ------
    DataError
        Where a step is left without genes: none in the network, none expressed, no drug target in the tree.
    """
    changes = checked_signature(genes)
    if absent := [name for name in ("gene", "drug") if name not in drug_targets]:
        raise DataError(f"drug_targets has no column {absent[0]!r}; expected gene and drug")
    if top is not None and drugs is None:
        raise ConfigError("top= chooses among ranked drugs: give drugs= as well (see rank_drugs)")
    if scope is None:
        scope = "network" if sum(str(gene) in expression.columns for gene in network) <= MOST else "tree"
    if scope not in ("tree", "network"):
        raise ConfigError(f"scope must be 'tree' or 'network', got {scope!r}")
    tree = steiner_tree(network, changes.abs(), omega=omega)
    frequency = inclusion_frequency(network, changes.abs(), omega=omega, noise=noise, random_state=random_state)
    table = tree.table()
    wanted = list(table.index) if scope == "tree" else [str(gene) for gene in network]
    measured = expression.loc[:, [gene for gene in wanted if gene in expression.columns]]
    share = (measured > measured.min()).mean() if len(measured) else pd.Series(dtype=float)
    seen = measured.loc[:, (share > least_share).to_numpy(dtype=bool)]
    if seen.shape[1] < 2:
        raise DataError(
            f"{seen.shape[1]} of the {scope}'s {len(wanted)} genes are expressed in more than {least_share:.0%} of the {len(expression)} "
            f"cells: use the same gene names ({', '.join(wanted[:3])}, …) and cells of the tissue"
        )
    graphs = causal_graphs(
        seen,
        network=network if restrict else None,
        draws=draws,
        subsamples=subsamples,
        random_state=random_state,
        **graph_settings,
    )
    pairs = drug_targets.astype({"gene": str, "drug": str})[["gene", "drug"]].drop_duplicates()
    if drugs is not None:
        place = drugs["rank"] if top is None else drugs["rank"].nsmallest(top)
        pairs = pairs.assign(drug_rank=pairs["drug"].map(place))
        pairs = pairs[pairs["drug_rank"].notna()].sort_values("drug_rank", kind="stable")
    known = pairs[pairs["gene"].isin(graphs.genes)]
    if not len(known):
        raise DataError(
            f"no gene of the causal graphs ({len(graphs.genes)}) is the target of one of {pairs['drug'].nunique()} drugs"
        )
    targets = upstream_genes(graphs, changes.index[changes != 0].map(str), known["gene"].unique(), by=by)
    by_gene = known.groupby("gene")
    targets["drugs"] = by_gene["drug"].agg(", ".join).reindex(targets.index)
    if drugs is not None:
        targets["drug_rank"] = by_gene["drug_rank"].first().reindex(targets.index)
    table["log2fc"] = changes.set_axis(changes.index.map(str)).reindex(table.index)
    table["frequency"] = frequency.reindex(table.index, fill_value=0.0)
    table["expressed"] = np.isin(table.index, graphs.genes)
    return TargetSearch(targets, table, drugs, tree, graphs)
