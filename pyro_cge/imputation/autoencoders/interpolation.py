"""Over-parameterised autoencoders: they interpolate their training data, and what that does to drug effects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap

from ...errors import ConfigError, DataError
from ...seeds import isolated
from ..effects import Effects

Array = NDArray[np.float64]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
DENSE = 200  # features up to which all eigenvalues of a Jacobian are computed


class InterpolatingAutoencoder:
    """An autoencoder ``f`` with more weights than data, trained until ``f(x_i) = x_i`` (Radhakrishnan et al. 2020).

    ::

        f(x) = W_L φ(W_{L−1} ⋯ φ(W_1 x)),     min over W of (1/(n g)) Σ_i |f(x_i) − x_i|²  down to ``tolerance``

    What it does between the training examples is chosen by training alone: networks are found that hold them as
    attractors of ``x ← f(x)``, an associative memory. Its hidden layer was used to align the effects of drugs between
    cell lines (Belyaeva et al. 2021; :func:`alignment`).

    Without biases and with a (leaky) ReLU ``f`` is positively homogeneous, ``f(ax) = a f(x)`` for ``a > 0``, so
    ``J(x) x = f(x)`` and the Jacobian at *every* interpolated example has the eigenvalue 1: none is a strict attractor,
    its whole ray consists of fixed points.

    Training is Adam on all examples at once, then the smallest change of the last layer that interpolates (least
    squares, exact when that layer reads as many linearly independent features as there are examples), then L-BFGS if
    something is left.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers; one of width 1,024 is Belyaeva's.
    activation : {"leaky_relu", "relu", "selu", "elu", "tanh"}
    bias : bool
    steps : int
        Of Adam, fewer if the tolerance is met before.
    learning_rate : float
    tolerance : float
        Mean squared error per entry at which training ends, in squared units of ``x``.
    random_state : int
        Of the initial weights.
    device : optional

    Attributes
    ----------
    network_ : nn.Sequential
        float64.
    loss_ : float
        Mean squared error per entry at the end; ``interpolates_`` says whether it met the tolerance.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (1024,),
        activation: str = "leaky_relu",
        bias: bool = False,
        steps: int = 500,
        learning_rate: float = 1e-3,
        tolerance: float = 1e-10,
        random_state: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        if not hidden or min(hidden) < 1:
            raise ConfigError(f"hidden needs one positive width or more, got {tuple(hidden)}")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation {activation!r} does not exist; choose from {', '.join(ACTIVATIONS)}")
        if steps < 0 or not learning_rate > 0 or not tolerance > 0:
            raise ConfigError(
                f"steps must not be negative, learning_rate and tolerance must be positive; got {steps}, "
                f"{learning_rate}, {tolerance}"
            )
        self.hidden, self.activation, self.bias = tuple(hidden), activation, bias
        self.steps, self.learning_rate, self.tolerance = steps, learning_rate, tolerance
        self.random_state, self.device = random_state, device

    def fit(self, x: Effects | ArrayLike) -> InterpolatingAutoencoder:
        """Train on the rows of ``x [n, g]``.

        Raises
        ------
        DataError
            For values that are not finite.
        """
        values = self._rows(x)
        with isolated(self.random_state), torch.enable_grad():
            sizes = [values.shape[1], *self.hidden, values.shape[1]]
            layers: list[nn.Module] = []
            for below, above in itertools.pairwise(sizes):
                layers += [nn.Linear(below, above, bias=self.bias), ACTIVATIONS[self.activation]()]
            self.network_ = nn.Sequential(*layers[:-1]).to(values)
            self._descend(values)
            self._finish_last_layer(values)
            if self._loss(values).item() > self.tolerance:
                self._lbfgs(values)
        self.network_.requires_grad_(False)
        self.examples_ = values.cpu().numpy()
        self.loss_ = self._loss(values).item()
        self.interpolates_ = self.loss_ <= self.tolerance
        return self

    def predict(self, x: Effects | ArrayLike) -> Array:
        """``f(x) [n, g]``: one step of the map."""
        return self.network_(self._rows(x)).cpu().numpy()

    def transform(self, x: Effects | ArrayLike) -> Array:
        """Activations of the middle hidden layer ``[n, width]`` (of two, the first)."""
        middle = 2 * ((len(self.hidden) + 1) // 2)
        return self.network_[:middle](self._rows(x)).cpu().numpy()

    def spectral_radius(self, x: Effects | ArrayLike | None = None) -> Array:
        """Largest ``|eigenvalue|`` of the Jacobian of ``f`` at each row of ``x`` (default: the training examples) ``[n]``.

        Below 1 the example is an attractor of the iterated map, above 1 it is not. All eigenvalues up to 200 features, Arnoldi
        iteration on vector-Jacobian products beyond.
        """
        values = self._rows(self.examples_ if x is None else x)
        if values.shape[1] <= DENSE:
            jacobians = vmap(jacrev(self.network_))(values)
            return torch.linalg.eigvals(jacobians).abs().amax(-1).cpu().numpy()
        return np.array([self._arnoldi(row) for row in values])

    def recall(self, start: ArrayLike, *, iterations: int = 1000) -> Array:
        """Where ``x ← f(x)`` is after ``iterations`` from each row of ``start [s, g]``."""
        x = self._rows(start)
        for _ in range(iterations):
            after = self.network_(x)
            if not (after - x).abs().max() > 1e-12:  # also ends where the map has run to NaN
                return after.cpu().numpy()
            x = after
        return x.cpu().numpy()

    def recovered(self, start: ArrayLike, *, iterations: int = 1000, tolerance: float = 1e-3) -> float:
        """Fraction of the training examples that iterating from some row of ``start [s, g]`` ends at.

        "At" is a distance below ``tolerance`` times the example's norm.
        """
        from scipy.spatial.distance import cdist

        end = self.recall(start, iterations=iterations)
        distance = cdist(self.examples_, end[np.isfinite(end).all(1)])
        near = distance <= tolerance * np.linalg.norm(self.examples_, axis=1, keepdims=True)
        return float(near.any(1).mean())

    # Training

    def _loss(self, x: Tensor) -> Tensor:
        return (self.network_(x) - x).square().mean()

    def _descend(self, x: Tensor) -> None:
        optimiser = torch.optim.Adam(self.network_.parameters(), lr=self.learning_rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            loss = self._loss(x)
            if loss.item() <= self.tolerance:
                return
            loss.backward()
            optimiser.step()

    def _finish_last_layer(self, x: Tensor) -> None:
        """The smallest change of the last layer that takes what is left of the error."""
        with torch.no_grad():
            features, last = self.network_[:-1](x), self.network_[-1]
            if self.bias:
                features = torch.cat([features, features.new_ones(len(x), 1)], 1)
            change = torch.linalg.pinv(features) @ (x - self.network_(x))
            assert isinstance(last, nn.Linear)
            width = last.in_features
            last.weight.add_(change[:width].T)
            if self.bias:
                last.bias.add_(change[width])

    def _lbfgs(self, x: Tensor) -> None:
        optimiser = torch.optim.LBFGS(
            self.network_.parameters(),
            max_iter=5 * max(self.steps, 200),
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = self._loss(x)
            loss.backward()
            return loss

        optimiser.step(closure)

    def _arnoldi(self, x: Tensor) -> float:
        from scipy.sparse.linalg import LinearOperator, eigs

        pullback = vjp(self.network_, x)[1]  # v ↦ Jᵀ v; the transpose has the same eigenvalues

        def product(v: Array) -> Array:
            return pullback(torch.as_tensor(v.reshape(-1)).to(x))[0].cpu().numpy()

        g = len(x)
        operator = LinearOperator((g, g), matvec=product, dtype=np.float64)
        values = eigs(operator, k=1, which="LM", v0=np.ones(g), tol=1e-8, return_eigenvectors=False)
        return float(np.abs(values[0]))

    def _rows(self, x: Effects | ArrayLike) -> Tensor:
        values = np.asarray(x.x if isinstance(x, Effects) else x, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise DataError(f"expected signatures × genes, got an array of shape {list(values.shape)}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise DataError(f"values must be finite, row {row}, column {column} is {values[row, column]}")
        return torch.as_tensor(values, device=self.device)


def alignment(
    effects: Effects, embed: Callable[[Array], Any] | None = None, *, baseline: Array | None = None
) -> dict[str, float]:
    """How alike one action's effects are in different contexts, in the space of ``embed`` and in the original one.

    ::

        v[k, a]  = embed(b_k + x[k, a]) − embed(b_k)                 effect of action a in context k
        c[a]     = cos(v[k, a], v[k', a]) over pairs of contexts k < k' where a was measured

    A space in which *all* effects are alike has high cosines too, so the same is told of pairs of different actions.

    Parameters
    ----------
    effects : Effects
        Signatures relative to the untreated context.
    embed : callable, optional
        ``[n, g] → [n, w]``, such as :meth:`InterpolatingAutoencoder.transform`. Default: the identity.
    baseline : array ``[K, g]``, optional
        The untreated profile ``b_k`` of each context. Default: zero, for signatures that the network was trained on.

    Returns
    -------
    dict
        ``cosine``: mean over pairs of contexts of the same action; ``cosine_original``: without ``embed``;
        ``cosine_other``: mean over pairs of different actions in different contexts, ``separation``: the probability
        that a pair of the same action is more alike than one of different actions (0.5: no better than chance), and the
        original's; ``sign_agreement``: the share of same-action pairs whose cosine has the sign of the original one;
        ``pairs``: how many.

    Raises
    ------
    DataError
        If no action was measured in two contexts, or ``baseline`` has another shape.
    """
    x, context, action = effects.x, effects.context, effects.action
    base = np.zeros((effects.K, effects.g)) if baseline is None else np.asarray(baseline, dtype=np.float64)
    if base.shape != (effects.K, effects.g):
        raise DataError(f"baseline must be [K, g] = [{effects.K}, {effects.g}], got {list(base.shape)}")
    upper = np.triu(context[:, None] != context, 1)
    same = action[:, None] == action
    if not (upper & same).any():
        raise DataError("no action was measured in two contexts: there is nothing to align")
    original = _cosines(x)
    latent = original
    if embed is not None:
        latent = _cosines(np.asarray(embed(base[context] + x)) - np.asarray(embed(base))[context])
    return {
        "cosine": float(latent[upper & same].mean()),
        "cosine_original": float(original[upper & same].mean()),
        "cosine_other": float(latent[upper & ~same].mean()) if (upper & ~same).any() else float("nan"),
        "separation": _separation(latent, upper, same),
        "separation_original": _separation(original, upper, same),
        "sign_agreement": float((np.sign(latent) == np.sign(original))[upper & same].mean()),
        "pairs": float((upper & same).sum()),
    }


def _cosines(v: Array) -> Array:
    """``[n, n]``; 0 for rows that are zero."""
    length = np.linalg.norm(v, axis=1, keepdims=True)
    unit = v / np.where(length > 0, length, 1.0)
    return unit @ unit.T


def _separation(cosines: Array, upper: NDArray[np.bool_], same: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    labels = same[upper]
    return float(roc_auc_score(labels, cosines[upper])) if not labels.all() else float("nan")
