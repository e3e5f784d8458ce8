"""The tables of the README, from the rows: each stands between ``<!-- name -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import figures
import pandas as pd
import rows

Tables = dict[str, pd.DataFrame]
UNKNOWN = (
    "empty graph",
    "variance order",
    "R² order",
    "GES, pooled (causal-learn)",
    "GIES, told the targets",
    "FLOP, control only",
    "FLOP, pooled",
    "Igsp, told the targets",
    "UtIgsp",
    "OrderSearch, control only",
    "OrderSearch",
    "OrderSearch, no restarts",
    "OrderSearch, told the targets",
)
OBSERVATIONAL = (
    "empty graph",
    "variance order",
    "R² order",
    "DirectLiNGAM",
    "DAGMA",
    "PC (causal-learn)",
    "GES (causal-learn)",
    "GRaSP (causal-learn)",
    "BOSS (causal-learn)",
    "FLOP",
    "OrderSearch",
)
MISSPECIFIED = {
    "empty graph": "no edges",
    "variance order": "variance order",
    "FLOP, pooled": "FLOP, pooled",
    "Igsp, told the targets": "IGSP, told",
    "UtIgsp": "UT-IGSP",
    "OrderSearch": "**OrderSearch**",
    "OrderSearch, no restarts": "no restarts",
}


def filled(text: str, measured: Tables) -> str:
    """``text`` with each table that there are rows for made anew."""
    for name, (section, table) in TABLES.items():
        part = measured.get(section, pd.DataFrame())
        if section == "real" and len(part):
            part = part[part["data"] == name.split()[0]]
        if len(part):
            made = table(part)
            text = re.sub(rf"(?s)<!-- {name} -->\n.*?<!-- end -->", f"<!-- {name} -->\n{made}\n<!-- end -->", text)
    made = origin(measured)
    return re.sub(r"(?s)<!-- origin -->\n.*?<!-- end -->", f"<!-- origin -->\n{made}\n<!-- end -->", text)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def number(value: float, places: int = 1) -> str:
    """Without decimals where it is whole."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.{places}f}"


def cell(table: pd.DataFrame, shown: Callable[[pd.DataFrame], str], **where: object) -> str:
    """What ``shown`` says of the rows of a contender that have an answer; † where not all problems have one."""
    for name, value in where.items():
        if name != "contender":
            table = table[table[name] == value]
    part = table[table["contender"] == where["contender"]]
    slow, answered = part[part["failed"] == rows.TOO_SLOW], part[part["failed"].isna()]
    if len(answered):
        return shown(answered) + ("†" if len(answered) < table["problem"].nunique() else "")
    return f"> {slow['limit'].max():.0f} s" if len(slow) else "failed" if len(part) else "–"


def unknown(table: pd.DataFrame) -> str:
    table = table.assign(group=table["group"].str.removesuffix(", fresh"))
    groups = [f"{law} d20 {style}" for law in ("ER2", "SF4", "ER4") for style in ("soft", "hard")] + ["ER2 d50 soft"]

    def distances(part: pd.DataFrame) -> str:
        return f"{number(part['shd'].mean())}, {number(part['essential'].mean())}"

    lines = [[who, *(cell(table, distances, contender=who, group=group) for group in groups)] for who in UNKNOWN]
    return markdown(["SHD, and of the equivalence class", *groups], lines)


def seconds(table: pd.DataFrame) -> str:
    lines = []
    for who in UNKNOWN[3:]:
        used = [cell(table, lambda part: f"{part['cpu_s'].mean():.2f}", contender=who, d=d) for d in (20, 50)]
        lines.append([who, *used, *(targets(table[(table["contender"] == who) & (table["d"] == d)]) for d in (20, 50))])
    return markdown(["", "CPU s, d = 20", "d = 50", "targets (precision, recall), d = 20", "d = 50"], lines)


def targets(part: pd.DataFrame, places: int = 3) -> str:
    """Precision and recall; empty for methods that name none."""
    found = part.reindex(columns=["target_precision", "target_recall"]).mean()
    return "" if found.isna().any() else ", ".join(f"{value:.{places}f}" for value in found)


def misspecified(table: pd.DataFrame) -> str:
    lines = []
    for group, part in table.groupby("group", sort=False):
        shd = [cell(part, lambda found: number(found["shd"].mean()), contender=who) for who in MISSPECIFIED]
        named = [targets(part[part["contender"] == who], 2) for who in ("UtIgsp", "OrderSearch")]
        lines.append([str(group), *shd, *named])
    return markdown(["SHD", *MISSPECIFIED.values(), "targets: UT-IGSP", "**OrderSearch**"], lines)


