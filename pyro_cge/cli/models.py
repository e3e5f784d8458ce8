"""Commands of models: simulate, prepare, fit, compare, tune, predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .options import Config, Control, Data, Device, EnvKey, Out, Overrides, Seed, app, new_folder, show

if TYPE_CHECKING:
    import pandas as pd


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    epochs: Annotated[int, typer.Option(help="Training epochs a model.")] = 80,
) -> None:
    """Simulate a cell, fit basic, conditional and Environment VAE, compare them with the truth."""
    from ..demo import demo as run_demo

    new_folder(out)
    table = run_demo(out, seed=seed, epochs=epochs, say=typer.echo)
    show(table)
    typer.echo(f"figures and runs are in {out}/")


@app.command()
def simulate(
    out: Out = Path("simulated.h5ad"),
    graph: Annotated[
        str, typer.Option(help="Latent graph: 'growing network', 'chain', 'empty', ...")
    ] = "growing network",
    latents: int = 5,
    genes: int = 100,
    environments: int = 25,
    per_env: int = 200,
    variance: Annotated[float, typer.Option(help="Variance of the random shifts.")] = 5.0,
    mechanism: str = "noisy linear",
    decoder: str = "neural",
    seed: int = 0,
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
    sources: Annotated[list[Path], typer.Argument(help="GCT or GCTX files.")],
    out: Out = Path("prepared.h5ad"),
    side_table: Annotated[list[Path], typer.Option(help="GEO tables (inst_info, sig_info, pert_info, ...).")] = [],  # noqa: B006
    by: Annotated[list[str], typer.Option(help="Columns that make an environment.")] = ["perturbagen"],  # noqa: B006
    features: Annotated[list[str], typer.Option(help="fingerprint, similarity, log_dose, time, cell_line, ...")] = [],  # noqa: B006
    smiles: Annotated[Path | None, typer.Option(help="Table of perturbagen and smiles.")] = None,
    control: Annotated[list[str], typer.Option(help="Names of control environments.")] = [],  # noqa: B006
    genes: Annotated[str | None, typer.Option(help="'intersection' where files differ in genes.")] = None,
    config: Annotated[Path | None, typer.Option("--filters", help="YAML file of filters.")] = None,
    overrides: Annotated[list[str], typer.Option("--set", help="A filter: landmarks=true, times=[24], ...")] = [],  # noqa: B006
    level: Annotated[int | None, typer.Option(help="Level of the data: 3, 4 or 5.")] = None,
) -> None:
    """Make one .h5ad file of L1000 GCT or GCTX files, with a manifest of what was read and removed."""
    from ..config import read_settings
    from ..data.filters import Filters
    from ..data.prepare import prepare as prepare_files

    manifest = prepare_files(
        sources,
        out,
        side_tables=side_table,
        filters=read_settings(Filters, config, overrides),
        by=by,
        features=features,
        smiles=smiles,
        control=control or None,
        genes=genes,
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
    model: Annotated[
        str,
        typer.Argument(help="A preset: environment, translation, structured, sams, ... (--help of compare lists all)."),
    ],
    data: Data,
    out: Out = Path("runs/fit"),
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Read expression as training goes: files beyond memory (.h5ad, .zarr, .gctx)."),
    ] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs (extra: tensorboard).")] = None,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
) -> None:
    """Fit one model and write a run folder; under torchrun, in several processes."""
    from contextlib import nullcontext

    from ..config import RunConfig, read_settings
    from ..runs import run
    from ..train.distributed import first_process
    from ..train.tensorboard import TensorBoardLog

    settings = read_settings(RunConfig, config, overrides, model=model, seed=seed)
    with TensorBoardLog(tensorboard) if tensorboard is not None and first_process() else nullcontext() as log:
        _, scores = run(
            settings, _read(data, env_key, stream, control), out, device=device, resume=resume, on_record=log
        )
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
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 1,
    device: Device = None,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
) -> None:
    """Fit several models on the same data and split, and compare them in one table."""
    from ..config import RunConfig, read_settings
    from ..runs import run
    from ..train.checkpoint import write_json
    from ..train.distributed import joined

    names = [name.strip() for name in models.split(",")]
    plans = {
        (name, seed): read_settings(RunConfig, config, overrides, model=name, seed=seed)
        for name in names
        for seed in range(seeds)
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with joined() as world:
        world.once(partial(new_folder, out))
        content = _read(data, env_key, control=control)
        for (name, seed), plan in plans.items():
            if world.first:
                typer.echo(f"{name}, seed {seed}")
            _, scores = run(plan, content, out / name / f"seed{seed}", device=device)
            results[name].append(next(scores[part] for part in ("test", "valid", "train") if part in scores))
        if not world.first:
            return
    write_json(out / "compare.json", results)
    means = {
        name: {k: sum(run[k] for run in values) / len(values) for k in values[0]} for name, values in results.items()
    }
    show(_table(means))
    typer.echo(f"means over {seeds} seed(s), held-out part; runs are in {out}/")


@app.command()
def tune(
    data: Data,
    model: Annotated[str | None, typer.Argument(help="A preset; default that of --config.")] = None,
    out: Out = Path("runs/tune"),
    space: Annotated[Path | None, typer.Option(help="YAML file of what to vary, 'lr: 1e-4..1e-2:log' a line.")] = None,
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
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
) -> None:
    """Look for the settings of a model that explain held-out profiles best (Optuna)."""
    from ..config import RunConfig, read_settings
    from ..tune import read_space
    from ..tune import tune as search

    settings = read_settings(RunConfig, config, overrides, model=model, seed=seed)
    varied = read_space(space, vary)
    if storage is None:  # a shared study's processes may share the folder too
        new_folder(out)
    content = _read(data, env_key, control=control)
    found = search(settings, content, varied, trials=trials, storage=storage, study=study, device=device, out=out)
    ends = Counter(trial.state.name.lower() for trial in found.trials)
    typer.echo(f"{len(found.trials)} trials ({', '.join(f'{n} {name}' for name, n in ends.items())})")
    typer.echo(f"best: {found.best_value:.5g} nats a held-out profile, {found.best_params}")
    chosen = found.best_params.get("model", settings.model)
    typer.echo(f"settings: pyro-cge fit {chosen} --data {data} --config {out / 'best.yaml'}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Out = Path("predictions.csv"),
    data: Annotated[Path | None, typer.Option("--data", help="An .h5ad whose environments to predict.")] = None,
    environment: Annotated[list[str], typer.Option(help="Environments of the training data, by name.")] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(help="Monte Carlo samples of the noise.")] = 100,
    seed: int = 0,
    env_key: EnvKey = None,
) -> None:
    """Predict expression in environments, without seeing any of their profiles; one CSV row an environment."""
    import pandas as pd

    from ..runs import load_fit
    from ..train.checkpoint import write_atomically

    fitted = load_fit(run)
    posterior = fitted.posterior(fitted.schema)
    if data is not None:
        wanted: Any = _read(data, env_key).schema()
        names = list(wanted.env_names)
    else:
        wanted = list(environment) or None
        names = wanted or list(fitted.schema.env_names)
    values = posterior.predict(wanted, n_samples=samples, seed=seed)
    table = pd.DataFrame(values.numpy(), index=pd.Index(names, name="environment"), columns=fitted.schema.gene_names)
    write_atomically(out, table.to_csv().encode())
    typer.echo(f"{out}: {len(table):,} environments × {table.shape[1]:,} genes")


def _read(path: Path, env_key: str | None, streamed: bool = False, control: Sequence[str] = ()) -> Any:
    if streamed:
        from ..data.opening import stream

        return stream(path, env_key, control=list(control) or None)
    if {".csv", ".tsv", ".txt"} & set(path.suffixes):
        from ..data.tables import read_table

        return read_table(path, env_column=env_key or "environment", control=list(control) or None)
    from ..data.anndata import read_h5ad

    return read_h5ad(path, env_key=env_key, control=list(control) or None)


def _table(columns: dict[str, dict[str, float]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)
