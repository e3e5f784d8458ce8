"""From named targets to a graph: order, causes and edges of rectified structural equations under a linear decoder.

::

    z ~ N(shift_e, I),   c_j = z_j + Σ_i G_ij max(c_i, 0),   x = B c + b        G acyclic

Shifting a cause that has no children moves every profile by one vector and leaves the covariance as it is; shifting any
other changes the covariance, because rectified effects are not linear. So the target whose environments change the
covariance least is a sink. Its vector is projected out, which leaves the same problem with one cause fewer (:func:`order_of`). Given the order the
likelihood is closed, a volume-preserving map of ``x``, and :func:`maximum_likelihood` maximises it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_cge as cge
from pyro_cge.scm.shifts import NoiseShift
from pyro_cge.simulate.peers import RectifiedMechanism

EDGE = 0.1  # smallest coefficient that counts as an edge, in sd of the noise; fixed before any run


@dataclass(frozen=True, eq=False)
class Structure:
    """Causes in topological order: ``c = (x − centre) A + offset``, weights ``G [d, d]`` (upper triangular), shifts.

    ``order [d]`` says which latent of the rotated fit each cause is.
    """

    order: list[int]
    A: Tensor
    offset: Tensor
    centre: Tensor
    G: Tensor
    shift: Tensor

    def causes(self, x: Tensor) -> Tensor:
        return (x.double() - self.centre) @ self.A + self.offset

    def noise(self, x: Tensor) -> Tensor:
        c = self.causes(x)
        return c - c.relu() @ self.G

    @property
    def adjacency(self) -> Tensor:
        return (self.G.abs() >= EDGE).double()

    def model(self, data: cge.EnvironmentData) -> cge.CellModel:
        """The same as a ``CellModel`` of the suite, which predicts, is intervened on and sampled from like any other."""
        d = len(self.order)
        prior = cge.TablePrior(data, NoiseShift(self.shift.float(), torch.zeros_like(self.shift).float()))
        scm = cge.LatentSCM.autoregressive(d, RectifiedMechanism)
        decoder = cge.LinearDecoder(d, data.g)
        back = torch.linalg.pinv(self.A)
        with torch.no_grad():
            for j, mechanism in enumerate(scm.mechanisms, start=1):
                mechanism.weight.copy_((self.G * self.adjacency)[:j, j : j + 1])
            decoder.linear.weight.copy_(back.mT)
            decoder.linear.bias.copy_(self.centre - self.offset @ back)
            decoder.set_scale(torch.full((data.g,), 1e-2))
        return cge.CellModel(prior, scm, decoder).eval()


def order_of(y: Tensor, env: Tensor, control: int, target: dict[int, int]) -> tuple[list[int], list[Tensor]]:
    """Latents from sources to sinks, and the vector ``[d]`` by which each one's cause is read from ``y [n, d]``.

    Parameters
    ----------
    target : dict
        Environment → the one latent it moves.
    """
    basis = torch.eye(y.shape[1], dtype=y.dtype)
    left, order, readers = sorted(set(target.values())), [], []
    while left:
        part = y @ basis
        reference = part[env == control]
        whiten = torch.linalg.cholesky(_covariance(reference)).inverse().mT

        def change(latent: int, part: Tensor = part, whiten: Tensor = whiten) -> float:
            moved = [part[env == e] @ whiten for e, j in target.items() if j == latent]
            identity = torch.eye(part.shape[1], dtype=part.dtype)
            return max(float((_covariance(m) - identity).square().sum()) for m in moved)

        sink = min(left, key=change)
        cells = torch.isin(env, torch.tensor([e for e, j in target.items() if j == sink]))
        direction = part[cells].mean(0) - reference.mean(0)
        order.insert(0, sink)
        readers.insert(0, basis @ direction / direction.square().sum())
        left.remove(sink)
        complement = torch.linalg.svd(direction.unsqueeze(0))[2][1:]
        basis = basis @ complement.mT
    return order, readers


def maximum_likelihood(data: cge.EnvironmentData, target: dict[int, int], *, steps: int = 300) -> Structure:
    """Order, causes, edges and shifts of the equations above, given which latent each environment moves.

    Starts at the order and the causes of :func:`order_of` and maximises the exact likelihood over everything continuous.
    """
    [control] = data.control
    x, env = data.x.double(), data.env
    centre = x[env == control].mean(0)
    d = len(set(target.values()))
    axes = torch.linalg.svd(x - centre, full_matrices=False)[2][:d].mT
    y = (x - centre) @ axes
    order, readers = order_of(y, env, control, target)
    position = {latent: j for j, latent in enumerate(order)}
    free = torch.zeros(data.n_envs, d, dtype=torch.bool)
    for e, latent in target.items():
        free[e, position[latent]] = True
    start = torch.stack(readers, 1)
    start = start / (y[env == control] @ start).std(0)  # unit noise, as far as one can say yet
    A, offset = start.clone().requires_grad_(), torch.zeros(d, dtype=torch.float64, requires_grad=True)
    G = torch.zeros(d, d, dtype=torch.float64, requires_grad=True)
    shift = ((y @ start).new_zeros(data.n_envs, d)).requires_grad_()
    optimizer = torch.optim.LBFGS([A, offset, G, shift], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        c = y @ A + offset
        z = c - c.relu() @ G.triu(1) - (shift * free).index_select(0, env)
        value = 0.5 * z.square().sum(-1).mean() - torch.linalg.slogdet(A)[1]
        value.backward()
        return value

    optimizer.step(loss)
    G, shift = G.detach().triu(1), (shift * free).detach()
    return Structure(order, axes @ A.detach(), offset.detach(), centre, G, shift)


def _covariance(x: Tensor) -> Tensor:
    return x.mT.cov().reshape(x.shape[1], x.shape[1])