def observational(table: pd.DataFrame) -> str:
    def distance(part: pd.DataFrame) -> str:
        return f"{number(part['shd'].mean())} ({part['cpu_s'].mean():.1f})"

    lines = []
    for scale in ("standardised", "raw"):
        for law in ("ER2", "ER4", "SF4"):
            for group in (f"{law} d{d} {scale}" for d in (20, 50, 100, 200)):
                found = [cell(table, distance, contender=who, group=group) for who in OBSERVATIONAL]
                lines.append([group, *found])
    return markdown(["SHD (CPU s)", *(who.removesuffix(" (causal-learn)") for who in OBSERVATIONAL)], lines)


def calibration(table: pd.DataFrame) -> str:
    found = {law: figures.bins(one) for law, one in figures.calibrations(table).items()}
    head = ["given"]
    for law in found:
        head += [f"{law}: mean p", "share of edges (difference)", "pairs", "standard error"]
    lines = []
    for low in sorted({low for one in found.values() for low in one["low"]}):
        line = [f"{low:.1f}–{low + 0.1:.1f}"]
        for one in found.values():
            here = one[one["low"] == low]
            for p, share, off, n, se in here[["probability", "share", "off", "n", "se"]].itertuples(index=False):
                line += [f"{p:.3f}", f"{share:.3f} ({off:+.3f})", f"{n}", f"{se:.3f}"]
            line += [""] * (4 if here.empty else 0)
        lines.append(line)
    return markdown(head, lines)


def sachs(cells: str, contenders: Sequence[str]) -> Callable[[pd.DataFrame], str]:
    def made(table: pd.DataFrame) -> str:
        table = table[(table["set"] == cells) & (table["scale"] == "log")]
        lines = []
        for who in contenders:
            part = table[(table["contender"] == who) & table["failed"].isna()]
            for _, row in part.iterrows():
                states = [f"{row[f'state {name}']:.0f} ({row[f'correct {name}']:.0f})" for name in figures.GRAPHS]
                lines.append([who, f"{row['edges']:.0f}", *states])
        return markdown([cells, "edges", *figures.GRAPHS.values()], lines)

    return made


def dream4(table: pd.DataFrame) -> str:
    found = figures.real(table)["dream4_aupr_by_contender"]
    sizes = list(found)
    lines = [[who, *(", ".join(f"{v:.3f}" for v in found[size][who]) for size in sizes)] for who in found[sizes[0]]]
    return markdown(["average precision", *(f"{size}: 1, 2, 3" for size in sizes)], lines)


def dixit(table: pd.DataFrame) -> str:
    found = figures.real(table)["dixit"]
    lines = [[kind, f"{row['r']:.2f}", f"{row['mse_over_no_effect']:.2f}"] for kind, row in found.items()]
    return markdown(["held-out knock-outs", "r", "MSE over that of no effect"], lines)


def origin(measured: Tables) -> str:
    """How many rows of each section were measured at which commit, on what."""
    lines = []
    for section, table in measured.items():
        machines = table["hardware"].map(lambda one: "{machine}, {cores} cores, Python {python}".format(**one))
        for (commit, machine), part in table.groupby([table["commit"].str[:7], machines], sort=False):
            limits = ", ".join(f"{limit:.0f}" for limit in sorted(part["limit"].unique()))
            who = sorted(part["contender"].dropna().unique()) if "contender" in part else []
            lines.append([section, commit, machine, limits, f"{len(part)}", f"{len(who)}" if who else ""])
    return markdown(["section", "commit", "machine", "limit (CPU s)", "rows", "contenders"], lines)


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], str]]] = {
    "unknown": ("unknown", unknown),
    "seconds": ("unknown", seconds),
    "misspecified": ("misspecified", misspecified),
    "observational": ("observational", observational),
    "calibration": ("calibration", calibration),
    "sachs 5,846": ("real", sachs("5,846 cells", [*UNKNOWN[:10], *UNKNOWN[12:], "OrderSearch"])),
    "sachs 853": ("real", sachs("853 cells", OBSERVATIONAL)),
    "dream4": ("real", dream4),
    "dixit": ("real", dixit),
}
