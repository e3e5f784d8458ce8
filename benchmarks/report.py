"""The results page: ``python benchmarks/report.py`` writes ``README.md`` here from every ``*/figures.json``.

A claim compares one of our figures with the best of some others, by the difference and, where the benchmark measured one,
its 95 % interval. Nothing is typed in: what a benchmark did not measure is not on the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import CLAIMS, Claim

HERE = Path(__file__).parent
PLACES = 3


@dataclass(frozen=True)
class Finding:
    """A claim with its figures read."""

    claim: Claim
    ours: float
    other: str
    theirs: float
    interval: tuple[float, float] | None

    @property
    def gain(self) -> float:
        return self.ours - self.theirs if self.claim.higher else self.theirs - self.ours

    @property
    def verdict(self) -> str:
        low, high = self.interval or (self.gain, self.gain)
        tie = 0.5 * 10**-PLACES
        return "ahead" if low > 0 and self.gain > tie else "behind" if high < 0 and self.gain < -tie else "level"

    def row(self) -> str:
        gain = f"{self.gain:+.{PLACES}f}"
        if self.interval is not None:
            gain += " ({:+.3f} to {:+.3f})".format(*self.interval)
        better = "higher" if self.claim.higher else "lower"
        cells = [
            f"[{self.claim.question}]({self.claim.benchmark}/README.md), {better} is better",
            f"{self.claim.name} **{self.ours:.{PLACES}f}**",
            f"{self.other} {self.theirs:.{PLACES}f}",
            gain,
            self.verdict,
        ]
        return "| " + " | ".join(cells) + " |"


def records() -> dict[str, dict[str, Any]]:
    """What each benchmark last measured in full."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/figures.json"))}


def look(figures: Mapping[str, Any], path: str) -> Any:
    """``figures["a"]["b"]`` for ``"a/b"``; None where there is none."""
    value: Any = figures
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def find(claim: Claim, figures: Mapping[str, Any]) -> Finding | None:
    """The claim against the best of those it names, or None where the benchmark has not measured it."""
    ours = look(figures, claim.ours)
    others = {name: value for name, path in claim.others.items() if (value := look(figures, path)) is not None}
    if ours is None or not others:
        return None
    best = (max if claim.higher else min)(others, key=lambda name: others[name])
    interval = look(figures, claim.interval) if claim.interval else None
    return Finding(claim, float(ours), best, float(others[best]), interval and tuple(interval[-2:]))


def page() -> str:
    """The whole page, as Markdown."""
    measured = records()
    findings = [
        finding
        for claim in CLAIMS
        if claim.benchmark in measured and (finding := find(claim, measured[claim.benchmark]["figures"]))
    ]
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/report.py` from the `figures.json` of each benchmark. Means over seeds; the gain is",
        "signed so that positive is better, with its 95 % interval where the benchmark measured one. Latents are matched to",
        "true causes by the assignment that maximises the sum of |Pearson r|, over interventions seen in training only,",
        "unless a row says otherwise. Each folder's README has the details, the commands and what falls short.",
        "",
    ]
    for title, verdicts in (
        ("Where this suite is ahead", {"ahead"}),
        ("Where it is not: simple models and peers that do as well or better", {"level", "behind"}),
    ):
        chosen = [f for f in findings if f.verdict in verdicts]
        lines += [f"## {title}", "", "| question | ours | best other | gain | |", "|---|---|---|---|---|"]
        lines += [finding.row() for finding in chosen] + [""]
    lines += [
        "## Where the figures come from",
        "",
        "| benchmark | seeds | torch | pyro | commit |",
        "|---|---|---|---|---|",
    ]
    for name, record in measured.items():
        versions = record["versions"]
        cells = [
            f"[{name}]({name}/README.md)",
            str(record["arguments"].get("seeds", "")),
            versions["torch"].split("+")[0],
            versions["pyro-ppl"],
            _commits(record["commit"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _commits(commit: str | Sequence[str]) -> str:
    """The one; of several, the one most is of and how many others."""
    several = [commit] if isinstance(commit, str) else commit
    return several[0][:7] + (f" and {len(several) - 1} more" if len(several) > 1 else "")


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
    print(f"{HERE / 'README.md'}")
