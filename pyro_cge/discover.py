"""A causal graph from a file, and everything needed to use and to judge it in one folder.

::

    graph.graphml, edges.csv    the graph found, with weights; whether data tell each edge's direction
    essential.graphml           what data can tell: both ways where the direction is open
    targets.csv                 environment × gene: which environment acts on which gene
    graph.png, targets.png      drawings of both; of many genes, those of the strongest edges and those most often targeted
    manifest.json               settings, versions, hashes of the files read, score, processor seconds
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd

from .config import DiscoverConfig
from .data.anndata import read_h5ad
from .data.files import first_line, read_frame, separator, sha256
from .data.tables import read_table
from .discovery import Knowledge, LargeOrderSearch, OrderSearch, edge_table, samples, write_graph
from .discovery.inputs import Samples
from .errors import ConfigError, DataError
from .train.checkpoint import write_atomically, write_json

PACKAGES = ("pyro-cge", "numba", "numpy", "networkx", "pandas", "anndata")
MANY = 500  # genes from which on, in one environment, the search for thousands of genes is used
DRAWN = 60  # genes in a drawing


def discover(
    config: DiscoverConfig,
    data: Path,
    out: Path,
    *,
    env_key: str | None = None,
    control: str | None = None,
    layer: str | None = None,
    known_edges: Path | None = None,
    tiers: Path | None = None,
    known_targets: Path | None = None,
    progress: bool | None = None,
) -> OrderSearch | LargeOrderSearch:
    """Search the graph of a data file and write the folder described above; the manifest is written last.

    Parameters
    ----------
    data : path
        An .h5ad file, or a CSV or TSV table with a row a profile.
    env_key : str, optional
        What makes an environment: a column of ``obs``, or of the table. Without it all profiles are observational, but
        for .h5ad files this package wrote, which say it themselves.
    control : str, optional
        The unperturbed environment.
    layer : str, optional
        Of the .h5ad file, instead of its ``X``.
    known_edges : path, optional
        CSV table with columns ``cause``, ``effect`` and ``kind`` (``forbidden`` or ``required``).
    tiers : path, optional
        CSV table with columns ``gene`` and ``tier``, a number: genes never act on those of a lower tier.
    known_targets : path, optional
        CSV table with columns ``environment`` and ``gene``; the targets of environments not in it are inferred.
    progress : bool, optional
        A bar over restarts; by default where standard error is a terminal.

    Raises
    ------
    ConfigError, DataError
        For files that cannot be read, data no graph can be estimated from, prior knowledge that contradicts itself.
    """
    knowledge = read_knowledge(known_edges, tiers)
    targets = None if known_targets is None else read_targets(known_targets)
    profiles = samples(read_profiles(data, env_key, layer), control=control)
    started = time.process_time()
    search = search_for(config, profiles, knowledge, progress)
    found: OrderSearch | LargeOrderSearch
    if isinstance(search, OrderSearch):
        found = search.fit(profiles, targets=targets)
    elif targets:
        raise ConfigError("the search for thousands of genes takes one environment: it has no use for known targets")
    else:
        found = search.fit(profiles)
    seconds = time.process_time() - started
    _write(found, out)
    write_json(
        out / "manifest.json",
        {
            "settings": config.model_dump(),
            "search": type(found).__name__,
            "env_key": env_key,
            "layer": layer,
            "control": found.environments_[0] if len(found.environments_) > 1 else None,
            "data": _hash(data),
            "known_edges": _hash(known_edges),
            "tiers": _hash(tiers),
            "known_targets": _hash(known_targets),
            "environments": found.environments_,
            "order": found.order_,
            "score_nats": found.score_,
            "processor_seconds": round(seconds, 3),
            "versions": {name: version(name) for name in PACKAGES},
        },
    )
    return found


def search_for(
    config: DiscoverConfig, data: Samples, knowledge: Knowledge | None = None, progress: bool | None = None
) -> OrderSearch | LargeOrderSearch:
    """The search that suits the data.

    :class:`~pyro_cge.discovery.LargeOrderSearch` takes one environment, has no target penalty, and starts ``restarts`` more
    times. Unless ``config.large`` says otherwise it is used where there are more than 500 genes and one environment.
    """
    alone = len(data.environments) == 1
    given: dict[str, Any] = config.model_dump(exclude={"seed", "large"}, exclude_none=True)
    given |= {"knowledge": knowledge, "random_state": config.seed, "progress": progress}
    if not (alone and data.d > MANY if config.large is None else config.large):
        return OrderSearch(**given)
    del given["target_penalty"]
    if "restarts" in given:
        given["starts"] = given.pop("restarts") + 1
    return LargeOrderSearch(**given)


def read_profiles(path: Path, env_key: str | None, layer: str | None = None) -> Any:
    """What the file holds, as :func:`~pyro_cge.discovery.inputs.samples` takes it."""
    if separator(path) is not None:
        if layer is not None:
            raise ConfigError(f"{path}: a table has no layer {layer!r}; layers are those of .h5ad files")
        if env_key is not None:
            return read_table(path, env_column=env_key)
        table = read_frame(path)
        if str(table.columns[0]).startswith("Unnamed:"):  # profile ids
            table = table.iloc[:, 1:]
        words = [str(name) for name, kind in table.dtypes.items() if kind.kind not in "iuf"]
        if words:
            raise DataError(f"{path}: columns that are not numbers: {words[:5]}; name the environment's with --env-key")
        return table
    if env_key is not None and layer is None:
        return read_h5ad(path, env_key=env_key)
    import anndata

    from .data.anndata import from_anndata

    try:
        profiles = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds for a damaged or absent file
        raise DataError(f"{path}: not a readable .h5ad file ({first_line(error)})") from error
    if layer is not None:
        if layer not in profiles.layers:
            raise DataError(f"{path}: no layer {layer!r}; the file has {list(profiles.layers)}")
        profiles.X = profiles.layers[layer]
    if env_key is not None or "pyro_cge" in profiles.uns:
        return from_anndata(profiles, env_key)
    return profiles


def read_knowledge(edges: Path | None, tiers: Path | None = None) -> Knowledge | None:
    """Forbidden and required edges of a CSV table ``cause``, ``effect``, ``kind``; tiers of one with ``gene``, ``tier``."""
    if edges is None and tiers is None:
        return None
    by = {} if edges is None else _known_edges(edges)
    levels = () if tiers is None else _tiers(tiers)
    return Knowledge(forbidden=by.get("forbidden", ()), required=by.get("required", ()), tiers=levels)


def _known_edges(path: Path) -> dict[str, list[tuple[str, str]]]:
    table = _table(path, ("cause", "effect", "kind"))
    wrong = ~table["kind"].isin(["forbidden", "required"])
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(f"{path}, row {row + 2}: kind is {table['kind'][row]!r}, expected forbidden or required")
    return {str(kind): list(zip(part["cause"], part["effect"], strict=True)) for kind, part in table.groupby("kind")}


def _tiers(path: Path) -> list[list[str]]:
    table = _table(path, ("gene", "tier"))
    number = pd.to_numeric(table["tier"], errors="coerce")
    if number.isna().any():
        row = int(number.isna().argmax())
        raise ConfigError(f"{path}, row {row + 2}: tier is {table['tier'][row]!r}, expected a number")
    return [list(part) for _, part in table["gene"].groupby(number)]  # in ascending order


def read_targets(path: Path) -> dict[str, list[str]]:
    """Genes that environments are known to act on, of a CSV table with columns ``environment`` and ``gene``."""
    table = _table(path, ("environment", "gene"))
    return {str(name): list(genes) for name, genes in table.groupby("environment")["gene"]}


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = read_frame(path, dtype=str, keep_default_na=False)
    if absent := [name for name in columns if name not in table]:
        raise ConfigError(f"{path}: no column {absent[0]!r}; expected {', '.join(columns)}")
    return table


def _hash(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"file": path.name, "sha256": sha256(path)}


def summary(found: OrderSearch | LargeOrderSearch) -> str:
    """A few lines for the screen."""
    open_ = sum(found.essential_graph_.has_edge(b, a) for a, b in found.graph_.edges)
    lines = [f"{len(found.genes_):,} genes, {found.graph_.number_of_edges():,} edges, direction open for {open_:,}"]
    if isinstance(found, OrderSearch) and len(found.environments_) > 1:
        rows = found.targets_.iloc[1:]
        named = int(rows.any(axis=1).sum())
        lines.append(
            f"control {found.environments_[0]!r}; {named} of {len(rows)} other environments act on "
            f"{int(rows.any(axis=0).sum())} genes ({int(rows.to_numpy().sum())} targets)"
        )
    strongest = edge_table(found.graph_).head(5)
    lines += [f"  {edge.cause} → {edge.effect}  {edge.weight:+.3g}" for edge in strongest.itertuples()]
    return "\n".join(lines)


def _write(found: OrderSearch | LargeOrderSearch, out: Path) -> None:
    from matplotlib import pyplot as plt

    from . import plots
    from .runs import save_figure

    out.mkdir(parents=True, exist_ok=True)
    write_graph(found.graph_, out / "graph.graphml")
    write_graph(found.essential_graph_, out / "essential.graphml")
    edges = edge_table(found.graph_)
    told = [not found.essential_graph_.has_edge(b, a) for a, b in zip(edges["cause"], edges["effect"], strict=True)]
    write_atomically(out / "edges.csv", edges.assign(directed=told).to_csv(index=False).encode())
    _draw(found.graph_, edges)
    save_figure(out / "graph.png")
    if isinstance(found, OrderSearch) and len(found.environments_) > 1:
        table = found.targets_.rename_axis("environment").astype(int)
        write_atomically(out / "targets.csv", table.to_csv().encode())
        often = found.targets_.sum().sort_values(ascending=False, kind="stable").index[:DRAWN]
        plots.targets(found.targets_[[gene for gene in found.genes_ if gene in set(often)]])
        save_figure(out / "targets.png")
    plt.close("all")


def _draw(graph: nx.DiGraph, edges: pd.DataFrame) -> None:
    """The graph, or where it has too many genes to read those of its strongest edges."""
    from . import plots

    if len(graph) <= DRAWN:
        plots.graph(graph)
        return
    chosen: dict[str, None] = {}  # genes, in order
    for edge in edges.itertuples():
        if len(chosen.keys() | {edge.cause, edge.effect}) > DRAWN:
            break
        chosen |= dict.fromkeys((edge.cause, edge.effect))
    if chosen:
        ax = plots.graph(graph.subgraph(chosen))
        ax.set_title(f"{len(chosen)} of {len(graph):,} genes: those of the strongest edges", fontsize="medium")
    else:
        plots.graph(graph.subgraph(list(graph)[:DRAWN]))
