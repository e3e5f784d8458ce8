"""Figures of the rows: what ``figures.json`` holds, from nothing but the files of ``rows/``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rows

from pyro_cge.metrics import EdgeCalibration, edge_calibration

Figures = dict[str, Any]
GRAPHS = {"utigsp_dag18": "18 edges, UT-IGSP's", "cdt18": "18 edges, `cdt18`", "cmu20": "20 edges, `cmu20`"}
ENOUGH = 30  # pairs in a bin


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The table of each section that has rows; those without an answer have ``failed``."""
    tables = {name: pd.DataFrame(rows.read(folder / f"{name}.jsonl")) for name in SECTIONS}
    return {name: table.assign(failed=table.get("failed")) for name, table in tables.items() if len(table)}


def derive(tables: dict[str, pd.DataFrame]) -> Figures:
    figures: Figures = {}
    for name, table in tables.items():
        figures |= SECTIONS[name](table)
    return figures


def seeds(tables: dict[str, pd.DataFrame]) -> int:
    """Fresh problems a law."""
    fresh = tables["unknown"].query("group.str.contains('fresh')") if "unknown" in tables else pd.DataFrame()
    return max(1, int(fresh.groupby("group")["seed"].nunique().max())) if len(fresh) else 1


def by_contender(table: pd.DataFrame, column: str) -> dict[str, float]:
    """Means, of those that have any."""
    return _means(table.groupby("contender")[column].mean()) if column in table else {}


def by_group(table: pd.DataFrame, column: str) -> dict[str, float]:
    return _means(table.groupby("group")[column].mean())


def _means(means: pd.Series) -> dict[str, float]:
    return {str(name): round(float(mean), 3) for name, mean in means.dropna().items()}


