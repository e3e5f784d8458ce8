"""Commands of models: simulate, prepare, fit, compare, tune, predict."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import ConfigError
from ..folders import check_finished, check_new, check_run, finished_fits
from .options import (
    Config,
    Control,
    Data,
    Device,
    EnvKey,
    FeaturesKey,
    Layer,
    Out,
    Overrides,
    Seed,
    Stream,
    app,
    check_device,
    read,
    readable,
    say,
    show,
    there,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..data.environment import EnvironmentData

STATES = {"running": "still running or killed"}  # of a trial; the others are called as Optuna calls them


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    epochs: Annotated[int, typer.Option(help="Training epochs a model.")] = 80,
) -> None:
    """Simulate a cell, fit basic, conditional and Environment VAE, compare them with the truth."""
    check_new(out)
    from ..demo import demo as run_demo

    table = run_demo(out, seed=seed, epochs=epochs, say=typer.echo)
    show(table)
    typer.echo(f"figures and runs are in {out}/")


@app.command()
def simulate(
    out: Out = Path("simulated.h5ad"),
    graph: Annotated[
        str, typer.Option(help="Latent graph: 'growing network', 'chain', 'empty', 'erdos renyi', 'scale free', ...")
    ] = "growing network",
    latents: Annotated[int, typer.Option(help="Latent causes.")] = 5,
    genes: Annotated[int, typer.Option(help="Genes.")] = 100,
    environments: Annotated[int, typer.Option(help="Environments beside the control.")] = 25,
    per_env: Annotated[int, typer.Option(help="Profiles of each environment.")] = 200,
    variance: Annotated[float, typer.Option(help="Variance of the random shifts.")] = 5.0,
    mechanism: Annotated[
        str, typer.Option(help="Of a latent cause: linear, 'noisy linear', neural, binary, ...")
    ] = "noisy linear",
    decoder: Annotated[str, typer.Option(help="From causes to genes: linear or neural.")] = "neural",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Simulate expression under random noise interventions, truth included, as an .h5ad file."""
    from .. import simulate as simulator
    from ..data.anndata import write_h5ad

    design = simulator.random_shifts(latents, environments, variance=variance, cover=True, seed=seed)
    truth = simulator.simulator(
        graph,
        n_latents=latents,
        n_genes=genes,
        mechanism=cast(Any, mechanism),
        decoder=cast(Any, decoder),
        environments=design,
        seed=seed,
    )
    data = truth.sample(per_env, seed=seed)
    write_h5ad(data, out)
    typer.echo(f"{out}: {data}")


@app.command()
def prepare(
    sources: Annotated[list[Path], typer.Argument(callback=there, help="GCT or GCTX files, .gz or not.")],
    out: Out = Path("prepared.h5ad"),
    side_table: Annotated[
        list[Path], typer.Option(callback=there, help="GEO tables (inst_info, sig_info, pert_info, ...).")
    ] = [],  # noqa: B006
    by: Annotated[list[str], typer.Option(help="Columns that make an environment.")] = ["perturbagen"],  # noqa: B006
    features: Annotated[list[str], typer.Option(help="fingerprint, similarity, log_dose, time, cell_line, ...")] = [],  # noqa: B006
    smiles: Annotated[Path | None, typer.Option(callback=there, help="Table of perturbagen and smiles.")] = None,
    control: Annotated[list[str], typer.Option(help="Names of control environments.")] = [],  # noqa: B006
    genes: Annotated[str | None, typer.Option(help="'intersection' where files differ in genes.")] = None,
    gene_id: Annotated[
        str | None, typer.Option(help="Column of the genes' metadata to name them by (pr_gene_id, pr_gene_symbol).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--filters", callback=there, help="YAML file of filters (pyro-cge settings prepare).")
    ] = None,
    overrides: Annotated[list[str], typer.Option("--set", help="A filter: landmarks=true, times=[24], ...")] = [],  # noqa: B006
    level: Annotated[int | None, typer.Option(help="Level of the data: 3, 4 or 5.")] = None,
) -> None:
    """Make one .h5ad file of L1000 GCT or GCTX files, with a manifest of what was read and removed."""
    from ..config import read_settings
    from ..data.filters import Filters

    filters = read_settings(Filters, config, overrides)
    from ..data.prepare import prepare as prepare_files

    manifest = prepare_files(
        sources,
        out,
        side_tables=side_table,
        filters=filters,
        by=by,
        features=features,
        smiles=smiles,
        control=control or None,
        genes=genes,
        gene_id=gene_id,
        level=level,
    )
    for row in manifest["removed"]:
        typer.echo(f"  {row['filter']}: removed {row['removed']:,} {row['of']}, kept {row['kept']:,}")
    counts = manifest["counts"]
    typer.echo(
        f"{out}: {counts['profiles']:,} profiles × {counts['genes']:,} genes, {counts['environments']:,} environments "
        f"({counts['control_environments']} control, {counts['features']} features)"
    )


