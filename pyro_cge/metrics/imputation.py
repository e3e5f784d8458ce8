"""How good is an imputed signature?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def imputation_scores(
    true: NDArray[np.float64], predicted: NDArray[np.float64], average: str = "mean"
) -> dict[str, float]:
    """The three numbers of the imputation literature, and the mean correlation of a profile.

    Parameters
    ----------
    true, predicted : arrays ``[p, g]``
        Held-out signatures.
    average : {"mean", "median"}
        Over signatures; Squires et al. (2022) report medians.

    Returns
    -------
    dict
        ``r``: Pearson correlation pooled over all ``p · g`` entries; ``r2``: 1 − SS_residual/SS_total over the genes of
        a signature, averaged; ``cosine``: of a signature, averaged; ``profile_r``: Pearson r over the genes of a
        signature, averaged. Signatures that are zero in every gene are skipped, constant ones by ``r2`` and
        ``profile_r``; a prediction that is zero (constant) counts as cosine (correlation) 0.

    Raises
    ------
    ValueError
        For shapes that differ, no signature at all, or a prediction that is not finite.

    References
    ----------
    Radhakrishnan, Stefanakis, Belkin, Uhler (2022), Simple, fast, and flexible framework for matrix completion with
    infinite width neural networks, PNAS. Squires, Shen, Agarwal, Shah, Uhler (2022), Causal imputation via synthetic
    interventions, CLeaR.
    """
    if average not in ("mean", "median"):
        raise ValueError(f"average must be 'mean' or 'median', got {average!r}")
    y, f = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if y.shape != f.shape or y.ndim != 2 or not y.size:
        raise ValueError(f"signatures have shape {list(y.shape)}, predictions {list(f.shape)}; expected [p, g], p > 0")
    if not np.isfinite(f).all():
        raise ValueError(f"predictions have {int((~np.isfinite(f)).sum())} entries that are not finite")
    kept = y.any(1)
    y, f = y[kept], f[kept]
    if not len(y):
        return dict.fromkeys(("r", "r2", "cosine", "profile_r"), float("nan"))
    middle = np.mean if average == "mean" else np.median
    yc, fc = y - y.mean(1, keepdims=True), f - f.mean(1, keepdims=True)
    varies = np.ptp(y, 1) > 0
    r2 = 1 - ((y - f) ** 2).sum(1)[varies] / (yc**2).sum(1)[varies]
    return {
        "r": float(_cosines((y - y.mean()).reshape(1, -1), (f - f.mean()).reshape(1, -1))[0]),
        "r2": float(middle(r2)) if varies.any() else float("nan"),
        "cosine": float(middle(_cosines(y, f))),
        "profile_r": float(middle(_cosines(yc, fc)[varies])) if varies.any() else float("nan"),
    }


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norm, out=np.zeros(len(a)), where=norm > 0)
