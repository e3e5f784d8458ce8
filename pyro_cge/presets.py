"""The paper's models as compositions of parts. A preset returns a ``(model, guide)`` pair.

======================== ================= ============ ====================================
preset                   prior             decoder      encoder sees the environment
======================== ================= ============ ====================================
:func:`basic_vae`        N(0, I)           D(c)         no
:func:`conditional_vae`  N(0, I)           D(c, e)      yes
:func:`environment_vae`  softmax-sparse    D(c)         yes, unless ``conditioning=None``
======================== ================= ============ ====================================

They sit above ``models`` and ``guides`` because they join the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .data.environment import EnvironmentData
from .errors import ConfigError
from .guides.amortized import AmortizedGuide
from .guides.conditioning import Conditioning
from .models.cell import CellModel, ConditionalCellModel
from .models.decoders import ConditionalDecoder, Decoder, LinearDecoder, MLPDecoder
from .models.priors import Moves, SoftmaxPrior, StandardPrior

DecoderKind = Literal["linear", "mlp"]


def basic_vae(
    data: EnvironmentData, d: int, *, hidden: Sequence[int] = (64,), decoder: DecoderKind = "mlp"
) -> tuple[CellModel, AmortizedGuide]:
    """Variational autoencoder that knows nothing of environments: ``z ~ N(0, I)``, ``q(z | x)``."""
    model = CellModel(StandardPrior(data, d), None, _decoder(data, d, hidden, decoder))
    return model, AmortizedGuide(model, None, hidden=hidden)


def conditional_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "concat",
) -> tuple[ConditionalCellModel, AmortizedGuide]:
    """Conditional VAE (Sohn et al. 2015): decoder and encoder see the environment, ``z ~ N(0, I)``."""
    layers = hidden if decoder == "mlp" else ()
    head = ConditionalDecoder(data, d, data.g, hidden=layers)
    model = ConditionalCellModel(StandardPrior(data, d), None, head)
    return model, AmortizedGuide(model, conditioning, hidden=hidden)


def environment_vae(
    data: EnvironmentData,
    d: int,
    *,
    hidden: Sequence[int] = (64,),
    decoder: DecoderKind = "mlp",
    conditioning: Conditioning = "concat",
    temperature: float = 0.5,
    moves: Moves = "both",
) -> tuple[CellModel, AmortizedGuide]:
    """Environment VAE (paper, section 4.5): softmax-sparse prior per environment, decoder blind to it."""
    prior = SoftmaxPrior(data, d, temperature=temperature, hidden=hidden, moves=moves)
    model = CellModel(prior, None, _decoder(data, d, hidden, decoder))
    return model, AmortizedGuide(model, conditioning, hidden=hidden)


PRESETS = {"basic": basic_vae, "conditional": conditional_vae, "environment": environment_vae}


def _decoder(data: EnvironmentData, d: int, hidden: Sequence[int], kind: DecoderKind) -> Decoder:
    if kind == "linear":
        return LinearDecoder(d, data.g)
    if kind == "mlp":
        return MLPDecoder(d, data.g, hidden=hidden)
    raise ConfigError(f"decoder must be 'linear' or 'mlp', got {kind!r}")
