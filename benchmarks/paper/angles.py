"""Do two weight matrices ``[g, 2]`` agree up to a rotation, up to a rotation and scales, or up to any linear map?

``M̃ = M R_θ diag(λ)`` (paper, section 6.1): each row of M is compared with that of M̃ by the angle that turns one onto the
other. Cosines do not depend on the lengths of rows, so neither do the genes' units matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

LAMBDAS = np.exp(np.linspace(-3, 3, 121))  # ratios of the two scales tried where they are free


@dataclass(frozen=True)
class Angles:
    """The angle that turns each row of M onto that of M̃, with the symmetry (first column of M negated) that agrees best.

    ``mean`` and ``sd`` are circular, in degrees; ``mean`` in (−180, 180].
    """

    each: Matrix
    mirrored: bool
    mean: float
    sd: float

    @property
    def off_axis(self) -> float:
        """Degrees from the nearest multiple of 90: zero where the latents are the true ones."""
        return float(abs((self.mean + 45) % 90 - 45))


def angles(true: Matrix, found: Matrix) -> Angles:
    """Best of the two symmetries."""
    options = []
    for mirrored in (False, True):
        each = bearing(found) - bearing(mirror(true) if mirrored else true)
        resultant = np.exp(1j * each).mean()
        sd = np.degrees(np.sqrt(-2 * np.log(np.clip(abs(resultant), 1e-300, 1))))
        options.append(Angles(np.degrees(each), mirrored, float(np.degrees(np.angle(resultant))), float(sd)))
    return min(options, key=lambda a: a.sd)


def angles_with_scales(true: Matrix, found: Matrix) -> Angles:
    """The best over the ratio of the two scales λ as well."""
    return min((angles(true, found * np.array([1.0, ratio])) for ratio in LAMBDAS), key=lambda a: a.sd)


def span_angle(true: Matrix, found: Matrix) -> float:
    """Largest angle between the planes that the columns of M and M̃ span, in degrees: 0 where ``M̃ = M B`` for some B."""
    from scipy.linalg import subspace_angles

    return float(np.degrees(subspace_angles(true, found).max()))


def mirror(weights: Matrix) -> Matrix:
    return weights * np.array([-1.0, 1.0])


def bearing(weights: Matrix) -> Matrix:
    return np.arctan2(weights[:, 1], weights[:, 0])
