"""The cross-modal autoencoder: RNA and ATAC of the same or of other cells in one latent space, and one from the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from ...discovery.variational import train_guide
from ...errors import ConfigError, DataError
from ...objectives.mmd import mmd
from ...seeds import isolated
from .modalities import Cells, Components, CrossModalGuide, CrossModalModel, start_at_cca

Array = NDArray[np.float64]
Modality = Literal["rna", "atac"]
BANDWIDTHS = (0.5, 1.0)  # of latents of order one


class CrossModalAutoencoder:
    """Two modalities in one latent space, from all, some or no cells measured in both (Yang, Belyaeva et al. 2021).

    :class:`~pyro_cge.imputation.autoencoders.modalities.CrossModalModel` says how cells come about; its latents ``z`` are what the
    modalities share. Minimised, over random batches of cells::

        − evidence · ELBO per cell and feature      the guide sees RNA, ATAC or both, the model explains all
        + contrast · InfoNCE(z_rna, z_atac)         anchors: a cell's two encodings find each other in the batch
        + supervision · cross-entropy of labels     from either encoding, where there are labels
        + invariance · MMD²(z_rna, z_atac)          cells with one modality: within a label, encodings do not tell which

    The InfoNCE term is ``−log softmax_j(cos(z_rna_i, z_atac_j)/T)_i`` averaged over both directions, with a learned
    temperature. The networks start at probabilistic canonical correlation analysis of anchors and labels. Several are
    trained; the cosine of two rows of :meth:`transform` is the mean of the members' cosines, translations and label
    probabilities are averaged.

    Before the networks see them, values are centred, reduced to principal components and nearly whitened (a component of
    variance λ is divided by ``√(λ + whitening λ_max)``). Give log-transformed values, the columns on one scale.

    Parameters
    ----------
    n_latents, n_private : int
        Shared latents, and private ones of each modality.
    n_components : pair of int
        Principal components of RNA and ATAC.
    hidden : int
        Hidden units of encoders and decoders beside their linear part; 0 for linear ones.
    dropout : float
        Of what the encoders read.
    members : int
        Networks.
    evidence, contrast, supervision, invariance : float
        Weights, above.
    whitening : float
    steps, batch_size, learning_rate, weight_decay :
        Of AdamW; the rate falls to 1 % of itself.
    random_state : int
    device : optional
    progress : bool, optional
        A bar; default: on a terminal only.

    Attributes
    ----------
    members_ : list of (CrossModalModel, CrossModalGuide)
    classes_ : array of the labels
    history_ : list of list of float
        Loss of each step of each member.
    """

    def __init__(
        self,
        *,
        n_latents: int = 10,
        n_private: int = 10,
        n_components: tuple[int, int] = (20, 60),
        hidden: int = 64,
        dropout: float = 0.5,
        members: int = 4,
        evidence: float = 1.0,
        contrast: float = 1.0,
        supervision: float = 1.0,
        invariance: float = 1.0,
        whitening: float = 0.01,
        steps: int = 150,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        random_state: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
    ) -> None:
        counts = {"n_latents": n_latents, "n_private": n_private, "members": members, "steps": steps}
        if bad := {name: value for name, value in counts.items() if value < 1}:
            raise ConfigError(f"{next(iter(bad))} must be at least 1, got {next(iter(bad.values()))}")
        if len(n_components) != 2 or min(n_components) < 1 or hidden < 0 or batch_size < 2 or not 0 <= dropout < 1:
            raise ConfigError(
                "n_components must be two positive numbers, hidden not negative, batch_size 2 or more, dropout in [0, 1); "
                f"got {n_components}, {hidden}, {batch_size}, {dropout}"
            )
        if min(evidence, contrast, supervision, invariance, whitening) < 0:
            raise ConfigError("evidence, contrast, supervision, invariance and whitening must not be negative")
        self.n_latents, self.n_private, self.n_components = n_latents, n_private, n_components
        self.hidden, self.dropout, self.members = hidden, dropout, members
        self.evidence, self.contrast, self.supervision, self.invariance = evidence, contrast, supervision, invariance
        self.whitening, self.steps, self.batch_size = whitening, steps, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.random_state, self.device, self.progress = random_state, device, progress

    def fit(
        self,
        rna: ArrayLike,
        atac: ArrayLike,
        pairs: ArrayLike | Literal["all"] | None = "all",
        *,
        rna_labels: Sequence[Any] | None = None,
        atac_labels: Sequence[Any] | None = None,
    ) -> CrossModalAutoencoder:
        """Train on cells with RNA ``rna [n, p]`` and cells with ATAC ``atac [m, q]``.

        Parameters
        ----------
        pairs : int array ``[a, 2]``, "all" or None
            Rows of ``rna`` and of ``atac`` that are the same cell (anchors). "all": row i of both. None: no two.
        rna_labels, atac_labels : sequences ``[n]`` and ``[m]``, optional
            Class of each cell, such as the time of treatment; NaN or None where unknown. Only used for training. With no
            anchors they are what ties the modalities.

        Raises
        ------
        DataError
            For values that are not finite, pairs that are no rows or use a row twice, labels of another length.
        """
        values = {"rna": _matrix(rna, "rna"), "atac": _matrix(atac, "atac")}
        n, m = len(values["rna"]), len(values["atac"])
        anchors = _anchors(pairs, n, m)
        codes, self.classes_ = _labels(rna_labels, atac_labels, n, m)
        self.scales_ = {
            "rna": Components.of(values["rna"], self.n_components[0], self.whitening),
            "atac": Components.of(values["atac"], self.n_components[1], self.whitening),
        }
        cells = self._cells(self._reduced(values["rna"], "rna"), self._reduced(values["atac"], "atac"), anchors, codes)
        self.members_: list[tuple[CrossModalModel, CrossModalGuide]] = []
        self.history_: list[list[float]] = []
        for member in range(self.members):
            self._train(cells, self.random_state + 1000 * member)
        return self

    def transform(self, rna: ArrayLike | None = None, atac: ArrayLike | None = None) -> Array:
        """Where cells are in the shared space ``[n, members · d]``, from one modality or both; rows have length 1.

        Rows of cells seen in one modality can be compared with rows of cells seen in the other.
        """
        means = [F.normalize(z, dim=-1) for z in self._means(rna, atac)]
        return torch.cat(means, -1).div(len(means) ** 0.5).cpu().numpy()

    def translate(self, values: ArrayLike, source: Modality = "rna") -> Array:
        """The other modality as expected given ``values`` of the ``source``, in the units of ``fit`` ``[n, q or p]``."""
        target = _other(source)
        means = self._means(**{source: values})
        with torch.no_grad():
            guess = torch.stack(
                [getattr(model, f"{target}_decoder").mean(z) for (model, _), z in zip(self.members_, means)]
            ).mean(0)
        return self.scales_[target].restored(guess.cpu().numpy())

    def label_probabilities(self, values: ArrayLike, source: Modality = "rna") -> Array:
        """P(label | values of the source) ``[n, classes]``, columns in the order of ``classes_``."""
        if not len(self.classes_):
            raise DataError("no labels were given to fit: pass rna_labels or atac_labels there")
        _other(source)
        means = self._means(**{source: values})
        with torch.no_grad():
            each = [model.label_law(z).probs for (model, _), z in zip(self.members_, means)]
        return torch.stack(each).mean(0).cpu().numpy()

    def invariance_of_latents(self, rna: ArrayLike, atac: ArrayLike) -> pd.DataFrame:
        """How far each latent is the same whichever modality it is read from, row i of both being one cell.

        Returns
        -------
        DataFrame
            A row a latent, the most invariant first: ``member`` and ``latent``; ``correlation`` of the two readings over
            cells; ``shift``, the difference of their means in standard deviations; ``auc``, how well the latent alone tells
            the modality (0.5: not at all). Causal features are latents with a high correlation and an auc of about 0.5.
        """
        from scipy.stats import rankdata

        rows = []
        for member, (a, b) in enumerate(zip(self._means(rna=rna), self._means(atac=atac))):
            u, v = a.cpu().numpy(), b.cpu().numpy()
            if len(u) != len(v):
                raise DataError(f"row i of both must be one cell, got {len(u)} rows of rna and {len(v)} of atac")
            ranks = rankdata(np.concatenate([u, v]), axis=0)[: len(u)]
            auc = (ranks.sum(0) - len(u) * (len(u) + 1) / 2) / (len(u) * len(v))
            cu, cv = u - u.mean(0), v - v.mean(0)
            su, sv = np.sqrt((cu**2).mean(0)), np.sqrt((cv**2).mean(0))
            correlation = (cu * cv).mean(0) / np.maximum(su * sv, 1e-300)
            shift = (u.mean(0) - v.mean(0)) / np.maximum(np.sqrt((su**2 + sv**2) / 2), 1e-300)
            columns = {"latent": range(self.n_latents), "correlation": correlation, "shift": shift, "auc": auc}
            rows.append(pd.DataFrame(columns).assign(member=member))
        table = pd.concat(rows)[["member", "latent", "correlation", "shift", "auc"]]
        return table.sort_values("correlation", ascending=False, ignore_index=True)

    # Inside

    def _reduced(self, values: Array, modality: Modality) -> Tensor:
        return torch.as_tensor(self.scales_[modality].reduced(values), device=self.device)

    def _means(self, rna: ArrayLike | None = None, atac: ArrayLike | None = None) -> list[Tensor]:
        """Posterior mean of ``z`` under each member, from what is given."""
        if rna is None and atac is None:
            raise DataError("give rna, atac or both")
        given: dict[str, Tensor] = {}
        if rna is not None:
            given["rna"] = self._reduced(_matrix(rna, "rna", self.scales_["rna"].features), "rna")
        if atac is not None:
            given["atac"] = self._reduced(_matrix(atac, "atac", self.scales_["atac"].features), "atac")
        if len({len(x) for x in given.values()}) > 1:
            raise DataError("with both modalities row i of both is one cell: the numbers of rows differ")
        n = len(next(iter(given.values())))
        filled = {
            name: given.get(name, torch.zeros(n, self.scales_[name].width, dtype=torch.float64, device=self.device))
            for name in self.scales_
        }
        has = {name: torch.full((n,), name in given, device=self.device) for name in self.scales_}
        cells = Cells.of(filled["rna"], filled["atac"], has["rna"], has["atac"])
        with torch.no_grad():
            return [guide.posterior(cells)[0] for _, guide in self.members_]

    def _cells(self, rna: Tensor, atac: Tensor, anchors: NDArray[Any], codes: tuple[Any, Any]) -> Cells:
        """One row a cell: anchors, then cells with RNA only, then cells with ATAC only."""
        rna_only = np.setdiff1d(np.arange(len(rna)), anchors[:, 0])
        atac_only = np.setdiff1d(np.arange(len(atac)), anchors[:, 1])
        a, r, t = len(anchors), len(rna_only), len(atac_only)
        both = np.where(codes[0][anchors[:, 0]] < 0, codes[1][anchors[:, 1]], codes[0][anchors[:, 0]])
        label = torch.as_tensor(np.r_[both, codes[0][rna_only], codes[1][atac_only]], device=self.device)
        kind = torch.as_tensor(np.repeat([0, 1, 2], [a, r, t]), device=self.device)
        return Cells.of(
            torch.cat([rna[anchors[:, 0]], rna[rna_only], rna.new_zeros(t, rna.shape[1])]),
            torch.cat([atac[anchors[:, 1]], atac.new_zeros(r, atac.shape[1]), atac[atac_only]]),
            kind < 2,
            kind != 1,
            label,
        )

    def _train(self, cells: Cells, seed: int) -> None:
        assert cells.rna is not None and cells.atac is not None
        p, q = cells.rna.shape[1], cells.atac.shape[1]
        with isolated(seed, "initial weights"):
            model = CrossModalModel(
                p, q, self.n_latents, private=self.n_private, classes=len(self.classes_), hidden=self.hidden
            )
            guide = CrossModalGuide(model, hidden=self.hidden, dropout=self.dropout)
        log_temperature = nn.Parameter(cells.rna.new_tensor(0.3).log())
        parts = nn.ModuleList([model, guide]).to(cells.rna)
        cross = cells.cross_covariance()
        if cross is not None:
            start_at_cca(model, guide, cross)
        elbo = Trace_ELBO()

        def loss() -> Tensor:
            batch = cells.take(torch.randperm(len(cells))[: self.batch_size].to(cells.index))
            look = torch.rand(len(batch)).to(cells.rna)
            # A third of the time each: RNA only, ATAC only, both; a cell with one modality is always seen.
            batch = batch.seeing((look < 2 / 3) | ~batch.has_atac, (look > 1 / 3) | ~batch.has_rna)
            value = self.evidence * elbo.differentiable_loss(model, guide, batch) / (cells.n_total * (p + q))
            return value + self._alignment(model, guide, batch, log_temperature)

        optimiser = torch.optim.AdamW(
            [*parts.parameters(), log_temperature], lr=self.learning_rate, weight_decay=self.weight_decay
        )
        with torch.enable_grad(), pyro.validation_enabled(False):
            history = train_guide(loss, optimiser, steps=self.steps, decay=0.01, seed=seed, progress=self.progress)
        parts.eval().requires_grad_(False)
        self.members_.append((model, guide))
        self.history_.append(history)

    def _alignment(
        self, model: CrossModalModel, guide: CrossModalGuide, cells: Cells, log_temperature: Tensor
    ) -> Tensor:
        """What ties the two encodings: anchors, labels, distributions."""
        assert cells.rna is not None and cells.atac is not None
        z = {"rna": guide.rna_encoder.posterior_mean(cells.rna), "atac": guide.atac_encoder.posterior_mean(cells.atac)}
        unit = {name: F.normalize(value, dim=-1) for name, value in z.items()}
        has = {"rna": cells.has_rna, "atac": cells.has_atac}
        value = log_temperature.new_zeros(())
        both = has["rna"] & has["atac"]
        if both.sum() > 1:
            scores = unit["rna"][both] @ unit["atac"][both].mT * torch.exp(-log_temperature)
            own = torch.arange(len(scores), device=scores.device)
            value = value + self.contrast * (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)) / 2
        if model.classifier is not None:
            for name in z:
                known = has[name] & (cells.label >= 0)
                if known.any():
                    logits = model.label_law(z[name][known]).logits
                    value = value + self.supervision * F.cross_entropy(logits, cells.label[known]) / 2
        # Anchors are tied cell by cell; what is left are cells with one modality, alike in law within a label.
        mine, theirs = has["rna"] & ~both, has["atac"] & ~both
        alike = (cells.label[mine].unsqueeze(-1) == cells.label[theirs]).to(z["rna"].dtype)
        some = alike.any(-1)
        if self.invariance and some.any():
            partner = unit["atac"][theirs][torch.multinomial(alike[some], 1).squeeze(-1)]
            size = self.n_latents**0.5  # so that latents are of order one, as the bandwidths expect
            ours, label = unit["rna"][mine][some], cells.label[mine][some]
            value = value + self.invariance * mmd(ours * size, partner * size, label, BANDWIDTHS)
        return value


def _other(source: str) -> Modality:
    if source not in ("rna", "atac"):
        raise ConfigError(f"source must be 'rna' or 'atac', got {source!r}")
    return "atac" if source == "rna" else "rna"


def _matrix(values: ArrayLike, name: str, features: int | None = None) -> Array:
    given: Any = values.toarray() if hasattr(values, "toarray") else values
    x = np.asarray(given, dtype=np.float64)
    if x.ndim != 2 or len(x) < (2 if features is None else 0):
        raise DataError(f"{name} must be cells × features with two cells or more, got shape {list(x.shape)}")
    if features is not None and x.shape[1] != features:
        raise DataError(f"{name} had {features} features in fit, now {x.shape[1]}")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(f"{name} must be finite, row {row}, column {column} is {x[row, column]}")
    return x


def _anchors(pairs: ArrayLike | Literal["all"] | None, n: int, m: int) -> NDArray[np.int64]:
    if isinstance(pairs, str):
        if pairs != "all":
            raise ConfigError(f"pairs must be 'all', None or row numbers [a, 2], got {pairs!r}")
        if n != m:
            raise DataError(f"pairs='all' needs as many rows of rna as of atac, got {n} and {m}; give pairs or None")
        return np.repeat(np.arange(n)[:, None], 2, axis=1)
    rows = np.zeros((0, 2), dtype=np.int64) if pairs is None or not np.size(pairs) else np.asarray(pairs)
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise DataError(f"pairs must be row numbers [a, 2], got {rows.dtype} of shape {list(rows.shape)}")
    if rows.size and ((rows < 0) | (rows >= (n, m))).any():
        raise DataError(f"pairs has rows outside the {n} of rna and {m} of atac")
    if any(len(np.unique(column)) < len(rows) for column in rows.T):
        raise DataError("pairs uses a row twice: a cell has one partner")
    return rows.astype(np.int64)


def _labels(
    rna: Sequence[Any] | None, atac: Sequence[Any] | None, n: int, m: int
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]:
    for name, labels, size in (("rna_labels", rna, n), ("atac_labels", atac, m)):
        if labels is not None and len(labels) != size:
            raise DataError(f"{name} needs a label a cell [{size}], got {len(labels)}")
    parts = [pd.Series([None] * size if labels is None else list(labels)) for labels, size in ((rna, n), (atac, m))]
    given = [part for part in parts if part.notna().any()]
    if not given:
        return (np.full(n, -1), np.full(m, -1)), np.array([])
    codes, classes = pd.factorize(pd.concat([part.astype(object) for part in parts], ignore_index=True), sort=True)
    return (codes[:n].astype(np.int64), codes[n:].astype(np.int64)), np.asarray(classes)
