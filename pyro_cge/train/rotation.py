"""The rotation step: from a dense fit, whose latents are known up to a rotation, to latents that environments name.

With shift interventions and an isotropic reference the likelihood does not change when latent space is rotated (noise,
encoder, decoder and environment means together). Sparse priors in the training loop get stuck at a wrong rotation; a
dense fit followed by one rotation does not::

    dense = fit(model, guide, data)                   model.prior a DensePrior, C = Z
    fitted = rotate(dense, data)                      same reconstructions, sparse environment means
    sparse = transfer(fitted, CategoricalPrior(data, d), data)
    fit(sparse.model, sparse.guide, data)             go on with a sparse prior
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..data.align import align
from ..data.profiles import Profiles
from ..errors import ConfigError, DataError
from ..seeds import isolated
from .fit import Fit
from .fold import check_foldable, fold

Method = Literal["smooth_l1", "quartimax", "varimax"]

INFORMED = 0.01  # a direction whose posterior means vary less than this share of the prior's variance has collapsed
AGREE = 0.95  # two solutions are the same when every axis of one has such a cosine with an axis of the other
TOLERANCE = 1e-6
ENCODE = 4096  # profiles encoded at a time


@dataclass(frozen=True, eq=False)
class Rotation:
    """Where a dense fit has to be turned: ``z' = (z − centre) @ whitening @ Q``.

    Attributes
    ----------
    whitening : Tensor ``[d, d]``
        Inverse square root of the covariance within environments.
    Q : Tensor ``[d, d]``
        Orthogonal. Its first ``n_active`` columns are the rotated latents, the one moved most first, each with the
        sign that makes its shifts positive on the whole; the others are left as near to their old axes as they can be.
    centre : Tensor ``[d]``
        Where unperturbed profiles lie, in the old coordinates.
    loc : Tensor ``[E, d]``
        Environment means in the new coordinates.
    eigenvalues : Tensor ``[d]``
        Of the covariance within environments: all 1 for a converged fit.
    n_active : int
        Latents that carry information and that some environment moves.
    objectives : Tensor ``[R]``
        What each restart reached; smaller is sparser. The last one started from the quartimax solution.
    agreement : Tensor ``[R]``
        Worst cosine between an axis of the best solution and its nearest axis of each restart's.
    """

    whitening: Tensor
    Q: Tensor
    centre: Tensor
    loc: Tensor
    eigenvalues: Tensor
    n_active: int
    objectives: Tensor
    agreement: Tensor

    @property
    def matrix(self) -> Tensor:
        """Whitening and rotation in one, ``[d, d]``."""
        return self.whitening @ self.Q

    @property
    def n_agree(self) -> int:
        """Restarts that found the same axes as the best one: few of many is a warning."""
        return int((self.agreement > AGREE).sum())

    def apply(self, z: Tensor) -> Tensor:
        """Noise ``[..., d]`` in the new coordinates."""
        return (z.to(self.centre) - self.centre) @ self.matrix


def find_rotation(
    loc: Tensor,
    *,
    counts: Tensor | None = None,
    within: Tensor | None = None,
    explained: Tensor | None = None,
    control: Tensor | None = None,
    method: Method = "smooth_l1",
    restarts: int = 8,
    softness: float = 0.05,
    seed: int = 0,
) -> Rotation:
    """The rotation under which environment means are sparse.

    1. *Whiten* by ``within``, so that the reference law is isotropic and what is left to find is orthogonal.
    2. *Restrict* to directions in which posteriors differ from the prior (``explained``) and in which environments
       spread beyond their sampling noise: eigenvalues of ``Σ_e n_e m_e m_eᵀ / E`` above the Marchenko–Pastur edge
       ``(1 + √(k/E))²`` of pure noise.
    3. *Rotate*: over orthogonal ``Q`` and centre ``b`` jointly minimise ::

           Σ_e Σ_j √(1 + x_ej² / s_e) + Σ_c n_c |x_c|² / 2,     x_e = m_e Q − b,   s_e = softness + 1 / n_e

       (``e`` treated, ``c`` control environments). Small shifts cost like squares, large ones like their size, in units
       of what cannot be told from zero; controls say where zero is, and where there is none (or a small one) the many
       latents an environment does not move say it. Each step replaces ``Q`` by the polar factor of ``Mᵀ g(x)`` with
       ``g(x) = x / s − x / √(s (s + x²))``: the cost is concave in ``x²``, whose sum no rotation changes, so the cost
       never rises and there is no step size. All restarts run as one batch.

    Parameters
    ----------
    loc : Tensor ``[E, d]``
        Mean posterior noise of each environment.
    counts : Tensor ``[E]``, optional
        Profiles in each; default: many. Environments without any are carried along and decide nothing.
    within : Tensor ``[d, d]``, optional
        Pooled covariance of the noise within environments, posterior variance included; default: the identity.
    explained : Tensor ``[d, d]``, optional
        The part of ``within`` that is the spread of posterior means; default: all of it.
    control : Tensor ``[E]``, bool, optional
        Reference environments.
    method : {"smooth_l1", "quartimax", "varimax"}
        The criterion. Quartimax (largest ``Σ x⁴``) and varimax (the same about each latent's mean square) are as good
        where every environment moves one latent, and fail where environments move several.
    restarts : int
        Random starts, beside the one from the quartimax solution.
    softness : float
        Variance below which a shift counts as zero, in reference variances.
    seed : int
        Of the random starts.

    Raises
    ------
    ConfigError, DataError
        For an unknown method or unusable numbers; if no environment moves anything.
    """
    if method not in ("smooth_l1", "quartimax", "varimax"):
        raise ConfigError(f"method must be 'smooth_l1', 'quartimax' or 'varimax', got {method!r}")
    if restarts < 1 or not softness > 0:
        raise ConfigError(f"restarts must be at least 1 and softness positive, got {restarts} and {softness}")
    loc = loc.double()
    n_envs, d = loc.shape
    n = torch.full((n_envs,), torch.inf) if counts is None else counts
    n = n.to(loc).clamp_max(1e9).unsqueeze(-1)
    is_control = torch.zeros(n_envs, dtype=torch.bool) if control is None else control
    seen, reference = n[:, 0] > 0, is_control.to(loc.device) & (n[:, 0] > 0)
    treated = seen & ~reference
    if not treated.any():
        raise DataError("rotation needs treated environments with profiles; these data have none")
    within = torch.eye(d).to(loc) if within is None else within.to(loc)
    eigenvalues, vectors = torch.linalg.eigh(within)
    if not eigenvalues[0] > 0:
        raise DataError(f"the covariance within environments is singular (eigenvalue {eigenvalues[0]:.2g})")
    whitening = (vectors * eigenvalues.rsqrt()) @ vectors.mT
    table = loc @ whitening

    # Where zero lies is only known roughly here; the search below settles it.
    pooled = (table * n * reference.unsqueeze(-1)).sum(0) / n[reference].sum() if reference.any() else None
    rough = table[seen].median(0).values if pooled is None else pooled
    informed = torch.eye(d).to(loc) if explained is None else whitening @ explained.to(loc) @ whitening
    basis = _active_basis(table[treated] - rough, n[treated], informed)
    k = basis.shape[1]
    if not k:
        raise DataError(
            "no environment moves the latents beyond sampling noise: there is nothing to rotate to; train longer, or give more profiles"
        )

    noise = 1 / n[treated]
    criterion = _Criterion(method, softness + noise, n[reference].sum(), None if pooled is None else pooled @ basis)
    generator = torch.Generator().manual_seed(seed)
    starts = _polar(torch.randn(restarts, k, k, generator=generator, dtype=torch.float64).to(loc))
    Q, centre, objectives = _search(table[treated] @ basis, rough @ basis, starts, criterion)
    best = objectives.argmin()
    agreement = (Q[best].mT @ Q).abs().amax(-1).amin(-1)

    # Back to all latents; the moved most first, shifts positive on the whole.
    active = basis @ Q[best]
    x = table[treated] @ active - centre[best]
    order = x.square().sum(0).argsort(descending=True)
    sign = torch.where(x.pow(3).sum(0) < 0, -1.0, 1.0).to(loc)
    full = torch.cat([(active * sign)[:, order], _left_alone(basis)], -1)
    # In the directions left alone zero stays where the rough centre has it.
    middle = basis @ (Q[best] @ centre[best]) + rough - basis @ (basis.mT @ rough)
    return Rotation(
        whitening=whitening,
        Q=full,
        centre=torch.linalg.solve(whitening, middle),
        loc=(table - middle) @ full,
        eigenvalues=eigenvalues,
        n_active=k,
        objectives=objectives,
        agreement=agreement,
    )


def rotation_of(fit: Fit, data: Profiles, **options: object) -> Rotation:
    """:func:`find_rotation` on the posterior means of a fit; ``options`` are passed on.

    Parameters
    ----------
    fit : Fit
        With a dense prior and ``C = Z``.
    data : EnvironmentData or StreamedData
        The profiles it was trained on, in raw units.

    Raises
    ------
    ConfigError
        If the fit is of a kind that cannot be rotated.
    """
    check_foldable(fit.model, fit.guide)
    data = align(data, fit.schema)
    loc, variance = posterior_moments(fit, data)
    env, counts = data.env.to(loc.device), data.env_counts.to(loc.device)
    d, seen = loc.shape[1], int((counts > 0).sum())
    if data.n <= seen:
        raise DataError(f"whitening needs environments of several profiles, got {data.n} profiles in {seen}")
    means = loc.new_zeros(data.n_envs, d).index_add(0, env, loc) / counts.clamp_min(1).unsqueeze(-1)
    residual = loc - means.index_select(0, env)
    explained = residual.mT @ residual / (data.n - seen)
    within = explained + variance.mean(0).diag()
    control = data.is_control.to(loc.device)
    return find_rotation(means, counts=counts, within=within, explained=explained, control=control, **options)  # type: ignore[arg-type]


def rotate(
    fit: Fit,
    data: Profiles,
    *,
    method: Method = "smooth_l1",
    restarts: int = 8,
    softness: float = 0.05,
    seed: int = 0,
) -> Fit:
    """Turn a dense fit so that each environment moves as few latents as possible, and fold the turn into its weights.

    Whitens within environments, centres, rotates to sparse (:func:`find_rotation`), and writes the result into copies
    of encoder, decoder and prior. Reconstructions at the posterior mean are the same before and after; posterior means
    are turned exactly, posterior scales refitted by least squares. Train on to polish them.

    *What is identified.* The exogenous noise Z and the latents each environment intervenes on, up to the order of the
    latents and their signs: provided environments shift few latents each, and between them every latent (so at least
    ``d`` of them; a latent that none touches, or two that are only ever moved together in one proportion, stay mixed).
    Scale-only interventions break the symmetry too, but leave no means to rotate by. *What is not:* the graph among causes C. With a
    free decoder C is any invertible function of Z, and shifts alone cannot tell; that takes hard or mechanism
    interventions, or a sparse decoder.

    Parameters
    ----------
    fit : Fit
        Of a ``CellModel`` with a :class:`~pyro_cge.models.priors.DensePrior` and no latent graph, a linear or MLP
        decoder, and an :class:`~pyro_cge.guides.amortized.AmortizedGuide`. Left as it is.
    data : EnvironmentData or StreamedData
        The profiles it was trained on, in raw units.
    method, restarts, softness, seed
        See :func:`find_rotation`.

    Returns
    -------
    Fit
        To be used, saved or trained on like any other.

    Raises
    ------
    ConfigError
        If the fit is of another kind.
    """
    options = {"method": method, "restarts": restarts, "softness": softness, "seed": seed}
    rotation = rotation_of(fit, data, **options)
    data = align(data, fit.schema)
    scaled = fit.scaler.transform(data)
    model, guide = fold(fit.model, fit.guide, scaled, rotation.centre, rotation.matrix, rotation.loc)
    record = {**options, "n_active": rotation.n_active, "n_agree": rotation.n_agree}
    return replace(fit, model=model, guide=guide, settings={**fit.settings, "rotation": record})


@dataclass(frozen=True, eq=False)
class _Criterion:
    """What is minimised, and the two updates that lower it. ``x [R, E, k]``, one restart a leading index."""

    method: Method
    scale: Tensor  # s_e, [E, 1]
    precision: Tensor  # profiles in controls
    control: Tensor | None  # their mean, [k]

    def value(self, x: Tensor, at_control: Tensor) -> Tensor:
        if self.method == "quartimax":
            return -x.pow(4).mean((-2, -1))
        if self.method == "varimax":
            return -x.square().var(-2).mean(-1)
        return (1 + x.square() / self.scale).sqrt().mean((-2, -1)) + at_control / x.shape[-2:].numel()

    def direction(self, x: Tensor) -> Tensor:
        if self.method == "quartimax":
            return x.pow(3)
        if self.method == "varimax":
            return x.pow(3) - x * x.square().mean(-2, keepdim=True)
        return x / self.scale - x * self.weight(x)

    def weight(self, x: Tensor) -> Tensor:
        """Slope of the smooth L1 cost divided by ``x``."""
        return (self.scale * (self.scale + x.square())).rsqrt()

    def recentred(self, x: Tensor, from_control: Tensor) -> Tensor:
        """How far the centre moves, ``[R, 1, k]``: a weighted mean of shifts and (``from_control``) the control's."""
        weight = self.weight(x)
        pull = (weight * x).sum(-2, keepdim=True)
        total = weight.sum(-2, keepdim=True)
        if self.control is None:
            return pull / total
        return (pull + self.precision * from_control) / (total + self.precision)


def _search(
    table: Tensor, rough: Tensor, starts: Tensor, criterion: _Criterion, iterations: int = 2000
) -> tuple[Tensor, Tensor, Tensor]:
    """Best ``Q [R, k, k]``, centre ``[R, k]`` in its coordinates, and objective, from each start and from quartimax."""
    quartimax, _, values = _descend(table, rough, starts, replace(criterion, method="quartimax"), iterations)
    if criterion.method != "quartimax":
        starts = torch.cat([starts, quartimax[values.argmin()].unsqueeze(0)])
    return _descend(table, rough, starts, criterion, iterations)


def _descend(
    table: Tensor, rough: Tensor, Q: Tensor, criterion: _Criterion, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    origin = rough.expand(len(Q), 1, -1).clone()  # the centre, in the coordinates of the table
    control = table.new_zeros(1) if criterion.control is None else criterion.control
    for _ in range(iterations):
        move = criterion.recentred((table - origin) @ Q, (control - origin) @ Q)
        origin = origin + move @ Q.mT
        before, Q = Q, _polar((table - origin).mT @ criterion.direction((table - origin) @ Q))
        if (Q - before).abs().amax() < TOLERANCE:
            break
    off = criterion.precision * ((control - origin) @ Q).square().sum((-2, -1)) / 2
    at_control = off if criterion.control is not None else torch.zeros_like(off)
    return Q, (origin @ Q).squeeze(-2), criterion.value((table - origin) @ Q, at_control)


def _active_basis(shifts: Tensor, counts: Tensor, informed: Tensor) -> Tensor:
    """Orthonormal basis ``[d, k]`` of the directions that carry information and that environments move."""
    values, vectors = torch.linalg.eigh(informed)
    vectors = vectors[:, values > INFORMED]
    n_envs, k = len(shifts), vectors.shape[1]
    if not k:
        return vectors
    moved = (shifts * counts.sqrt()) @ vectors
    spread, directions = torch.linalg.eigh(moved.mT @ moved / n_envs)
    return vectors @ directions[:, spread > (1 + (k / n_envs) ** 0.5) ** 2]


def _left_alone(basis: Tensor) -> Tensor:
    """Orthonormal columns ``[d, d − k]`` that complete the basis, as near to coordinate axes as they can be."""
    d, k = basis.shape
    rest = torch.eye(d).to(basis) - basis @ basis.mT
    axes = rest.diagonal().topk(d - k).indices.sort().values
    complement = torch.linalg.eigh(rest).eigenvectors[:, k:]
    return complement @ _polar(complement[axes].mT) if d > k else complement


def _polar(matrix: Tensor) -> Tensor:
    """Nearest orthogonal matrix ``[..., k, k]``."""
    u, _, v = torch.linalg.svd(matrix)
    return u @ v


@torch.no_grad()
def posterior_moments(fit: Fit, data: Profiles) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of each profile's noise, ``[n, d]`` each, in float64."""
    device = next(fit.model.parameters()).device
    scaled = fit.scaler.transform(data).to(device)
    with isolated(0):
        parts = [fit.guide.encode(batch) for batch in scaled.batches(ENCODE)]
    loc, log_scale = (torch.cat(p).double() for p in zip(*parts, strict=True))
    return loc, (2 * log_scale).exp()
