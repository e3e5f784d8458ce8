"""A run: fit a preset on a data set and keep everything needed to use and to judge it in one folder.

::

    config.json        settings                        history.csv   one row an epoch
    versions.json      package versions, data hash     metrics.json  losses and errors by part
    split.json         rows of train, valid, test      figures/      learning curves, interventions, ...
    weights.safetensors  weights, scaler, genes and environments     checkpoint.safetensors  for --resume
"""

from __future__ import annotations

import inspect
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import metrics
from .config import RunConfig, validated
from .data.environment import EnvironmentData
from .data.splits import Split, split
from .data.standardize import Standardizer
from .errors import CheckpointError, ConfigError
from .guides.amortized import AmortizedGuide
from .models.cell import CellModel
from .models.priors import SoftmaxPrior, annealed
from .objectives.adversarial import AdversarialPrior
from .objectives.elbo import Elbo
from .objectives.irm import Irm
from .objectives.mmd import Mmd
from .presets import PRESETS
from .seeds import isolated
from .train.checkpoint import load_into, load_tensors, save_tensors, write_atomically, write_json
from .train.fit import Fit, fit
from .train.loop import Objective, evaluate
from .train.rotation import rotate

PACKAGES = ("pyro-cge", "torch", "pyro-ppl", "numpy", "pandas", "anndata")


def build(config: RunConfig, data: EnvironmentData) -> tuple[CellModel, AmortizedGuide]:
    """Model and guide of a configuration, initialised from its seed."""
    preset = PRESETS[config.model]
    accepted = inspect.signature(preset).parameters
    options = {name: value for name, value in config if name in accepted}
    for name, unset in (("conditioning", "preset"), ("moves", None)):
        if options.get(name) == unset:
            options.pop(name, None)
    with isolated(config.seed):
        return preset(data, config.latents, **options)


def objective_of(config: RunConfig, data: EnvironmentData) -> Objective:
    """What a configuration's model is trained with: the ELBO, the preset's own term, and the IRM penalty if asked for."""
    objective: Objective = Elbo()
    given: dict[str, Any] = {} if config.weight is None else {"weight": config.weight}
    with isolated(config.seed):
        if config.model == "adversarial":
            objective = AdversarialPrior(data, config.latents, **given)
        elif config.model == "discrepancy":
            objective = Mmd(**given)
    return Irm(objective, weight=config.irm) if config.irm else objective


def make_split(config: RunConfig, data: EnvironmentData) -> Split:
    """The split a configuration asks for."""
    by = config.split
    if by == "auto":
        by = "environment" if data.n_features is not None else "random"
    if by.startswith("column:"):
        return Split.from_column(data, by.removeprefix("column:"))
    return split(data, by=by, fractions=config.fractions, seed=config.seed)


