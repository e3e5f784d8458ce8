"""Standardisation of expression, fitted on the training part and inverted in predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from .moments import GeneMoments
from .profiles import Profiles

Data = TypeVar("Data", bound=Profiles)


@dataclass(frozen=True, eq=False)
class Standardizer:
    """``(x − mean) / scale`` per gene.

    Parameters
    ----------
    mean, scale : Tensor ``[g]``, float32
        In the units of the source.
    gene_names : sequence of ``g`` str
    """

    mean: Tensor
    scale: Tensor
    gene_names: Sequence[str]

    def __post_init__(self) -> None:
        if not self.mean.shape == self.scale.shape == (len(self.gene_names),):
            raise DataError(
                f"Standardizer needs mean and scale of one entry a gene [{len(self.gene_names)}], got "
                f"{list(self.mean.shape)} and {list(self.scale.shape)}"
            )

    @staticmethod
    def fit(data: Profiles) -> Standardizer:
        """Mean and standard deviation over the profiles of ``data``, in one pass: give the training part only.

        Raises
        ------
        DataError
            If a gene never varies, with its name; if there are fewer than two profiles.
        """
        if data.n < 2:
            raise DataError(f"standardisation needs two profiles or more, the training part has {data.n}")
        moments = GeneMoments(data.g)
        for x in data.blocks():
            moments.add(x)
        if names := [name for name, never in zip(data.gene_names, moments.constant.tolist(), strict=True) if never]:
            raise DataError(
                f"{len(names)} genes are constant over the {data.n} training profiles: "
                f"{', '.join(map(repr, names[:5]))}; leave them out with data.without_constant_genes(), or where "
                "few profiles express a gene with data.genes(names of the others)"
            )
        return Standardizer(moments.mean.float(), moments.sd.float(), data.gene_names)

    @staticmethod
    def identity(gene_names: Sequence[str]) -> Standardizer:
        """Leaves everything as it is."""
        return Standardizer(torch.zeros(len(gene_names)), torch.ones(len(gene_names)), gene_names)

    def transform(self, data: Data) -> Data:
        """The same data with standardised ``x``.

        Raises
        ------
        DataError
            If its genes are not those of the fit, in that order.
        """
        if list(data.gene_names) != list(self.gene_names):
            raise DataError(
                f"the data have {data.g} genes that are not the {len(self.gene_names)} standardised, or in another "
                "order; bring them into line with data.genes(standardizer.gene_names)"
            )
        return data.standardized(self.mean, self.scale)

    def inverse(self, x: Tensor) -> Tensor:
        """Standardised expression ``[..., g]`` in the units of the source."""
        return x * self.scale.to(x.device) + self.mean.to(x.device)

    def inverse_scale(self, scale: Tensor) -> Tensor:
        """A standard deviation ``[..., g]`` in the units of the source."""
        return scale * self.scale.to(scale.device)
