"""The paper's figures, one sub-command each: ``run.py independent two_environments network …``; all of them by default.

Each sub-command keeps its rows as small JSONs in ``OUT/<sub-command>`` (``--resume`` skips those already there) and its
plots in ``OUT``. The figures of every sub-command run so far are put together in ``OUT/figures.json``.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

HERE = Path(__file__).parent
# sub-command: module and function, called with (arguments, out) → figures. Modules are loaded when asked for.
FIGURES = {
    "independent": ("linear", "independent"),  # section 6.1, figures 5 and 6
    "dependent": ("linear", "dependent"),  # 6.2, figures 11 and 12
    "two_environments": ("two_environments", "run"),  # 6.3, figures 13, 14, 7 and 8
    "network": ("network", "run"),  # 6.4, figure 9
    "l1000": ("l1000", "run"),  # 6.5, figure 10
    "trees": ("trees", "run"),  # 4.2
}
NEEDS_DATA = {"l1000"}


def main() -> None:
    parser = options(__doc__ or "", seeds=5, data=True)
    parser.add_argument("figure", nargs="*", choices=[*FIGURES, "all"], default="all", help="which of them (all)")
    parser.add_argument("--resume", action="store_true", help="keep the rows in OUT and add to them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = [arguments.figure] if isinstance(arguments.figure, str) else arguments.figure
    names = [n for n in FIGURES if n in asked or ("all" in asked and (arguments.data or n not in NEEDS_DATA))]
    out = (arguments.out or HERE / "results") / ("quick" if arguments.quick else "")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        module, function = FIGURES[name]
        print(f"\n{name}", flush=True)
        figures = getattr(import_module(module), function)(arguments, out)
        (out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    finish(arguments.out or HERE / "results", together(out), arguments)


def together(out: Path) -> dict[str, Any]:
    """Figures of all sub-commands whose results are in ``out``."""
    figures: dict[str, Any] = {}
    for name in FIGURES:
        if (path := out / f"{name}.json").exists():
            figures |= json.loads(path.read_text())
    return figures


if __name__ == "__main__":
    main()
