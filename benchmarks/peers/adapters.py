"""Peers' own code, imported from a checkout: the same arrays go in, their own loss and step are called.

Nothing of theirs is here but the names of what is called. Each adapter raises :class:`Missing` with what to do when the
checkout, or a package it imports, is not there.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from arrays import Arrays
from contenders import LR, Contender, Size, of_tensors, scores, squared_error_elbo
from torch import Tensor


class Missing(Exception):
    """A checkout, or a package it needs, is not there."""


@contextmanager
def checkout(path: Path, package: str) -> Iterator[None]:
    """The folder is on the import path inside."""
    if not (path / package).is_dir():
        raise Missing(f"{path} has no folder {package}/: give the root of a checkout")
    sys.path.insert(0, str(path))
    try:
        yield
    except ModuleNotFoundError as error:
        raise Missing(f"the code in {path} imports {error.name!r}, which is not installed") from error
    finally:
        sys.path.remove(str(path))


def paper(path: Path, train: Arrays, held: Arrays, size: Size, seed: int) -> list[Contender]:
    """The paper's ``basic_VAE`` and ``env_mu_prior_VAE`` (``ai.causalcell``), one step of theirs a batch."""
    with checkout(path, "ai"):
        basic = importlib.import_module("ai.causalcell.models.autoencoder").VariationalAutoEncoder
        prior = importlib.import_module("ai.causalcell.models.env_prior_models")
    g, f = train.x.shape[1], train.features.shape[1]
    given: dict[str, Any] = {
        "enc_layers": [g, size.hidden, size.d],
        "dec_layers": [size.d, size.hidden, g],
        "optimizer_params": {"rec_optimizer": {"Adam": {"lr": LR}}},
    }
    torch.manual_seed(seed)
    models = {
        "basic": basic(**given),
        "environment": prior.EnvironmentMuPriorVariationalAutoEncoder(**given, aux_layers=[f, size.hidden, size.d]),
    }

    def contender(match: str, model: Any) -> Contender:
        def step(batch: tuple[Tensor, Tensor]) -> None:
            model.forward_backward_update(*batch)

        def held_out() -> dict[str, float]:
            x, e = held.x, held.features
            with torch.no_grad():
                loss, _ = model.forward_loss(x, e)
                mean = model.decoder(model.embed(x if match == "basic" else torch.cat([x, e], 1))[0])
            return scores(x, mean, squared_error_elbo(float(loss), x))

        tensors, loader = of_tensors(train.x, train.features)
        return Contender(f"paper's code: {match}", match, tensors, loader, step, held_out)

    return [contender(*item) for item in models.items()]


def sams(path: Path, train: Arrays, held: Arrays, size: Size, seed: int) -> list[Contender]:
    """SAMS-VAE (1 and 5 particles), and sVAE+ as its authors re-implemented it (``sams_vae.models``)."""
    with checkout(path, "sams_vae"):
        models = importlib.import_module("sams_vae.models")
    g, envs = train.x.shape[1], train.n_envs
    doses = [torch.nn.functional.one_hot(part.env, envs)[:, 1:].float() for part in (train, held)]  # 0 is the control
    counts = doses[0].sum(0)
    decoder: dict[str, Any] = {
        "likelihood_key": "normal_fixed_variance",
        "decoder_n_layers": 1,
        "decoder_n_hidden": size.hidden,
    }
    shape = {"n_latent": size.d, "n_treatments": envs - 1, "n_phenos": g}

    def contender(name: str, match: str, particles: int) -> Contender:
        torch.manual_seed(seed)
        if match == "sams_vae":
            model = models.SAMSVAEModel(**shape, **decoder, mask_prior_prob=0.1, embedding_prior_scale=1.0)
            guide = models.SAMSVAEMeanFieldNormalGuide(
                **shape,
                basal_encoder_n_layers=1,
                basal_encoder_n_hidden=size.hidden,
                basal_encoder_input_normalization=None,
                x_normalization_stats=None,
            )
            objective = models.SAMSVAE_ELBOLossModule(model, guide)
        else:
            model = models.SVAEPlusModel(
                **shape, **decoder, mask_beta_concentration_1=1.0, mask_beta_concentration_2=10.0
            )
            guide = models.SVAEPlusGuide(
                **shape,
                mask_init_logits=2.0,
                encoder_n_layers=1,
                encoder_n_hidden=size.hidden,
                encoder_input_normalization=None,
                x_normalization_stats=None,
            )
            objective = models.SVAEPlus_ELBOLossModule(model, guide)
        adam = torch.optim.Adam(objective.parameters(), lr=LR)

        def step(batch: tuple[Tensor, Tensor]) -> None:
            loss, _ = objective.loss(X=batch[0], D=batch[1], D_obs_counts=counts, n_particles=particles)
            adam.zero_grad()
            loss.backward()
            adam.step()

        def held_out() -> dict[str, float]:
            with torch.no_grad():
                loss, _ = objective.loss(X=held.x, D=doses[1], D_obs_counts=doses[1].sum(0), n_particles=10)
                _, laws, _ = objective.forward(X=held.x, D=doses[1], n_particles=10)
            return scores(held.x, laws["p_x"].mean.mean(0), -float(loss))

        tensors, loader = of_tensors(train.x, doses[0])
        return Contender(name, match, tensors, loader, step, held_out)

    return [
        contender("SAMS-VAE's code, 1 particle", "sams_vae", 1),
        contender("SAMS-VAE's code, 5 particles", "sams_vae", 5),
        contender("SAMS-VAE's code: sVAE+", "svae_plus", 1),
    ]


def svae(path: Path, train: Arrays, held: Arrays, size: Size, seed: int) -> list[Contender]:
    """sVAE+ (``svae._module``, on scvi-tools 0.18): counts, negative binomial, inference and generation per batch."""
    with checkout(path, "svae"):
        package = types.ModuleType("svae")  # its __init__ asks for more than the module does
        package.__path__ = [str(path / "svae")]
        sys.modules.setdefault("svae", package)
        module = importlib.import_module("svae._module").SpikeSlabVAEModule
    keys = importlib.import_module("scvi").REGISTRY_KEYS
    torch.manual_seed(seed)
    net = module(
        n_input=train.counts.shape[1],
        n_batch=1,
        n_labels=train.n_envs,
        n_hidden=size.hidden,
        n_latent=size.d,
        use_batch_norm="none",
        dropout_rate=0.0,
    )
    adam = torch.optim.Adam(net.parameters(), lr=LR)

    def terms(x: Tensor, env: Tensor) -> tuple[Any, Tensor]:
        tensors = {keys.X_KEY: x, keys.BATCH_KEY: torch.zeros(len(x), 1), keys.LABELS_KEY: env[:, None]}
        inferred = net.inference(**net._get_inference_input(tensors))
        generated = net.generative(**net._get_generative_input(tensors, inferred))
        return net.loss(tensors, inferred, generated, n_obs=len(train.x)), generated["px"].mean

    def step(batch: tuple[Tensor, Tensor]) -> None:
        adam.zero_grad()
        terms(*batch)[0].loss.backward()
        adam.step()

    def held_out() -> dict[str, float]:
        with torch.no_grad():
            losses, mean = terms(held.counts, held.env)
        local = losses.reconstruction_loss + losses.kl_local["kl_divergence_z"]
        return scores(held.counts, mean, -float(local.mean()))

    tensors, loader = of_tensors(train.counts, train.env)
    return [Contender("sVAE+'s code (counts)", "svae_plus, counts", tensors, loader, step, held_out)]


ADAPTERS = {"paper": paper, "sams": sams, "svae": svae}
