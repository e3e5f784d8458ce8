"""The house: imports point one way, importing changes nothing, the command line answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_cge

PACKAGE = Path(pyro_cge.__file__).parent
# A module may import from its own layer or from one to its left.
LAYERS = [
    ("errors", "seeds", "folders"),
    ("sites",),
    ("arviz_export",),
    ("scm",),
    ("data",),
    ("discovery",),
    ("models",),
    ("guides",),
    ("presets", "simulate"),
    ("objectives",),
    ("interventions",),
    ("posterior",),
    ("metrics", "interpret"),
    ("train",),
    ("imputation",),
    ("plots",),
    ("config",),
    ("runs",),
    ("discover", "rank_drugs", "tune", "report"),
    ("impute",),
    ("demo",),
    ("cli",),
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path):
    """Modules of this package that a file imports when it is run (not those only for type checking)."""
    here = ["pyro_cge", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = here if path.name == "__init__.py" else here[:-1]
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            base = package[: len(package) - node.level + 1]
            target = base + (node.module.split(".") if node.module else [])
            if len(target) == 1:
                yield from (".".join([*target, alias.name]) for alias in node.names if alias.name != "__version__")
            else:
                yield ".".join(target)


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "__init__.py":
            continue
        own = part_of(".".join(["pyro_cge", *path.relative_to(PACKAGE).with_suffix("").parts]))
        assert own in RANK, f"{own} has no layer: add it to LAYERS"
        wrong += [f"{path.name} imports {m}" for m in imports(path) if RANK[part_of(m)] > RANK[own]]
    assert not wrong


def test_modules_stay_below_400_lines():
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_every_public_name_loads():
    for name in pyro_cge.__all__:
        assert getattr(pyro_cge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pyro_cge.nothing


def test_importing_changes_no_global_setting():
    code = """
import torch, pyro, numpy as np
import pyro.distributions as dist
def state():
    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().sum().item(),
            np.random.get_state()[1].sum(), torch.distributions.Distribution._validate_args,
            sorted(pyro.settings.get().items(), key=str), list(pyro.get_param_store().keys()))
import matplotlib
matplotlib.use("Agg")
params = dict(matplotlib.rcParams)
before = state()
import pyro_cge
for name in pyro_cge.__all__:
    getattr(pyro_cge, name)
assert state() == before
assert dict(matplotlib.rcParams) == params
"""
    subprocess.run([sys.executable, "-W", "error", "-W", "ignore::FutureWarning", "-c", code], check=True)


def test_help_loads_nothing_heavy():
    code = """
import sys
from typer.testing import CliRunner
from pyro_cge.cli import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "demo" in result.output
heavy = {"torch", "pyro", "pandas", "numpy", "matplotlib", "arviz", "anndata"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