def groups(table: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Means of each group by contender."""
    return {str(group): by_contender(part, column) for group, part in table.groupby("group")}


def unknown(table: pd.DataFrame) -> Figures:
    own = table[table["contender"] == "OrderSearch"]
    return {
        "unknown_target_shd": by_group(own, "shd"),
        "unknown_target_essential": by_group(own, "essential"),
        "unknown_target_cpu_s": by_group(own, "cpu_s"),
        "target_precision": round(float(own["target_precision"].mean()), 4),
        "target_recall": round(float(own["target_recall"].mean()), 4),
        "unknown_target_shd_by_contender": groups(table, "shd"),
        "unknown_target_essential_by_contender": groups(table, "essential"),
        "targets_by_contender": {name: by_contender(table, name) for name in ("target_precision", "target_recall")},
    }


def misspecified(table: pd.DataFrame) -> Figures:
    shd = groups(table, "shd")
    peer = {
        what: row["OrderSearch"] / row["UtIgsp"]
        for what, row in shd.items()
        if row.get("UtIgsp") and "OrderSearch" in row
    }
    named = [groups(table, name) if name in table else {} for name in ("target_precision", "target_recall")]
    return {
        "misspecified_shd": shd,
        "misspecified_over_ut_igsp": {what: round(ratio, 3) for what, ratio in peer.items()},
        "misspecified_targets": {what: [part.get(what, {}).get("OrderSearch") for part in named] for what in shd},
    }


def observational(table: pd.DataFrame) -> Figures:
    found = {name: groups(table, name) for name in ("shd", "essential", "cpu_s")}
    return {
        **{
            f"std_{law.lower()}_d100_{name}": values[f"{law} d100 standardised"]["OrderSearch"]
            for law in ("ER2", "ER4", "SF4")
            for name, values in found.items()
            if "OrderSearch" in values.get(f"{law} d100 standardised", {})
        },
        **{f"observational_{name}": values for name, values in found.items()},
    }


def rescaling(table: pd.DataFrame) -> Figures:
    return {
        "rescaled_distance": int(table["distance"].max()),
        "rescaled_weights_off": float(f"{table['weights_off'].max():.2g}"),
    }


def calibrations(table: pd.DataFrame) -> dict[str, EdgeCalibration]:
    """By law of the weights."""
    found = {}
    for law, part in table.groupby("law"):
        p, truth = np.array(part["p"].tolist()), np.zeros((len(part), 10, 10), dtype=np.int64)
        for graph, edges in zip(truth, part["edges"], strict=True):
            graph[tuple(np.transpose(edges))] = 1
        found[str(law)] = edge_calibration(p, truth)
    return found


def bins(one: EdgeCalibration) -> pd.DataFrame:
    """The bins, with how far shares are from probabilities, and the binomial standard error of the share."""
    table = one.table
    spread = np.sqrt(table["probability"] * (1 - table["probability"]) / table["n"])
    return table.assign(off=table["share"] - table["probability"], se=spread)


def calibration(table: pd.DataFrame) -> Figures:
    found = calibrations(table)
    largest = {}
    for law, one in found.items():
        enough = bins(one).query("n >= @ENOUGH")
        largest[law] = enough.loc[enough["off"].abs().idxmax()]
    return {
        "edge_calibration_error": round(max(one.error for one in found.values()), 4),
        "edge_calibration_error_by_law": {law: round(one.error, 4) for law, one in found.items()},
        "edge_calibration_largest": {law: round(abs(float(row["off"])), 4) for law, row in largest.items()},
        "edge_calibration_largest_bin": {
            law: {name: round(float(row[name]), 4) for name in ("low", "high", "probability", "share", "n", "se")}
            for law, row in largest.items()
        },
        "edge_calibration_excess": {law: round(one.excess, 4) for law, one in found.items()},
        "edge_calibration_cpu_s": round(float(table["cpu_s"].mean()), 2),
    }


def real(table: pd.DataFrame) -> Figures:
    parts = {name: part.dropna(axis=1, how="all") for name, part in table.groupby("data")}
    each = {"sachs": sachs, "dream4": dream4, "dixit": dixit}
    return {key: figure for name, part in parts.items() for key, figure in each[str(name)](part).items()}


def sachs(table: pd.DataFrame) -> Figures:
    by_contender: dict[str, dict[str, list[int]]] = {}
    by_scale: dict[str, list[int]] = {}
    for (cells, scale, who), row in table.set_index(["set", "scale", "contender"]).iterrows():
        if row.notna()[f"state {next(iter(GRAPHS))}"]:
            states = [int(row[f"state {name}"]) for name in GRAPHS]
            if scale == "log":
                by_contender.setdefault(cells, {})[who] = states
            if who == "OrderSearch":
                by_scale[f"{cells}, {scale}"] = states
    return {
        "sachs_shd": {
            cells: dict(zip(GRAPHS, found["OrderSearch"], strict=True))
            for cells, found in by_contender.items()
            if "OrderSearch" in found
        },
        "sachs_shd_by_contender": by_contender,
        "sachs_shd_by_scale": by_scale,
    }


KEYS = ("data", "size", "network", "knock-out", "seed", "limit", "commit", "hardware")


def dream4(table: pd.DataFrame) -> Figures:
    names = [name for name in table if name not in KEYS]
    return {
        "dream4_aupr": {
            f"size {size:.0f} network {number:.0f}": round(float(ours), 3)
            for size, number, ours in zip(table["size"], table["network"], table["ours"], strict=True)
        },
        "dream4_aupr_by_contender": {
            f"size {size:.0f}": {name: part.sort_values("network")[name].round(3).tolist() for name in names}
            for size, part in table.groupby("size")
        },
    }


def dixit(table: pd.DataFrame) -> Figures:
    kinds = [name.removeprefix("mse ") for name in table if name.startswith("mse ")]
    return {
        "dixit": {
            kind: {
                "r": round(float(table[f"r {kind}"].mean()), 3),
                "mse_over_no_effect": round(float((table[f"mse {kind}"] / table["mse no effect"]).mean()), 3),
            }
            for kind in kinds
        },
        "dixit_r_of_halves": round(float(table["r of halves"].mean()), 3),
    }


SECTIONS: dict[str, Callable[[pd.DataFrame], Figures]] = {
    "unknown": unknown,
    "misspecified": misspecified,
    "observational": observational,
    "rescaling": rescaling,
    "calibration": calibration,
    "real": real,
}
