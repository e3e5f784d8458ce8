"""Results kept one by one, so that an interruption loses none of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

Job = tuple[dict[str, Any], Callable[[], list[dict[str, Any]]]]


def collect(jobs: Iterable[Job], folder: Path, resume: bool) -> pd.DataFrame:
    """Run each job ``(key, function)`` whose file is not there yet; all records as one table, with the keys as columns.

    Without ``resume`` the folder is emptied first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for path in folder.glob("*.json"):
            path.unlink()
    for key, job in jobs:
        path = folder / ("_".join(f"{v}".replace(" ", "-") for v in key.values()) + ".json")
        if path.exists():
            continue
        started = time.perf_counter()
        records = [{**key, **record} for record in job()]
        path.write_text(json.dumps(records) + "\n")
        print(f"  {path.stem:<50} {time.perf_counter() - started:5.1f} s", flush=True)
    return pd.DataFrame([r for path in sorted(folder.glob("*.json")) for r in json.loads(path.read_text())])