@app.command()
def fit(
    data: Data,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A preset: environment, translation, structured, sams, ... (--help of compare lists all); default that "
            "of --config, or environment."
        ),
    ] = None,
    out: Out = Path("runs/fit"),
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")] = False,
    stream: Stream = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs (extra: tensorboard).")] = None,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
    features_key: FeaturesKey = None,
    layer: Layer = None,
) -> None:
    """Fit one model and write a run folder; under torchrun, in several processes."""
    from ..config import RunConfig, read_settings

    settings = read_settings(RunConfig, config, overrides, model=model, seed=seed)
    readable(data, stream, features_key, layer)
    begun = check_run(settings.model_dump(mode="json"), out, resume)
    from contextlib import nullcontext

    from ..runs import run
    from ..train.distributed import first_process
    from ..train.tensorboard import TensorBoardLog

    check_device(device)
    if resume and not begun and first_process():
        say(f"{out} holds no run yet: starting anew")
    with TensorBoardLog(tensorboard) if tensorboard is not None and first_process() else nullcontext() as log:
        content = read(data, env_key, stream, control, features_key, layer)
        _, scores = run(settings, content, out, device=device, resume=resume, progress=True, on_record=log)
    if first_process():
        show(_table(scores))
        typer.echo(f"run folder: {out}")


@app.command()
def compare(
    data: Data,
    models: Annotated[
        str,
        typer.Option(
            help="Comma-separated: basic, conditional, environment, dense, translation, structured, structured_translation, "
            "adversarial, sams, svae_plus, discrepancy."
        ),
    ] = "basic,conditional,environment",
    out: Out = Path("runs/compare"),
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; each splits and initialises anew.")] = 1,
    device: Device = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue in --out: fits that are finished stay, more models and seeds may join."
        ),
    ] = False,
    stream: Stream = False,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
    features_key: FeaturesKey = None,
    layer: Layer = None,
) -> None:
    """Fit several models on the same data and split, and compare them in one table.

    Seeds are counted from that of the settings, 0 by default. Each model and seed has a run folder in --out, and
    compare.json the figures of all of them, on the part held out.
    """
    from ..config import RunConfig, read_settings

    if any(item.partition("=")[0].strip() == "model" for item in overrides):
        raise ConfigError("compare takes the names of its models from --models: leave --set model=… out")

    def planned(name: str, **seed: int) -> RunConfig:
        texts = [f"{key}={value}" for key, value in {"model": name, **seed}.items()]
        return read_settings(RunConfig, config, [*overrides, *texts])

    names = [name.strip() for name in models.split(",")]
    first = planned(names[0]).seed
    wanted = [(name, seed) for name in names for seed in range(first, first + seeds)]
    # What is there already stays part of the comparison; settings and data are checked for it, too.
    wanted += [pair for pair in finished_fits(out) if pair not in wanted] if resume else []
    plans = {(name, seed): planned(name, seed=seed) for name, seed in wanted}
    readable(data, stream, features_key, layer)
    if not resume:
        check_new(out, " (or go on with what it holds: --resume)")
    for (name, seed), plan in plans.items():
        check_run(plan.model_dump(mode="json"), out / name / f"seed{seed}", resume)
    from ..metrics import t_interval
    from ..runs import run
    from ..train.checkpoint import write_json
    from ..train.distributed import joined

    check_device(device)
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _ in plans}
    with joined() as world:
        if not resume:
            world.once(partial(check_new, out))
        elif world.first and not out.exists():
            say(f"{out} holds no run yet: starting anew")
        content = read(data, env_key, stream, control, features_key, layer)
        for (name, seed), plan in plans.items():
            if world.first:
                say(f"{name}, seed {seed}")
            _, scores = run(plan, content, out / name / f"seed{seed}", device=device, resume=resume, progress=True)
            results[name].append(next(scores[part] for part in ("test", "valid", "train") if part in scores))
        if not world.first:
            return
    write_json(out / "compare.json", results)

    def over_seeds(values: list[float]) -> str | float:
        mean = sum(values) / len(values)
        return mean if len(values) == 1 or mean != mean else f"{mean:.3g} ± {t_interval(values)[1] - mean:.2g}"

    show(
        _table(
            {name: {k: over_seeds([figures[k] for figures in runs]) for k in runs[0]} for name, runs in results.items()}
        )
    )
    several = "means over seeds ± half of their 95 % t interval, " if len(plans) > len(results) else ""
    typer.echo(f"{several}held-out part; runs are in {out}/")