def run(
    config: RunConfig,
    data: EnvironmentData,
    out: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> tuple[Fit, dict[str, dict[str, float]]]:
    """Fit and write the run folder; returns the fit and its metrics by part.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is False, or another configuration is resumed.
    CheckpointError
        If the folder cannot be written (before training starts).
    """
    out = Path(out)
    settings = config.model_dump(mode="json")
    if (out / "config.json").exists():
        if not resume:
            raise ConfigError(f"{out} holds a run already: choose another folder, or continue it with --resume")
        previous = json.loads((out / "config.json").read_text())
        if changed := [k for k in settings if k != "epochs" and previous.get(k) != settings[k]]:
            raise ConfigError(f"{out} was run with other settings: {', '.join(changed)} differ")
    write_json(out / "config.json", settings)
    write_json(out / "versions.json", {"data": data.digest, **{name: version(name) for name in PACKAGES}})
    parts = make_split(config, data)
    parts.save(out / "split.json")

    model, guide = build(config, data)
    valid = data.rows(parts.valid)
    schedule = None
    if config.final_temperature is not None and isinstance(model.prior, SoftmaxPrior):
        schedule = annealed(model.prior, config.temperature, config.final_temperature, config.epochs)
    result = fit(
        model,
        guide,
        data.rows(parts.train),
        objective=objective_of(config, data),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        schedule=config.schedule,
        kl_warmup=config.kl_warmup,
        clip=config.clip,
        validation=valid if valid.n else None,
        patience=config.patience,
        standardize=config.standardize,
        seed=config.seed,
        device=device,
        on_epoch=schedule,
        checkpoint=out / "checkpoint.safetensors",
        resume=resume,
        progress=progress,
    )
    if config.rotate:
        result = rotate(result, data.rows(parts.train))
    scores = {
        name: score(result, data.rows(rows))
        for name, rows in (("train", parts.train), ("valid", parts.valid), ("test", parts.test))
        if len(rows)
    }
    write_atomically(out / "history.csv", result.history.to_csv(index=False).encode())
    write_json(out / "metrics.json", scores)
    save_fit(result, config, out / "weights.safetensors")
    draw(result, data, out / "figures")
    return result, scores


def score(result: Fit, data: EnvironmentData) -> dict[str, float]:
    """Loss, reconstruction and prediction of one part; with a known truth also how well latents are recovered.

    ``reconstruction_*`` sees the profile, ``prediction_*`` only its environment.
    """
    posterior = result.posterior(data)
    figures = dict(evaluate(result.model, result.guide, posterior.data).items())
    figures |= {f"reconstruction_{k}": v for k, v in metrics.summarise(data.x, posterior.reconstruct()).items()}
    predicted = posterior.predict(n_samples=30)[posterior.raw.env]
    figures |= {f"prediction_{k}": v for k, v in metrics.summarise(data.x, predicted).items()}
    if data.truth is not None:
        figures |= recovery(result, data)
    return figures


def recovery(result: Fit, data: EnvironmentData) -> dict[str, float]:
    """MCC with the true noise and recovery of the true targets, read from the noise each environment shows.

    The same reading for every model: a latent is named where the mean of its posterior noise in an environment lies
    more than 0.5 (reference sd) from that of the control.
    """
    assert data.truth is not None
    posterior = result.posterior(data)
    matching = metrics.match_latents(posterior.latents().to_numpy(), data.truth.z)
    shift = posterior.aggregate()
    present = data.env_counts > 0
    moved = shift.loc.abs()[present]
    found = metrics.target_recovery(moved, data.truth.targets[present], matching, threshold=0.5)
    return {"mcc": matching.mcc, "target_f1": found.f1, "target_top1": found.top1}


def draw(result: Fit, data: EnvironmentData, folder: Path) -> None:
    """Learning curves, latent interventions and latent pairs as PNG files."""
    from matplotlib import pyplot as plt

    from . import plots

    posterior = result.posterior(data)
    plots.learning_curves(result.history)
    save_figure(folder / "learning_curves.png")
    shift = posterior.shift() if posterior.moves_latents else posterior.aggregate()
    matching = None
    if data.truth is not None:
        matching = metrics.match_latents(posterior.latents().to_numpy(), data.truth.z)
    truth = None if data.truth is None else data.truth.shift
    plots.interventions(shift, truth, matching, env_names=list(posterior.raw.env_names))
    save_figure(folder / "interventions.png")
    moving = shift.strength().sum(-1).argsort(descending=True)[:4].tolist()
    plots.latent_pairs(
        posterior.latents(), posterior.raw.env, env_names=list(posterior.raw.env_names), highlight=moving
    )
    save_figure(folder / "latent_pairs.png")
    plt.close("all")


def save_figure(path: Path) -> None:
    """Write matplotlib's current figure as PNG, atomically, and close it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    plt.savefig(buffer, format="png", dpi=130)
    plt.close()
    write_atomically(path, buffer.getvalue())


def save_fit(result: Fit, config: RunConfig, path: Path) -> None:
    """Weights, scaler, genes and environments in one safetensors file."""
    tensors = {f"model.{k}": v for k, v in result.model.state_dict().items()}
    tensors |= {f"guide.{k}": v for k, v in result.guide.state_dict().items()}
    tensors |= {"scaler.mean": result.scaler.mean, "scaler.scale": result.scaler.scale}
    schema = result.schema
    if schema.env_features is not None:
        tensors["schema.env_features"] = schema.env_features
    manifest = {
        "kind": "run",
        "config": config.model_dump(mode="json"),
        "genes": list(schema.gene_names),
        "environments": list(schema.env_names),
        "control": list(schema.control),
        "best_epoch": result.best_epoch,
        "settings": result.settings,
    }
    save_tensors(path, tensors, manifest)


def load_fit(folder: Path) -> Fit:
    """A run folder's fit, ready to use.

    Raises
    ------
    CheckpointError
        If the folder holds no finished run, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    path = folder / "weights.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no finished run (no {path.name}): run pyro-cge fit, or add --resume")
    tensors, manifest = load_tensors(path)
    if manifest.get("kind") != "run":
        raise CheckpointError(f"{path} holds {manifest.get('kind')!r}, not a run")
    config = validated(RunConfig, manifest["config"], str(path))
    genes = manifest["genes"]
    schema = EnvironmentData(
        x=torch.empty(0, len(genes)),
        env=torch.empty(0, dtype=torch.long),
        gene_names=genes,
        env_names=manifest["environments"],
        env_features=tensors.get("schema.env_features"),
        control=manifest["control"],
    )
    model, guide = build(config, schema)
    load_into({"model": model, "guide": guide}, tensors, path)
    scaler = Standardizer(tensors["scaler.mean"], tensors["scaler.scale"], genes)
    history = folder / "history.csv"
    table = pd.read_csv(history) if history.exists() else pd.DataFrame()
    none = np.empty(0, int)
    return Fit(model, guide, schema, scaler, table, manifest["best_epoch"], manifest["settings"], none, none)
