"""A run: fit a preset on a data set and keep everything needed to use and to judge it in one folder.

::

    config.json        settings                        history.csv   one row an epoch
    versions.json      package versions, data hash     metrics.json  losses and errors by part
    split.json         rows of train, valid, test      figures/      learning curves, interventions, ...
    weights.safetensors  weights, scaler, genes and environments     checkpoint.safetensors  for --resume

Each file is written whole or not at all, and after a kill at any moment the same command with ``--resume`` ends with the
weights of a run that was never killed, bit for bit on the CPU (one machine, one number of threads).
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import metrics, sites
from .config import RunConfig, validated
from .data.environment import EnvironmentData
from .data.files import clear_leftovers, read_frame
from .data.profiles import Profiles
from .data.splits import Split, split
from .data.standardize import Standardizer
from .data.streamed import StreamedData
from .errors import CheckpointError, DataError, PyroCgeError
from .folders import check_finished, check_run, read_json
from .guides.amortized import AmortizedGuide
from .models.cell import CellModel
from .models.priors import SoftmaxPrior, annealed
from .objectives.adversarial import AdversarialPrior
from .objectives.elbo import Elbo
from .objectives.irm import Irm
from .objectives.mmd import Mmd
from .presets import PRESETS
from .seeds import isolated
from .train.checkpoint import (
    load_into,
    load_tensors,
    save_tensors,
    versions,
    write_atomically,
    write_json,
)
from .train.distributed import joined
from .train.fit import Fit, fit
from .train.fold import check_foldable
from .train.loop import Objective, evaluate
from .train.rotation import rotate

SCORED = 2_000_000  # entries of expression scored at a time
SHOWN = 10_000  # profiles of streamed data that are drawn


def build(config: RunConfig, data: Profiles) -> tuple[CellModel, AmortizedGuide]:
    """Model and guide of a configuration, initialised from its seed."""
    preset = PRESETS[config.model]
    accepted = inspect.signature(preset).parameters
    options = {name: value for name, value in config if name in accepted}
    for name, unset in (("conditioning", "preset"), ("moves", None)):
        if options.get(name) == unset:
            options.pop(name, None)
    with isolated(config.seed):
        model, guide = preset(cast(Any, data), config.latents, **options)
    if config.rotate:
        check_foldable(model, guide)  # before it is trained
    return model, guide


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


def make_split(config: RunConfig, data: Profiles) -> Split:
    """The split a configuration asks for."""
    by = config.split
    if by == "auto":
        by = "environment" if data.n_features is not None else "random"
    if by.startswith("column:"):
        return Split.from_column(data, by.removeprefix("column:"))
    return split(data, by=by.removeprefix("group:"), fractions=config.fractions, seed=config.seed)


def run(
    config: RunConfig,
    data: Profiles,
    out: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_record: Callable[[Mapping[str, float]], None] | None = None,
) -> tuple[Fit, dict[str, dict[str, float]]]:
    """Fit and write the run folder; returns the fit and its metrics by part.

    Under ``torchrun`` all processes train, and the first writes. ``on_record`` is called with each epoch's row.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is False, or another configuration is resumed.
    CheckpointError
        If the folder cannot be written (before training starts), or the data or their split changed since the run that
        is resumed.
    """
    out = Path(out)
    with joined() as world:
        model, guide = build(config, data)  # first: settings that cannot be built leave no folder behind
        parts = world.once(partial(begin, config, data, out, resume))
        result = train(
            model,
            guide,
            config,
            data,
            parts,
            device=device,
            on_record=on_record,
            checkpoint=out / "checkpoint.safetensors",
            resume=resume,
            progress=progress,
        )
        return result, world.once(partial(end, result, config, data, parts, out))


def train(
    model: CellModel, guide: AmortizedGuide, config: RunConfig, data: Profiles, parts: Split, **options: Any
) -> Fit:
    """Fit what :func:`build` made of a configuration on a split's parts; ``options`` go to ``fit``."""
    valid = data.rows(parts.valid)
    schedule = None
    if config.final_temperature is not None and isinstance(model.prior, SoftmaxPrior):
        schedule = annealed(model.prior, config.temperature, config.final_temperature, config.epochs)
    result = fit(
        model,
        guide,
        data.rows(parts.train),
        objective=objective_of(config, data.schema()),
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
        on_epoch=schedule,
        **options,
    )
    return rotate(result, data.rows(parts.train)) if config.rotate else result


