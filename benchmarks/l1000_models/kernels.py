"""What is known of environments, as kernels ``[E, E]``: structures, annotations, cell lines, doses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_cge.models.kernels import minmax

FINGERPRINTS = ("morgan", "features", "atom pairs", "paths")
SHARPNESS = 1.5  # power of the mean similarity; with the choice of fingerprints, from cross-validation inside train
CELL_WIDTH = 0.3  # of the kernel of basal profiles, in median squared distances


def counts(smiles: Sequence[str], kind: str) -> np.ndarray:
    """Counts of a fingerprint's patterns ``[m, f]`` (RDKit), columns that occur only."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator as fingerprints

    generator = {
        "morgan": lambda: fingerprints.GetMorganGenerator(radius=3, fpSize=4096),
        "features": lambda: fingerprints.GetMorganGenerator(
            radius=2, fpSize=4096, atomInvariantsGenerator=fingerprints.GetMorganFeatureAtomInvGen()
        ),
        "atom pairs": lambda: fingerprints.GetAtomPairGenerator(fpSize=4096),
        "paths": lambda: fingerprints.GetRDKitFPGenerator(fpSize=4096),
    }[kind]()
    with rdBase.BlockLogs():
        table = np.stack([generator.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles])
    return table[:, table.any(0)].astype(np.float32)


def structures(smiles: Sequence[str]) -> Tensor:
    """Mean min–max similarity over four kinds of fingerprints, to the power 1.5."""
    codes, distinct = pd.factorize(pd.Series(smiles))
    tables = (torch.from_numpy(counts(distinct, kind)) for kind in FINGERPRINTS)
    similarity = torch.stack([minmax(table, table) for table in tables]).mean(0).clamp_min(0) ** SHARPNESS
    return similarity[codes][:, codes]


def bits(features: Tensor) -> Tensor:
    """The same for fingerprints already made (the synthetic stand-in has no structures)."""
    return minmax(features, features) ** SHARPNESS


def annotations(table: pd.DataFrame) -> Tensor:
    """Jaccard index of mechanisms of action plus that of known targets; none shared, or none known, is zero."""
    total = torch.zeros(len(table), len(table))
    for column in ("moa", "target"):
        indicators = torch.from_numpy(table[column].fillna("").str.get_dummies("|").to_numpy(np.float32))
        shared, size = indicators @ indicators.T, indicators.sum(1)
        total += shared / (size[:, None] + size - shared).clamp_min(1)
    return total


def same(labels: Sequence[str] | pd.Series) -> Tensor:
    codes = torch.from_numpy(pd.factorize(pd.Series(labels))[0])
    return (codes[:, None] == codes).float()


def cell_lines(labels: pd.Series, basal: pd.DataFrame | None) -> Tensor:
    """Gaussian kernel of basal profiles; without them cell lines are alike (½) or the same (1)."""
    if basal is None:
        return 0.5 + 0.5 * same(labels)
    profiles = torch.from_numpy(basal.loc[labels.unique()].to_numpy(np.float64))
    distance = torch.cdist(profiles, profiles).square()
    kernel = torch.exp(-distance / (2 * CELL_WIDTH * distance[distance > 0].median())).float()
    codes = pd.factorize(labels)[0]
    return kernel[codes][:, codes]


def responses(table: pd.DataFrame, basal: pd.DataFrame | None, chemistry: Tensor, annotated: bool) -> dict[str, Tensor]:
    """The kernels of a drug × cell-line screen: what all share, cell lines, compounds, and compounds in cell lines."""
    cells, drug, line = cell_lines(table["cell_line"], basal), same(table["perturbagen"]), same(table["cell_line"])
    parts = {
        "all": torch.ones_like(drug),
        "cell line": line,
        "basal profile": cells,
        "structure": chemistry,
        "structure × basal": chemistry * cells,
        "structure × cell line": chemistry * line,
        "compound": drug,
        "compound × basal": drug * cells,
    }
    if annotated:
        known = annotations(table)
        parts |= {"annotation": known, "annotation × basal": known * cells}
    return parts


def dose_responses(table: pd.DataFrame, chemistry: Tensor) -> dict[str, Tensor]:
    """The kernels of a dose-response plate: compounds, and smooth curves of log dose for each and for alike ones."""
    dose = torch.from_numpy(np.log10(table["dose"].to_numpy(np.float32)))[:, None]
    near = torch.exp(-torch.cdist(dose, dose).square() / 2)  # doses a factor of ten apart: e^−½
    linear = (dose + 2) @ (dose + 2).T / 4  # grows with dose, from none at 0.01 µM
    drug = same(table["perturbagen"])
    return {
        "all": torch.ones_like(drug),
        "dose": near,
        "compound": drug,
        "compound × dose": drug * near,
        "compound, growing": drug * linear,
        "structure": chemistry,
        "structure, growing": chemistry * linear,
    }