@app.command()
def tune(
    data: Data,
    model: Annotated[str | None, typer.Argument(help="A preset; default that of --config.")] = None,
    out: Out = Path("runs/tune"),
    space: Annotated[
        Path | None, typer.Option(callback=there, help="YAML file of what to vary, 'lr: 1e-4..1e-2:log' a line.")
    ] = None,
    vary: Annotated[
        list[str], typer.Option(help="setting=low..high, setting=low..high:log or setting=a|b; may be repeated.")
    ] = [],  # noqa: B006
    storage: Annotated[
        str | None, typer.Option(help="Database such as sqlite:///study.db: goes on, and may be shared by processes.")
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in --storage.")] = "pyro-cge",
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, by whatever processes.")] = 50,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    stream: Stream = False,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
    features_key: FeaturesKey = None,
    layer: Layer = None,
) -> None:
    """Look for the settings of a model that explain held-out profiles best (Optuna).

    The folder gets best.yaml (settings of the best trial, its epochs too, for fit --config), trials.csv and space.yaml.
    """
    from ..config import RunConfig, read_settings
    from ..tune import laws, read_space, still_improving
    from ..tune import tune as search

    settings = read_settings(RunConfig, config, overrides, model=model, seed=seed)
    varied = read_space(space, vary)
    laws(settings, varied)
    readable(data, stream, features_key, layer)
    if storage is None:  # a shared study's processes may share the folder too
        check_new(out)
    check_device(device)
    content = read(data, env_key, stream, control, features_key, layer)
    found = search(settings, content, varied, trials=trials, storage=storage, study=study, device=device, out=out)
    ends = Counter(trial.state.name.lower() for trial in found.trials)
    typer.echo(f"{len(found.trials)} trials ({', '.join(f'{n} {STATES.get(name, name)}' for name, n in ends.items())})")
    typer.echo(f"best: {found.best_value:.5g} nats a held-out profile, {found.best_params}")
    words = ["pyro-cge", "fit", "--data", data, "--config", out / "best.yaml", "--out", out / "best"]
    words += ["--stream"] * stream + [word for name in control for word in ("--control", name)]
    keys = {"--env-key": env_key, "--features-key": features_key, "--layer": layer}
    words += [word for key, value in keys.items() if value is not None for word in (key, value)]
    typer.echo(f"fit it: {shlex.join(map(str, words))}")
    if still_improving(settings, found):
        typer.echo("its loss still fell in its last epoch: add --set epochs=N to train longer than the search did")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(callback=there, help="A run folder.")],
    out: Out = Path("predictions.csv"),
    data: Annotated[
        Path | None, typer.Option("--data", callback=there, help="An .h5ad whose environments to predict.")
    ] = None,
    environment: Annotated[
        list[str],
        typer.Option(help="Only these environments, of --data or else of the training data; may be repeated."),
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(min=1, help="Monte Carlo samples of the noise.")] = 100,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
    features_key: FeaturesKey = None,
    layer: Layer = None,
) -> None:
    """Predict expression in environments, without seeing any of their profiles; one CSV row an environment."""
    check_finished(run)
    if data is not None:
        readable(data, False, features_key, layer)
    import pandas as pd

    from ..runs import load_fit
    from ..train.checkpoint import write_atomically

    fitted = load_fit(run)
    wanted: Any = list(environment) or None
    names = wanted or list(fitted.schema.env_names)
    if data is not None:
        wanted = only(read(data, env_key, False, control, features_key, layer).schema(), environment)
        names = list(wanted.env_names)
    values = fitted.posterior(fitted.schema).predict(wanted, n_samples=samples, seed=seed)
    table = pd.DataFrame(values.numpy(), index=pd.Index(names, name="environment"), columns=fitted.schema.gene_names)
    write_atomically(out, table.to_csv().encode())
    typer.echo(f"{out}: {len(table):,} environments × {table.shape[1]:,} genes")


def only(schema: EnvironmentData, names: Sequence[str]) -> EnvironmentData:
    """The environments ``names`` of a schema, or all of them."""
    if not names:
        return schema
    rows, features = schema.environments(names), schema.env_features
    return replace(
        schema,
        env_names=names,
        env_features=None if features is None else features[rows],
        env_table=schema.env_table.iloc[rows],
        control=[i for i, row in enumerate(rows) if row in schema.control],
    )


def _table(columns: Mapping[str, Mapping[str, float | str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)
