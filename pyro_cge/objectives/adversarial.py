"""The adversarial prior: an environment may move only what an attention hides from a critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError, DataError, check_sizes
from ..models.networks import EnvironmentNetwork, mlp
from .elbo import Elbo
from .handlers import Drawn


class AdversarialPrior(nn.Module):
    """Adversarial prior autoencoder (paper, section 4.10; figure 3).

    ::

        α(e)    = softmax(attention(e))                      Σ_j α_j = 1: where environment e acts
        Z_count = α(e) ⊗ ε + (1 − α(e)) ⊗ Z,  ε ~ N(0, I)    Z with that part brought back to the reference
        D(e | Z_count) = softmax over e of ⟨f(Z_count), h(e)⟩ + b(e)

        min over D, max over encoder, decoder, attention of  E_q [log p(x | Z) − weight · log D(e | Z_count)]

    The critic tries to tell the environment from what is left; encoder and attention hide it, which they can only do by
    letting each environment move few latents. Both are trained in the same step, by gradient reversal (Ganin et al.
    2016). The critic predicts an environment's representation ``h(e)``, a network on its features or a free row where it
    has none, among the environments of the batch that have profiles: with free rows and no more environments than
    profiles a batch this is a plain softmax classifier.

    An ``nn.Module``: ``fit`` trains its parameters with the model's and keeps them in the checkpoint. A game has no lowest
    loss to stop at: train to the end (``patience=None``), with a weight that rises over most of the run (``kl_warmup``)
    and a rate that falls (``schedule="cosine"``), or encoder and critic go on circling each other.

    Parameters
    ----------
    data : EnvironmentData
        Read for the number of environments and features.
    d : int
        Latents.
    base : objective
        What encoder and decoder maximise beside the game. The paper's has no KL term; it keeps the scale of Z
        comparable with ε, without which nothing stops the encoder from drowning ε, so the default is the ELBO, with the
        model's prior best a :class:`~pyro_cge.models.priors.StandardPrior`. ``Elbo(beta=0)`` is the formula as printed.
    hidden : sequence of int
        Hidden layers of critic and attention; the critic needs one at least.
    weight : float
        Weight of the game for encoder and attention, multiplied by ``warmup``; 0 trains critic and decoder alone. The
        critic itself always learns at full strength.
    """

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        *,
        base: Callable[..., dict[str, Tensor]] | None = None,
        hidden: Sequence[int] = (64,),
        weight: float = 10.0,
    ) -> None:
        super().__init__()
        check_sizes(d=d)
        for size in hidden:
            check_sizes(hidden=size)
        if not 0 <= weight < math.inf:
            raise ConfigError(f"the weight of the adversarial prior must not be negative, got {weight}")
        if not hidden:
            raise ConfigError("the critic needs at least one hidden layer, got hidden=()")
        self.base: Any = Elbo() if base is None else base
        self.d, self.hidden, self.weight = d, tuple(hidden), weight
        self.attention = EnvironmentNetwork(data, d, hidden)
        self.critic = nn.Sequential(mlp([d, *hidden]), nn.ReLU())
        self.environment = EnvironmentNetwork(data, hidden[-1] + 1)

    def __repr__(self) -> str:
        return f"AdversarialPrior(base={self.base!r}, d={self.d}, hidden={self.hidden}, weight={self.weight})"

    def alpha(self, batch: Batch) -> Tensor:
        """Attention ``[E_b, d]``: the share of each latent that is hidden in each environment, summing to one."""
        return torch.softmax(self.attention(batch), -1)

    def counterfactual(self, z: Tensor, batch: Batch) -> Tensor:
        """``Z_count [..., n, d]``: noise ``z [..., n, d]`` with what the environment moves put back to N(0, I)."""
        alpha = self.alpha(batch).index_select(-2, batch.env)
        return alpha * torch.randn_like(z) + (1 - alpha) * z

    def logits(self, z: Tensor, batch: Batch) -> Tensor:
        """The critic's scores ``[..., n, E_b]``; minus infinity for environments that have no profiles at all."""
        rows = self.environment(batch)
        scores = self.critic(z) @ rows[:, :-1].mT + rows[:, -1]
        return scores.masked_fill(batch.env_counts == 0, -torch.inf)

    def forward(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """The terms of ``base``, ``critic`` (its cross-entropy, nats) and ``critic_accuracy``.

        ``loss`` is minus the paper's objective, what encoder, decoder and attention minimise; its gradient for the
        critic's parameters is reversed.
        """
        with Drawn() as drawn:
            terms = self.base(model, guide, batch, warmup=warmup)
        strength = self.weight * warmup
        hidden = _Reversed.apply(self.counterfactual(drawn.cells["z"], batch), strength)
        logits = self.logits(hidden, batch).flatten(0, -2)
        env = batch.env.expand(len(logits) // len(batch), -1).flatten()
        critic = F.cross_entropy(logits, env)
        # Its gradient is that of the critic's loss, its value that of the encoder's.
        game = critic - (1 + strength) * critic.detach()
        accuracy = (logits.argmax(-1) == env).to(logits.dtype).mean()
        return {**terms, "loss": terms["loss"] + game, "critic": critic, "critic_accuracy": accuracy}


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``−strength``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


class Critique(NamedTuple):
    """How well environments can be told apart: held-out ``accuracy``, that of the majority class, standard error."""

    accuracy: float
    chance: float
    error: float


def fresh_critic(
    z: Tensor, env: Tensor, *, hidden: Sequence[int] = (64,), test: float = 0.4, seed: int = 0
) -> Critique:
    """Train a new classifier ``z → environment`` on part of the profiles and judge it on the rest.

    The critic that took part in the game proves nothing: the encoder was trained against it.

    Parameters
    ----------
    z : Tensor ``[n, d]``
        Noise, or its counterfactual (:meth:`AdversarialPrior.counterfactual`).
    env : Tensor ``[n]``
    hidden : sequence of int
        Hidden layers of the classifier.
    test : float
        Share of profiles it is judged on, stratified by environment.

    Returns
    -------
    Critique
        ``accuracy``, ``chance`` (always naming the most frequent environment) and ``error``, the standard error of
        the accuracy.

    Raises
    ------
    DataError
        With fewer than two environments, or fewer than five profiles in one of them.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = z.detach().cpu().double().numpy(), env.cpu().numpy()
    counts = torch.bincount(env)
    counts = counts[counts > 0]
    if len(counts) < 2 or int(counts.min()) < 5:
        raise DataError(
            f"a fresh critic needs two environments or more of five profiles or more each, got {len(counts)} "
            f"environments, the smallest of {int(counts.min()) if len(counts) else 0} profiles"
        )
    train, held, known, wanted = train_test_split(features, labels, test_size=test, stratify=labels, random_state=seed)
    network = MLPClassifier(tuple(hidden), early_stopping=True, n_iter_no_change=20, max_iter=1000, random_state=seed)
    right = make_pipeline(StandardScaler(), network).fit(train, known).predict(held) == wanted
    accuracy = float(right.mean())
    chance = float(torch.bincount(torch.as_tensor(wanted)).max()) / len(wanted)
    return Critique(accuracy, chance, (accuracy * (1 - accuracy) / len(wanted)) ** 0.5)
