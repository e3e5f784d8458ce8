"""What the ``convert.py`` of several benchmarks share: the arrays, their obs table, and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import pyro_cge as cge


def read(source: Path, **options: Any) -> tuple[torch.Tensor, list[str], pd.DataFrame]:
    """``X`` and ``gene`` of ``NAME.npz``, and ``NAME_obs.csv.gz`` beside it (``options`` go to pandas)."""
    with np.load(source, allow_pickle=False) as arrays:
        x, genes = torch.from_numpy(arrays["X"].astype(np.float32)), [str(name) for name in arrays["gene"]]
    return x, genes, pd.read_csv(source.with_name(source.stem + "_obs.csv.gz"), **options)


def command(convert: Callable[[Path], cge.EnvironmentData], usage: str | None) -> None:
    """``python convert.py NAME.npz OUT.h5ad``."""
    if len(sys.argv) != 3:
        sys.exit(usage)
    data = convert(Path(sys.argv[1]))
    cge.write_h5ad(data, Path(sys.argv[2]))
    print(data)