def begin(config: RunConfig, data: Profiles, out: Path, resume: bool) -> Split:
    """Check what the folder holds, and write what is known before training; returns the split."""
    settings, parts = config.model_dump(mode="json"), make_split(config, data)
    if check_run(settings, out, resume):
        kept = out / "versions.json"  # a run killed at its very start has none
        if kept.exists() and (theirs := read_json(kept).get("data")) != data.digest:
            raise CheckpointError(
                f"the data changed since the run in {out} was started: their "
                f"hash is {data.digest[:12]}, {kept.name} has {str(theirs)[:12]}. Give the data it was started with, or choose another folder"
            )
        if (out / "split.json").exists() and not Split.load(out / "split.json").same_rows(parts):
            raise CheckpointError(
                f"the split changed since the run in {out} was started (a column of the data it follows?): give the data "
                "it was started with, or choose another folder"
            )
    if resume:  # also where the very first write was killed
        for folder in (out, out / "figures"):
            clear_leftovers(folder)
    write_json(out / "config.json", settings)
    write_json(out / "versions.json", {"data": data.digest, "sites": sites.VERSION, **versions()})
    parts.save(out / "split.json")
    return parts


def end(result: Fit, config: RunConfig, data: Profiles, parts: Split, out: Path) -> dict[str, dict[str, float]]:
    """Judge the fit by part, and write what is known after training; returns the metrics."""
    scores = {
        name: score(result, data.rows(rows))
        for name, rows in (("train", parts.train), ("valid", parts.valid), ("test", parts.test))
        if len(rows)
    }
    write_atomically(out / "history.csv", result.history.to_csv(index=False).encode())
    write_json(out / "metrics.json", scores)
    save_fit(result, config, out / "weights.safetensors")
    draw(result, shown(data), out / "figures")
    return scores


def shown(data: Profiles) -> EnvironmentData:
    """What is drawn: the data, of streamed ones at most ``SHOWN`` profiles, evenly spaced in the file."""
    if not isinstance(data, StreamedData):
        return cast(EnvironmentData, data)
    return data.rows(np.linspace(0, data.n - 1, min(data.n, SHOWN)).astype(int)).in_memory()


def score(result: Fit, data: Profiles) -> dict[str, float]:
    """Loss, reconstruction and prediction of one part; with a known truth also how well latents are recovered.

    Means over all profiles of :func:`by_profile`.
    """
    figures = evaluate(result.model, result.guide, result.posterior(data).data)
    figures |= metrics.means(by_profile(result, data))
    if data.truth is not None:
        figures |= recovery(result, data)
    return figures


def by_profile(result: Fit, data: Profiles) -> dict[str, Tensor]:
    """Errors and correlations of each profile ``[n]``, with a part of the profiles in memory at a time.

    ``reconstruction_*`` sees the profile, ``prediction_*`` only its environment.
    """
    posterior = result.posterior(data)
    predicted = posterior.predict(n_samples=30)
    parts = []
    for rows in torch.arange(data.n).split(max(1, SCORED // data.g)):
        part = posterior.raw.rows(rows)
        part = part.in_memory() if isinstance(part, StreamedData) else part
        seen = metrics.per_profile(part.x, result.posterior(part).reconstruct())
        unseen = metrics.per_profile(part.x, predicted[part.env])
        parts.append(
            {f"reconstruction_{k}": v for k, v in seen.items()} | {f"prediction_{k}": v for k, v in unseen.items()}
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def recovery(result: Fit, data: Profiles) -> dict[str, float]:
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
        "features": schema.env_table.attrs.get("feature_names"),
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
    path = check_finished(folder)
    tensors, manifest = load_tensors(path)
    if manifest.get("kind") != "run":
        raise CheckpointError(f"{path} holds {manifest.get('kind')!r}, not a run")
    try:
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
        schema.env_table.attrs["feature_names"] = manifest.get("features")  # files of before have none
        scaler = Standardizer(tensors["scaler.mean"], tensors["scaler.scale"], genes)
        best_epoch, settings = manifest["best_epoch"], manifest["settings"]
        model, guide = build(config, schema)
    except (KeyError, TypeError, PyroCgeError) as error:
        raise CheckpointError(f"{path} does not describe a run ({error!r}): fit again") from error
    load_into({"model": model, "guide": guide}, tensors, path)
    history = folder / "history.csv"
    try:
        table = read_frame(history) if history.exists() else pd.DataFrame()
        if history.exists() and "epoch" not in table:
            raise DataError(f"{history}: no column 'epoch'")
    except DataError as error:
        raise CheckpointError(f"cannot read {history} ({error}): restore or remove it, weights need none") from error
    none = np.empty(0, int)
    return Fit(model, guide, schema, scaler, table, best_epoch, settings, none, none)
