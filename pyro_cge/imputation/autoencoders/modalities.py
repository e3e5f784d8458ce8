"""Two modalities of the same cells as one Pyro model: a shared cause, private noise, and whatever was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DataError

Array = NDArray[np.float64]
FLOOR = 1e-4  # variances and precisions stay above it
UNKNOWN = -1  # code of a label nobody gave


@dataclass(frozen=True)
class Cells:
    """Cells with RNA ``rna [n, p]``, ATAC ``atac [n, q]``, or both; a row a cell.

    Attributes
    ----------
    rna, atac : Tensor or None
        Values; those of a cell that lacks the modality are ignored. None: draw them (``Predictive``).
    has_rna, has_atac : Tensor ``[n]`` of bool
        What was measured, and thus explained by the model.
    seen_rna, seen_atac : Tensor ``[n]`` of bool
        What the guide may look at: what was measured, unless hidden by :meth:`seeing`.
    label : Tensor ``[n]`` of int
        Class of each cell (time, treatment), −1 where unknown.
    index : Tensor ``[n]`` of int
        Rows of the whole data set that these cells are.
    n_total : int
        Cells in the whole data set.
    """

    rna: Tensor | None
    atac: Tensor | None
    has_rna: Tensor
    has_atac: Tensor
    seen_rna: Tensor
    seen_atac: Tensor
    label: Tensor
    index: Tensor
    n_total: int

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(
        cls,
        rna: Tensor | None,
        atac: Tensor | None,
        has_rna: Tensor,
        has_atac: Tensor,
        label: Tensor | None = None,
    ) -> Cells:
        """All cells of a data set, everything measured in sight."""
        n = len(has_rna)
        label = torch.full_like(has_rna, UNKNOWN, dtype=torch.long) if label is None else label
        return cls(rna, atac, has_rna, has_atac, has_rna, has_atac, label, torch.arange(n, device=label.device), n)

    def take(self, rows: Tensor) -> Cells:
        """The cells ``rows``, as a part of the same data set."""
        parts: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)

    def seeing(self, rna: Tensor | bool, atac: Tensor | bool) -> Cells:
        """The same cells, of which the guide sees only some measured modalities; the model still explains all."""
        return replace(self, seen_rna=self.has_rna & rna, seen_atac=self.has_atac & atac)

    def cross_covariance(self) -> Tensor | None:
        """Estimate of ``E[rna atacᵀ] [p, q]`` for centred modalities; None with neither anchors nor two labels.

        By the law of total covariance: the part between labels from all cells, anchors or not, and the part within a
        label from the ``a`` anchors, shrunk by ``a / (a + 4 (p + q))`` when there are labels to lean on. Cells without a
        label are a class of their own.
        """
        assert self.rna is not None and self.atac is not None
        both = self.has_rna & self.has_atac
        between = self.rna.new_zeros(self.rna.shape[1], self.atac.shape[1])
        within, shared = torch.zeros_like(between), 0
        for label in self.label.unique():
            mine = self.label == label
            if not ((self.has_rna & mine).any() and (self.has_atac & mine).any()):
                continue
            shared += 1
            rna, atac = self.rna[self.has_rna & mine].mean(0), self.atac[self.has_atac & mine].mean(0)
            between = between + torch.outer(rna, atac) * mine.sum() / len(self)
            anchors = both & mine
            within = within + (self.rna[anchors] - rna).mT @ (self.atac[anchors] - atac)
        a = int(both.sum())
        if not a:
            return between if shared > 1 else None
        prior = 4 * sum(between.shape) if shared > 1 else 0
        return between + within / (a + prior)


@dataclass(frozen=True)
class Components:
    """Principal components, nearly whitened: ``(x − mean) V / s``."""

    mean: Array
    axes: Array
    scale: Array

    @classmethod
    def of(cls, x: Array, width: int, whitening: float) -> Components:
        from sklearn.decomposition import PCA

        width = min(width, *x.shape, max(len(x) - 1, 1))
        if not np.ptp(x, axis=0).any():
            raise DataError("all cells have the same values: nothing to align")
        pca = PCA(width, random_state=0).fit(x)
        variance = pca.explained_variance_
        return cls(pca.mean_, pca.components_, np.sqrt(variance + max(whitening, 1e-12) * variance[0]))

    @property
    def width(self) -> int:
        return len(self.scale)

    @property
    def features(self) -> int:
        return len(self.mean)

    def reduced(self, x: Array) -> Array:
        return (x - self.mean) @ self.axes.T / self.scale

    def restored(self, scores: Array) -> Array:
        return scores * self.scale @ self.axes + self.mean


class Residual(nn.Module):
    """``x A + a + h(x)``: a linear map and a network of one hidden layer that starts at zero, dropout on what is read."""

    def __init__(self, inputs: int, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.dropout = nn.Dropout(dropout)
        self.bend: nn.Module | None = None
        if hidden:
            last = nn.Linear(hidden, outputs)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.bend = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.ELU(), nn.Dropout(dropout), last
            )

    def forward(self, x: Tensor) -> Tensor:
        straight = self.linear(self.dropout(x))
        return straight if self.bend is None else straight + self.bend(x)


class Emission(nn.Module):
    """``x | z ~ N(f(z), B Bᵀ + diag(s²))``: ``f`` bends, ``B w`` is the modality's private noise, integrated out."""

    def __init__(self, d: int, features: int, private: int, hidden: int) -> None:
        super().__init__()
        self.mean = Residual(d, features, hidden, 0.0)
        self.private = nn.Parameter(0.1 * torch.randn(features, private))
        self.raw_variance = nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor) -> dist.LowRankMultivariateNormal:
        return dist.LowRankMultivariateNormal(self.mean(z), self.private, F.softplus(self.raw_variance) + FLOOR)


