"""Commands on screens of interventions: discover, impute, rank-drugs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Config, Out, Overrides, Seed, app, new_folder


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
    from ..config import read_settings
    from ..discover import DiscoverConfig, summary
    from ..discover import discover as search

    settings = read_settings(
        DiscoverConfig, config, overrides, penalty=penalty, restarts=restarts, large=large, seed=seed
    )
    new_folder(out)
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


@app.command()
def impute(
    effects: Annotated[Path, typer.Option("--effects", help="Signatures: .h5ad, or a table with a row a signature.")],
    out: Out = Path("runs/impute"),
    method: Annotated[
        str | None, typer.Option(help="ntk-gp (default), ntk, dnpp, falrtc, synthetic, shrunk, …")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="CSV of context, action: what to impute; default every missing pair.")
    ] = None,
    context_key: Annotated[str, typer.Option(help="Column of --effects that names the context.")] = "context",
    action_key: Annotated[str, typer.Option(help="Column of --effects that names the action.")] = "action",
    context_features: Annotated[
        Path | None, typer.Option(help="CSV of numbers, first column the context: basal expression.")
    ] = None,
    action_features: Annotated[
        Path | None, typer.Option(help="CSV of numbers, first column the action: fingerprint bits.")
    ] = None,
    training_only: Annotated[list[str], typer.Option(help="Context never held out; repeated.")] = [],  # noqa: B006
    compare: Annotated[str | None, typer.Option(help="Methods to compare with over --folds, comma-separated.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of cross-validation within contexts; default none.")] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Impute what actions do in contexts where nobody measured it, with its uncertainty."""
    from ..config import read_settings
    from ..impute import ImputeConfig, summary
    from ..impute import impute as run

    names = None if compare is None else tuple(name.strip() for name in compare.split(","))
    settings = read_settings(ImputeConfig, config, overrides, method=method, compare=names, folds=folds, seed=seed)
    new_folder(out)
    found = run(
        settings,
        effects,
        out,
        keys=(context_key, action_key),
        pairs=pairs,
        context_features=context_features,
        action_features=action_features,
        training_only=training_only,
    )
    typer.echo(summary(*found))
    typer.echo(f"imputed.h5ad and figures are in {out}/")


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
        str | None,
        typer.Option(help="Transport effects to --context: ntk-gp, mean, shrunk or fixed; none: measured ones."),
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
    expression: Annotated[
        Path | None, typer.Option(help="Single cells × genes, log expression; with --network.")
    ] = None,
    drug_targets: Annotated[Path | None, typer.Option(help="Table of gene and drug; with --network.")] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Rank drugs by how well they reverse a disease signature, and drug targets by the disease genes they act on."""
    from ..config import read_settings
    from ..rank_drugs import RankDrugsConfig, rank, summary

    settings = read_settings(RankDrugsConfig, config, overrides, imputer=imputer, seed=seed)
    new_folder(out)
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
