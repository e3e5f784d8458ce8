"""Mean and spread of every gene in one pass over blocks of profiles."""

from __future__ import annotations

import torch
from torch import Tensor

_GENES_AT_A_TIME = 128  # the float64 copy stays small


class GeneMoments:
    """Mean, standard deviation and constancy of each gene over the profiles that were added, in float64.

    Blocks are merged by the update of Chan, Golub and LeVeque (1979, equation 2.1)::

        δ = mean_b − mean_a     mean = mean_a + δ n_b / n     M₂ = M₂a + M₂b + δ² n_a n_b / n

    which, unlike sums of squares, loses no digits where the mean is large beside the spread.

    Attributes
    ----------
    n : int
        Profiles so far.
    mean : Tensor ``[g]``
    constant : Tensor ``[g]``, bool
        Genes that had one and the same value in all profiles.
    """

    def __init__(self, n_genes: int) -> None:
        self.n = 0
        self.mean = torch.zeros(n_genes, dtype=torch.float64)
        self.constant = torch.ones(n_genes, dtype=torch.bool)
        self._squares = torch.zeros(n_genes, dtype=torch.float64)
        self._first = torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Take in the profiles ``x [m, g]``."""
        if not len(x):
            return
        if not self.n:
            self._first, self.mean, self.constant = x[0].clone(), self.mean.to(x.device), self.constant.to(x.device)
            self._squares = self._squares.to(x.device)
        total = self.n + len(x)
        for start in range(0, x.shape[1], _GENES_AT_A_TIME):
            genes = slice(start, start + _GENES_AT_A_TIME)
            part = x[:, genes]
            variance, mean = torch.var_mean(part.double(), 0, correction=0)
            delta = mean - self.mean[genes]
            self.mean[genes] += delta * (len(x) / total)
            self._squares[genes] += variance * len(x) + delta.square() * (self.n * len(x) / total)
            self.constant[genes] &= (part == self._first[genes]).all(0)
        self.n = total

    @property
    def sd(self) -> Tensor:
        """``[g]``, over ``n`` (the maximum-likelihood estimate)."""
        return (self._squares / max(self.n, 1)).sqrt()