class Expert(nn.Module):
    """What one modality says of ``z``: a normal of mean ``m(x) [..., n, d]`` and precision ``τ [d]``."""

    def __init__(self, features: int, d: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.mean = Residual(features, d, hidden, dropout)
        self.raw_precision = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), F.softplus(self.raw_precision) + FLOOR

    def posterior_mean(self, x: Tensor) -> Tensor:
        """Mean of ``z`` for cells that have nothing but this modality ``[..., n, d]``."""
        mean, precision = self(x)
        return mean * precision / (1 + precision)


class CrossModalModel(PyroModule):
    """Two modalities with one shared cause (Yang, Belyaeva et al. 2021, as a generative model)::

        z     ~ N(0, I_d)                                shared by the modalities: what a causal analysis goes on with
        label ~ Categorical(softmax(z C + c))            where there are labels
        rna   ~ N(f_rna(z),  B_rna B_rnaᵀ + diag(s²))    B w, w ~ N(0, I): private noise, integrated out
        atac  ~ N(f_atac(z), B_atac B_atacᵀ + diag(t²))

    Sites under the plate ``cells``; a modality that was not measured, or a label nobody gave, is masked. With linear
    ``f`` (``hidden=0``), full-rank ``B`` and no labels it is probabilistic canonical correlation analysis (Bach, Jordan
    2005). Called with :class:`Cells`.

    Parameters
    ----------
    p, q : int
        Features of the two modalities.
    d : int
        Shared latents.
    private : int
        Private latents a modality: the columns of ``B``.
    classes : int
        Number of labels; 0 for none.
    hidden : int
        Hidden units of the decoders' nonlinear parts; 0 for linear decoders.
    """

    def __init__(self, p: int, q: int, d: int, *, private: int = 10, classes: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.d = d
        self.rna_decoder = Emission(d, p, private, hidden)
        self.atac_decoder = Emission(d, q, private, hidden)
        self.classifier = nn.Linear(d, classes) if classes else None

    def label_law(self, z: Tensor) -> dist.Categorical:
        """``P(label | z)``, for ``z [..., n, d]``."""
        assert self.classifier is not None
        return dist.Categorical(logits=self.classifier(z))

    def forward(self, cells: Cells) -> Tensor:
        zero = self.rna_decoder.raw_variance.new_zeros(())
        with pyro.plate("cells", cells.n_total, subsample=cells.index):
            z = pyro.sample("z", dist.Normal(zero, 1.0).expand([self.d]).to_event(1))
            if self.classifier is not None:
                known, label = cells.label >= 0, cells.label.clamp_min(0)
                pyro.sample("label", self.label_law(z).mask(known), obs=None if cells.rna is None else label)
            pyro.sample("rna", self.rna_decoder(z).mask(cells.has_rna), obs=cells.rna)
            pyro.sample("atac", self.atac_decoder(z).mask(cells.has_atac), obs=cells.atac)
        return z


class CrossModalGuide(PyroModule):
    """Product of experts over the modalities in sight and the prior (Wu, Goodman 2018)::

        q(z | seen) = N(Σ τ_m m_m(x_m) / (1 + Σ τ_m), 1 / (1 + Σ τ_m)),   sums over the modalities seen

    A cell with one modality has a posterior from that one, in the same space.
    """

    def __init__(self, model: CrossModalModel, *, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.rna_encoder = Expert(len(model.rna_decoder.raw_variance), model.d, hidden, dropout)
        self.atac_encoder = Expert(len(model.atac_decoder.raw_variance), model.d, hidden, dropout)

    def posterior(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of ``z``, ``[n, d]`` each."""
        assert cells.rna is not None and cells.atac is not None
        total = self.rna_encoder.raw_precision.new_ones(())
        weighted = torch.zeros_like(total)
        looks = ((self.rna_encoder, cells.rna, cells.seen_rna), (self.atac_encoder, cells.atac, cells.seen_atac))
        for expert, x, seen in looks:
            mean, precision = expert(x)
            precision = precision * seen.unsqueeze(-1)
            total, weighted = total + precision, weighted + precision * mean
        return weighted / total, total**-0.5

    def forward(self, cells: Cells) -> Tensor:
        mean, sd = self.posterior(cells)
        with pyro.plate("cells", cells.n_total, subsample=cells.index):
            return pyro.sample("z", dist.Normal(mean, sd).to_event(1))


def start_at_cca(model: CrossModalModel, guide: CrossModalGuide, cross: Tensor) -> None:
    """Set the linear parts to probabilistic canonical correlation analysis, given ``cross [p, q] = E[rna atacᵀ]``.

    For whitened modalities, with ``cross = U diag(s) Vᵀ`` (Bach, Jordan 2005)::

        f_rna(z) = U s^½ z        E[z | rna] = s^½ Uᵀ rna        Var[z | rna] = 1 − s

    and the same with ``V`` for ATAC. Correlations are kept within [0.05, 0.95], so that every latent can still learn.
    """
    u, s, vt = torch.linalg.svd(cross, full_matrices=False)
    k = min(model.d, len(s))
    s = s[:k].clamp(0.05, 0.95)
    with torch.no_grad():
        rna, atac = (
            (model.rna_decoder, guide.rna_encoder, u[:, :k]),
            (model.atac_decoder, guide.atac_encoder, vt[:k].mT),
        )
        for emission, expert, axes in (rna, atac):
            emission.mean.linear.weight[:, :k] = axes * s.sqrt()
            expert.mean.linear.weight[:k] = (axes / s.sqrt()).mT  # times τ / (1 + τ) = s
            expert.raw_precision[:k] = torch.log(torch.expm1(s / (1 - s) - FLOOR))
            for part in (emission, expert):
                part.mean.linear.bias.zero_()
