"""What every benchmark shares: options, the JSON record, and the closing line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "pyro-ppl", "numpy", "pandas", "scikit-learn")


def options(description: str, *, seeds: int, data: bool = False) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute on two cores")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds (default {seeds})")
    parser.add_argument("--out", type=Path, default=None, help="folder for figures.json (default: results/ here)")
    if data:
        parser.add_argument("--data", type=Path, default=None, help="an .h5ad written by pyro-cge prepare")
    return parser


def finish(
    folder: Path, figures: Mapping[str, Any], arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write ``figures.json`` and print the closing ``figures:`` line.

    A whole run in its usual place also renews the ``figures.json`` beside ``run.py``, which ``report.py`` reads. Figures
    of ``rows`` measured earlier, each with the ``commit`` and ``hardware`` of then, are recorded with those.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "figures": figures,
        "arguments": {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(arguments).items() if k != "out"},
        "versions": {name: version(name) for name in (*PACKAGES, "pyro-cge")},
        **{name: _distinct([row[name] for row in rows] or [here]) for name, here in measured().items()},
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / "figures.json").write_text(text)
    if arguments.out is None and not arguments.quick:
        (folder.parent / "figures.json").write_text(text)
    print(f"figures: {json.dumps(figures)}")


def measured() -> dict[str, Any]:
    """The commit and the machine of what is measured now."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "commit": result.stdout.strip() or "unknown",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def _distinct(values: Sequence[Any]) -> Any:
    """The value where all are the same, else each once, the most frequent first."""
    found = [value for k, value in enumerate(values) if value not in values[:k]]
    return found[0] if len(found) == 1 else sorted(found, key=values.count, reverse=True)
