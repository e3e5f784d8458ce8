"""A causal graph from a file, and everything needed to use and to judge it in one folder.

::

    graph.graphml, edges.csv    the graph found, with weights; whether data tell each edge's direction
    essential.graphml           what data can tell: both ways where the direction is open
    targets.csv                 environment × gene: which environment acts on which gene
    graph.png, targets.png      drawings of both
    manifest.json               settings, versions, hashes of the files read, score, processor seconds
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from .data.anndata import read_h5ad
from .data.files import sha256
from .data.tables import read_table
from .discovery import Knowledge, OrderSearch, edge_table, write_graph
from .errors import ConfigError, DataError
from .train.checkpoint import write_atomically, write_json

PACKAGES = ("pyro-cge", "numba", "numpy", "networkx", "pandas", "anndata")


class DiscoverConfig(BaseModel):
    """Settings of :class:`~pyro_cge.discovery.OrderSearch`; ``seed`` is its ``random_state``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    penalty: float = Field(default=2.0, gt=0)
    target_penalty: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=0.0, ge=0)
    restarts: int | None = Field(default=None, ge=0)
    max_parents: int | None = Field(default=None, ge=1)
    seed: int = 0


def discover(
    config: DiscoverConfig,
    data: Path,
    out: Path,
    *,
    env_key: str | None = None,
    control: str | None = None,
    known_edges: Path | None = None,
    known_targets: Path | None = None,
    progress: bool | None = None,
) -> OrderSearch:
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
    known_edges : path, optional
        CSV table with columns ``cause``, ``effect`` and ``kind`` (``forbidden`` or ``required``).
    known_targets : path, optional
        CSV table with columns ``environment`` and ``gene``; the targets of environments not in it are inferred.
    progress : bool, optional
        A bar over restarts; by default where standard error is a terminal.

    Raises
    ------
    ConfigError, DataError
        For files that cannot be read, data no graph can be estimated from, prior knowledge that contradicts itself.
    """
    knowledge = None if known_edges is None else read_knowledge(known_edges)
    targets = None if known_targets is None else read_targets(known_targets)
    profiles = read_profiles(data, env_key)
    started = time.process_time()
    options = config.model_dump(exclude={"seed"})
    search = OrderSearch(**options, knowledge=knowledge, random_state=config.seed, progress=progress)
    found = search.fit(profiles, control=control, targets=targets)
    seconds = time.process_time() - started
    _write(found, out)
    write_json(
        out / "manifest.json",
        {
            "settings": config.model_dump(),
            "env_key": env_key,
            "control": found.environments_[0] if len(found.environments_) > 1 else None,
            "data": _hash(data),
            "known_edges": _hash(known_edges),
            "known_targets": _hash(known_targets),
            "environments": found.environments_,
            "order": found.order_,
            "score_nats": found.score_,
            "processor_seconds": round(seconds, 3),
            "versions": {name: version(name) for name in PACKAGES},
        },
    )
    return found


def read_profiles(path: Path, env_key: str | None) -> Any:
    """What the file holds, as :meth:`OrderSearch.fit` takes it."""
    if {".csv", ".tsv", ".txt"} & set(path.suffixes):
        if env_key is not None:
            return read_table(path, env_column=env_key)
        try:
            table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable table ({error})") from error
        if str(table.columns[0]).startswith("Unnamed:"):  # profile ids
            table = table.iloc[:, 1:]
        words = [str(name) for name, kind in table.dtypes.items() if kind.kind not in "iuf"]
        if words:
            raise DataError(f"{path}: columns that are not numbers: {words[:5]}; name the environment's with --env-key")
        return table
    if env_key is not None:
        return read_h5ad(path, env_key=env_key)
    import anndata

    from .data.anndata import from_anndata

    try:
        profiles = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds for a damaged or absent file
        raise DataError(f"{path}: not a readable .h5ad file ({str(error).splitlines()[0]})") from error
    return from_anndata(profiles) if "pyro_cge" in profiles.uns else profiles


def read_knowledge(path: Path) -> Knowledge:
    """Forbidden and required edges of a CSV table with columns ``cause``, ``effect``, ``kind``."""
    table = _table(path, ("cause", "effect", "kind"))
    wrong = ~table["kind"].isin(["forbidden", "required"])
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(f"{path}, row {row + 2}: kind is {table['kind'][row]!r}, expected forbidden or required")
    by = {kind: list(zip(part["cause"], part["effect"], strict=True)) for kind, part in table.groupby("kind")}
    return Knowledge(forbidden=by.get("forbidden", ()), required=by.get("required", ()))


def read_targets(path: Path) -> dict[str, list[str]]:
    """Genes that environments are known to act on, of a CSV table with columns ``environment`` and ``gene``."""
    table = _table(path, ("environment", "gene"))
    return {str(name): list(genes) for name, genes in table.groupby("environment")["gene"]}


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable table ({error})") from error
    if absent := [name for name in columns if name not in table]:
        raise ConfigError(f"{path}: no column {absent[0]!r}; expected {', '.join(columns)}")
    return table


def _hash(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"file": path.name, "sha256": sha256(path)}


def summary(found: OrderSearch) -> str:
    """A few lines for the screen."""
    open_ = sum(found.essential_graph_.has_edge(b, a) for a, b in found.graph_.edges)
    lines = [f"{len(found.genes_):,} genes, {found.graph_.number_of_edges():,} edges, direction open for {open_:,}"]
    if len(found.environments_) > 1:
        rows = found.targets_.iloc[1:]
        named = int(rows.any(axis=1).sum())
        lines.append(
            f"control {found.environments_[0]!r}; {named} of {len(rows)} other environments act on "
            f"{int(rows.any(axis=0).sum())} genes ({int(rows.to_numpy().sum())} targets)"
        )
    strongest = edge_table(found.graph_).head(5)
    lines += [f"  {edge.cause} → {edge.effect}  {edge.weight:+.3g}" for edge in strongest.itertuples()]
    return "\n".join(lines)


def _write(found: OrderSearch, out: Path) -> None:
    from matplotlib import pyplot as plt

    from . import plots
    from .runs import save_figure

    out.mkdir(parents=True, exist_ok=True)
    write_graph(found.graph_, out / "graph.graphml")
    write_graph(found.essential_graph_, out / "essential.graphml")
    edges = edge_table(found.graph_)
    told = [not found.essential_graph_.has_edge(b, a) for a, b in zip(edges["cause"], edges["effect"], strict=True)]
    write_atomically(out / "edges.csv", edges.assign(directed=told).to_csv(index=False).encode())
    plots.graph(found.graph_)
    save_figure(out / "graph.png")
    if len(found.environments_) > 1:
        table = found.targets_.rename_axis("environment").astype(int)
        write_atomically(out / "targets.csv", table.to_csv().encode())
        plots.targets(found.targets_)
        save_figure(out / "targets.png")
    plt.close("all")
