"""The command line: ``pyro-cge demo | simulate | prepare | fit | compare | predict | discover | rank-drugs``.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .errors import PyroCgeError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Cell causal embeddings: fit environment-conditioned latent-variable models, inspect latent interventions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Data = Annotated[
    Path,
    typer.Option("--data", help="An .h5ad file (pyro-cge prepare or simulate, or your own), or a CSV or TSV table."),
]
EnvKey = Annotated[str | None, typer.Option(help="obs column that names the environment (files not written by us).")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    epochs: Annotated[int, typer.Option(help="Training epochs a model.")] = 80,
) -> None:
    """Simulate a cell, fit basic, conditional and Environment VAE, compare them with the truth."""
    from .demo import demo as run_demo

    _new_folder(out)
    table = run_demo(out, seed=seed, epochs=epochs, say=typer.echo)
    _show(table)
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
    from . import simulate as simulator
    from .data.anndata import write_h5ad

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
    from .config import read_settings
    from .data.filters import Filters
    from .data.prepare import prepare as prepare_files

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
    env_key: EnvKey = None,
) -> None:
    """Fit one model and write a run folder."""
    from .config import RunConfig, read_settings
    from .runs import run

    settings = read_settings(RunConfig, config, overrides, model=model, seed=seed)
    _, scores = run(settings, _read(data, env_key), out, device=device, resume=resume)
    _show(_table(scores))
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
) -> None:
    """Fit several models on the same data and split, and compare them in one table."""
    from .config import RunConfig, read_settings
    from .runs import run
    from .train.checkpoint import write_json

    names = [name.strip() for name in models.split(",")]
    plans = {
        (name, seed): read_settings(RunConfig, config, overrides, model=name, seed=seed)
        for name in names
        for seed in range(seeds)
    }
    _new_folder(out)
    content = _read(data, env_key)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for (name, seed), plan in plans.items():
        typer.echo(f"{name}, seed {seed}")
        _, scores = run(plan, content, out / name / f"seed{seed}", device=device)
        results[name].append(next(scores[part] for part in ("test", "valid", "train") if part in scores))
    write_json(out / "compare.json", results)
    means = {
        name: {k: sum(run[k] for run in values) / len(values) for k in values[0]} for name, values in results.items()
    }
    _show(_table(means))
    typer.echo(f"means over {seeds} seed(s), held-out part; runs are in {out}/")


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

    from .runs import load_fit
    from .train.checkpoint import write_atomically

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


@app.command()
def discover(
    data: Annotated[Path, typer.Option("--data", help="An .h5ad file, or a CSV or TSV table with a row a profile.")],
    out: Out = Path("runs/discover"),
    env_key: Annotated[str | None, typer.Option(help="Column that names the environment; none: observational.")] = None,
    control: Annotated[str | None, typer.Option(help="The unperturbed environment; default the first row's.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the .h5ad file; default its X.")] = None,
    known_edges: Annotated[
        Path | None, typer.Option(help="CSV of cause, effect, kind (forbidden or required): enforced exactly.")
    ] = None,
    tiers: Annotated[
        Path | None, typer.Option(help="CSV of gene, tier (a number): genes never act on those of a lower tier.")
    ] = None,
    known_targets: Annotated[
        Path | None, typer.Option(help="CSV of environment, gene; targets of other environments are inferred.")
    ] = None,
    penalty: Annotated[float | None, typer.Option(help="Of an edge: 1 is the BIC, 2 (default) sparser.")] = None,
    restarts: Annotated[
        int | None,
        typer.Option(help="Times the best order is shaken (default 10; 1,000 / genes if more and observational)."),
    ] = None,
    large: Annotated[
        bool | None,
        typer.Option(
            "--large/--no-large",
            help="The search for thousands of genes (default: from 500 genes on, if there is one environment).",
        ),
    ] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Find the causal graph among genes, and which environments act on which, by an order search."""
    from .config import read_settings
    from .discover import DiscoverConfig, summary
    from .discover import discover as search

    settings = read_settings(
        DiscoverConfig, config, overrides, penalty=penalty, restarts=restarts, large=large, seed=seed
    )
    _new_folder(out)
    found = search(
        settings,
        data,
        out,
        env_key=env_key,
        control=control,
        layer=layer,
        known_edges=known_edges,
        tiers=tiers,
        known_targets=known_targets,
    )
    typer.echo(summary(found))
    typer.echo(f"graph, targets and figures are in {out}/")


@app.command("rank-drugs")
def rank_drugs(
    disease: Annotated[Path, typer.Option("--disease", help="Table: a gene's name first, and its log2 fold change.")],
    effects: Annotated[
        Path, typer.Option("--effects", help="Drug signatures: .h5ad, or a table with a row a signature.")
    ],
    out: Out = Path("runs/rank-drugs"),
    context: Annotated[
        str | None, typer.Option(help="Where the drugs act; none: the mean over all contexts measured.")
    ] = None,
    imputer: Annotated[
        str | None, typer.Option(help="Transport effects to --context: mean, shrunk or fixed; none: measured ones.")
    ] = None,
    change: Annotated[list[str], typer.Option(help="Column of log2 fold changes; repeated: replicates.")] = ["log2fc"],  # noqa: B006
    context_key: Annotated[str, typer.Option(help="Column of --effects that names the context.")] = "context",
    action_key: Annotated[str, typer.Option(help="Column of --effects that names the drug.")] = "action",
    aliases: Annotated[
        Path | None, typer.Option(help="Table of two columns: gene in --disease, the same gene in --effects.")
    ] = None,
    network: Annotated[
        Path | None, typer.Option(help="Protein interactions: two names, cost or confidence. Adds targets.")
    ] = None,
    expression: Annotated[Path | None, typer.Option(help="Single cells × genes, log expression; with --network.")] = None,
    drug_targets: Annotated[Path | None, typer.Option(help="Table of gene and drug; with --network.")] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Rank drugs by how well they reverse a disease signature, and drug targets by the disease genes they act on."""
    from .config import read_settings
    from .rank_drugs import RankDrugsConfig, rank, summary

    settings = read_settings(RankDrugsConfig, config, overrides, imputer=imputer, seed=seed)
    _new_folder(out)
    found = rank(
        settings,
        disease,
        effects,
        out,
        context=context,
        change=change,
        keys=(context_key, action_key),
        aliases=aliases,
        network=network,
        expression=expression,
        drug_targets=drug_targets,
    )
    typer.echo(summary(*found))
    typer.echo(f"tables, graphs and figures are in {out}/")


def _read(path: Path, env_key: str | None) -> Any:
    if {".csv", ".tsv", ".txt"} & set(path.suffixes):
        from .data.tables import read_table

        return read_table(path, env_column=env_key or "environment")
    from .data.anndata import read_h5ad

    return read_h5ad(path, env_key=env_key)


def _new_folder(path: Path) -> None:
    from .errors import ConfigError

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder: choose another with --out, or remove it")


def _table(columns: dict[str, dict[str, float]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)


def _show(table: pd.DataFrame) -> None:
    """A table on the terminal: a row a figure, a column a model or part."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(show_edge=False)
    drawn.add_column("")
    for column in table.columns:
        drawn.add_column(str(column), justify="right")
    for name, row in table.iterrows():
        drawn.add_row(str(name).replace("_", " "), *("–" if value != value else f"{value:.3g}" for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def main() -> None:
    """Entry point: our own errors become one line and exit code 1."""
    try:
        app(standalone_mode=True)
    except PyroCgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
