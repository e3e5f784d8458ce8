"""``Effects`` of a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..data.environment import some
from ..data.files import first_line, read_frame, separator
from ..errors import DataError
from .effects import Effects


def read_effects(path: str | Path, context: str, action: str) -> Effects:
    """Signatures of an .h5ad file or a table, a row each; those of one pair are averaged.

    Parameters
    ----------
    path : path
        A ``.csv``, ``.tsv`` or ``.txt`` table (compressed or not) whose other columns of numbers are genes, or ``.h5ad``.
    context, action : str
        Columns (of ``obs``) that name contexts and actions.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or holds no gene, and as :class:`~pyro_cge.imputation.Effects`.
    """
    import anndata

    path = Path(path)
    if separator(path) is not None:
        table = read_frame(path)
        _check_keys(path, table, context, action)
        numbers = table.drop(columns=[context, action]).select_dtypes("number")
        numbers = numbers[[name for name in numbers if not str(name).startswith("Unnamed:")]]
        if not numbers.shape[1]:
            raise DataError(f"{path}: no column of numbers beside {context!r} and {action!r}: there is no gene")
        obs = table[[context, action]].astype(str).set_axis(table.index.astype(str), axis=0)
        var = pd.DataFrame(index=numbers.columns.astype(str))
        adata = anndata.AnnData(numbers.to_numpy(dtype=float), obs=obs, var=var)
    else:
        try:
            adata = anndata.read_h5ad(path)
        except Exception as error:  # h5py and anndata raise many kinds for a damaged or absent file
            raise DataError(f"{path}: not a readable .h5ad file ({first_line(error)})") from error
        _check_keys(path, adata.obs, context, action)
    return Effects.from_anndata(adata, context=context, action=action, replicates="mean")


def _check_keys(path: Path, table: pd.DataFrame, *keys: str) -> None:
    if absent := [name for name in keys if name not in table]:
        raise DataError(
            f"{path}: no column {absent[0]!r}; there are {some(list(table.columns))}: name those of contexts and of actions "
            "with keys="
        )
