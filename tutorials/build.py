"""Execute every ``*.py`` percent script here and write the notebook beside it: ``python tutorials/build.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
MEGABYTE = 1_000_000


def execute(script: Path) -> nbformat.NotebookNode:
    """The executed notebook of a percent script."""
    notebook = jupytext.read(script)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    # Ids and times change from run to run and say nothing.
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"].pop("execution", None)
    return notebook


def main() -> None:
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        content = nbformat.writes(execute(script))
        if len(content) > MEGABYTE:
            sys.exit(f"{script.stem}.ipynb would have {len(content):,} bytes: keep tutorials below one megabyte")
        script.with_suffix(".ipynb").write_text(content + "\n")
        print(f"{script.stem}.ipynb: {len(content):,} bytes")


if __name__ == "__main__":
    main()
