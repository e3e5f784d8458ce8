"""Writing an affine change of the latents, ``z' = (z − centre) @ matrix``, into the weights of a model and its guide."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ..data.profiles import Profiles
from ..errors import ConfigError
from ..guides.amortized import LOG_SCALE_RANGE, AmortizedGuide
from ..guides.conditioning import OnShift
from ..models.cell import CellModel
from ..models.decoders import ConditionalDecoder, Decoder, LinearDecoder, MLPDecoder
from ..models.networks import EnvironmentNetwork
from ..models.priors import LOG_SCALE_BOUND, DensePrior

BATCH = 4096


def check_foldable(model: CellModel, guide: AmortizedGuide) -> None:
    """Whether latents may be turned at all, and whether the weights can take the turn.

    Raises
    ------
    ConfigError
        Naming the part that cannot, and what to use instead.
    """
    prior = model.prior
    if type(prior) is not DensePrior or prior.targets is not None or prior.moves == "scale":
        raise ConfigError(
            f"the rotation starts from a fit with a DensePrior that moves means and knows no targets, got "
            f"{type(prior).__name__}; fit with DensePrior(data, d), rotate, then transfer() to the sparse prior"
        )
    if len(model.scm.layers) > 1 or model.scm.own_noise or any(True for _ in model.scm.parameters()):
        raise ConfigError("the rotation needs C = Z: fit with scm=None (a graph among latents fixes their axes)")
    if not isinstance(model.decoder, LinearDecoder | MLPDecoder | ConditionalDecoder):
        raise ConfigError(
            f"the rotation is folded into the first layer of a linear or MLP decoder, got "
            f"{type(model.decoder).__name__}, whose sparse support would not survive it"
        )
    if type(guide) is not AmortizedGuide or any(isinstance(c, OnShift) for c in guide.conditions):
        kind = type(guide).__name__ if type(guide) is not AmortizedGuide else "conditioning='shift'"
        raise ConfigError(
            f"the rotation is folded into an AmortizedGuide with conditioning None, 'concat' or 'film', got {kind}"
        )


@torch.no_grad()
def fold(
    model: CellModel, guide: AmortizedGuide, data: Profiles, centre: Tensor, matrix: Tensor, loc: Tensor
) -> tuple[CellModel, AmortizedGuide]:
    """Copies of model and guide in the coordinates ``z' = (z − centre) @ matrix``.

    Posterior means turn exactly, and the decoder undoes it: reconstructions stay. What a diagonal Gaussian cannot turn
    (posterior scales, the environments' scales) becomes the diagonal of the turned covariance, by least squares on the
    last hidden layer. The reference law is N(0, I) in the new coordinates. Environments that a prior knows as free rows
    get ``loc`` for their means, which maximises the ELBO given the encoder; a network's outputs are turned.

    Parameters
    ----------
    data : EnvironmentData or StreamedData
        Standardised as in training.
    centre : Tensor ``[d]``
    matrix : Tensor ``[d, d]``
        Invertible.
    loc : Tensor ``[E, d]``
        Mean posterior noise of each environment, in the new coordinates.
    """
    model, guide = copy.deepcopy((model, guide))  # together: the guide refers to the model
    device = next(model.parameters()).device
    data, centre, matrix = data.to(device), centre.double().to(device), matrix.double().to(device)
    _turn_posterior_scales(guide, data, matrix)
    head = guide.head
    _turn_rows(head.weight[: guide.d], head.bias[: guide.d], centre, matrix)
    first = first_layer(model.decoder)
    weight = first.weight.double()
    first.bias.add_((weight @ centre).to(first.bias))
    first.weight.copy_(torch.linalg.solve(matrix, weight.mT).mT)
    _turn_prior(cast(DensePrior, model.prior), data, centre, matrix, loc.to(device))
    return model, guide


def first_layer(decoder: Decoder) -> nn.Linear:
    if isinstance(decoder, LinearDecoder):
        return decoder.linear
    return cast(nn.Linear, decoder.network[0] if isinstance(decoder, MLPDecoder) else decoder.latent)


def _turn_rows(weight: Tensor, bias: Tensor, centre: Tensor, matrix: Tensor) -> None:
    """Outputs ``y`` of a linear layer (views of its rows) become ``(y − centre) @ matrix``."""
    weight.copy_(matrix.mT @ weight.double())
    bias.copy_((bias.double() - centre) @ matrix)


def _turn_posterior_scales(guide: AmortizedGuide, data: Profiles, matrix: Tensor) -> None:
    d, width = guide.d, guide.head.in_features + 1
    gram, products = matrix.new_zeros(width, width), matrix.new_zeros(width, d)
    for batch in data.batches(BATCH):
        hidden = _with_ones(guide.hidden_layer(batch).double())
        variance = (2 * guide.encode(batch)[1].double()).exp() @ matrix.square()
        gram += hidden.mT @ hidden
        products += hidden.mT @ _unclamped(0.5 * variance.log(), *LOG_SCALE_RANGE)
    _set_rows(guide.head, slice(d, 2 * d), torch.linalg.pinv(gram, hermitian=True) @ products)


def _turn_prior(prior: DensePrior, data: Profiles, centre: Tensor, matrix: Tensor, loc: Tensor) -> None:
    d, network = prior.d, prior.network
    everything = data.cells(torch.arange(data.n_envs, device=data.env.device))
    scales = _environment_scales(network(everything)[:, d:].double(), matrix) if prior.moves == "both" else None
    if network.table is not None:
        table = network.table.weight
        turned = (table[:, :d].double() - centre) @ matrix
        table[:, :d] = torch.where(data.env_counts.unsqueeze(-1) > 0, loc, turned).to(table)
        if scales is not None:
            table[:, d:] = scales.to(table)
        return
    last, hidden = _last_layer(network), _last_hidden(network, data)
    if scales is not None:
        _set_rows(last, slice(d, 2 * d), torch.linalg.pinv(hidden) @ scales)
    _turn_rows(last.weight[:d], last.bias[:d], centre, matrix)


def _environment_scales(raw: Tensor, matrix: Tensor) -> Tensor:
    """Unbounded log scales after the turn, relative to the reference, which stays at one."""
    low, high = -LOG_SCALE_BOUND, LOG_SCALE_BOUND
    middle, half = (low + high) / 2, (high - low) / 2
    variance = (2 * (middle + half * torch.tanh((raw - middle) / half))).exp()
    turned = variance @ matrix.square() / matrix.square().sum(0)
    return _unclamped(0.5 * turned.log(), low, high)


def _last_layer(network: EnvironmentNetwork) -> nn.Linear:
    return cast(nn.Linear, cast(nn.Sequential, network.network)[-1])


def _last_hidden(network: EnvironmentNetwork, data: Profiles) -> Tensor:
    body = cast(nn.Sequential, network.network)[:-1]
    return _with_ones(body(cast(Tensor, data.env_features)).double())


def _set_rows(layer: nn.Linear, rows: slice, coefficients: Tensor) -> None:
    """Write regression coefficients ``[inputs + 1, outputs]``, the intercept last."""
    layer.weight[rows] = coefficients[:-1].mT.to(layer.weight)
    layer.bias[rows] = coefficients[-1].to(layer.bias)


def _with_ones(hidden: Tensor) -> Tensor:
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], -1)


def _unclamped(value: Tensor, low: float, high: float) -> Tensor:
    """Inverse of :func:`~pyro_cge.models.networks.soft_clamp`, kept off its asymptotes."""
    middle, half = (low + high) / 2, (high - low) / 2
    return middle + half * torch.atanh(((value - middle) / half).clamp(-0.999, 0.999))
