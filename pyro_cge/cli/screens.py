"""Commands on screens of interventions: discover, impute, rank-drugs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..folders import check_new
from .options import Config, Out, Overrides, Seed, app, there

Effects = Annotated[
    Path,
    typer.Option(
        "--effects", callback=there, help="Signatures of actions (drugs): .h5ad, or a table with a row a signature."
    ),
]


@app.command()
def discover(
    data: Annotated[
        Path, typer.Option("--data", callback=there, help="An .h5ad file, or a CSV or TSV table with a row a profile.")
    ],
    out: Out = Path("runs/discover"),
    env_key: Annotated[str | None, typer.Option(help="Column that names the environment; none: observational.")] = None,
    control: Annotated[str | None, typer.Option(help="The unperturbed environment; default the first row's.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the .h5ad file; default its X.")] = None,
    known_edges: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of cause, effect, kind (forbidden or required): enforced exactly."),
    ] = None,
    tiers: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of gene, tier (a number): genes never act on those of a lower tier."),
    ] = None,
    known_targets: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of environment, gene; targets of other environments are inferred."),
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
    from ..config import DiscoverConfig, read_settings

    settings = read_settings(
        DiscoverConfig, config, overrides, penalty=penalty, restarts=restarts, large=large, seed=seed
    )
    check_new(out)
    from ..discover import discover as search
    from ..discover import summary

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
    effects: Effects,
    out: Out = Path("runs/impute"),
    method: Annotated[
        str | None,
        typer.Option(help="ntk-gp (default), ntk, dnpp, falrtc, synthetic, shrunk, …; pyro-cge settings impute: all."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of context, action: what to impute; default every missing pair."),
    ] = None,
    context_key: Annotated[str, typer.Option(help="Column of --effects that names the context.")] = "context",
    action_key: Annotated[str, typer.Option(help="Column of --effects that names the action.")] = "action",
    context_features: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of numbers, first column the context: basal expression."),
    ] = None,
    action_features: Annotated[
        Path | None,
        typer.Option(callback=there, help="CSV of numbers, first column the action: fingerprint bits."),
    ] = None,
    training_only: Annotated[list[str], typer.Option(help="Context never held out; repeated.")] = [],  # noqa: B006
    compare: Annotated[str | None, typer.Option(help="Methods to compare with over --folds, comma-separated.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of cross-validation within contexts; default none.")] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Impute what actions do in contexts where nobody measured it, with its uncertainty.

    \b
    The folder gets
      imputed.h5ad   a row a pair: obs context and action, X the mean effect on
                     each gene; layers["std"], of methods that know it, the
                     standard deviation of a new measurement
      scores.csv     with --folds, of each imputer on pairs held out, pooled:
                     r, r2, cosine   with what was measured
                     profile_r       correlation of a pair, on average
                     coverage_90     share within 90 % intervals
                     cpu_s           processor seconds
    """
    from ..config import ImputeConfig, read_settings

    names = None if compare is None else tuple(name.strip() for name in compare.split(","))
    settings = read_settings(ImputeConfig, config, overrides, method=method, compare=names, folds=folds, seed=seed)
    check_new(out)
    from ..impute import impute as run
    from ..impute import summary

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
    disease: Annotated[
        Path, typer.Option("--disease", callback=there, help="Table: a gene's name first, and its log2 fold change.")
    ],
    effects: Effects,
    out: Out = Path("runs/rank-drugs"),
    context: Annotated[
        str | None, typer.Option(help="Where the drugs act. Left out, the mean over the contexts each was measured in.")
    ] = None,
    imputer: Annotated[
        str | None,
        typer.Option(
            help="Rank every drug by its effect predicted in --context: ntk-gp, mean, shrunk or fixed. Left out, only "
            "drugs measured there are ranked."
        ),
    ] = None,
    change: Annotated[list[str], typer.Option(help="Column of log2 fold changes; repeated: replicates.")] = ["log2fc"],  # noqa: B006
    context_key: Annotated[str, typer.Option(help="Column of --effects that names the context.")] = "context",
    action_key: Annotated[str, typer.Option(help="Column of --effects that names the drug.")] = "action",
    aliases: Annotated[
        Path | None,
        typer.Option(callback=there, help="Table of two columns: gene in --disease, the same gene in --effects."),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(callback=there, help="Protein interactions: two names, cost or confidence. Adds targets."),
    ] = None,
    expression: Annotated[
        Path | None, typer.Option(callback=there, help="Single cells × genes, log expression; with --network.")
    ] = None,
    drug_targets: Annotated[
        Path | None, typer.Option(callback=there, help="Table of gene and drug; with --network.")
    ] = None,
    config: Config = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
) -> None:
    """Rank drugs by how well they reverse a disease signature, and drug targets by the disease genes they act on.

    \b
    The folder gets
      drugs.csv      of each drug, the one that reverses best first:
                     score           correlation with the disease, negative: reverses
                     rank            of the score, ties shared
                     rank_median, rank_low, rank_high    posterior, 90 % interval
                     p_top           probability to be among the 10 best (--set top=10)
      and with --network:
      targets.csv    of each gene that a drug acts on, the best target first:
                     downstream      disease genes it acts on, expected number
                     downstream_low, downstream_high     90 % interval
                     excess          over as many genes at random
                     p_upstream      probability that there is any
                     rank, rank_low, rank_high           90 % interval
                     terminal        is a disease gene itself
                     drugs, drug_rank    that act on it, rank of the best
      genes.csv      of each gene of the tree: prize, terminal (a disease gene),
                     degree, tree, log2fc, frequency (of trees with it when costs
                     and prizes are perturbed), expressed
      edges.csv      cause, effect, probability
    """
    from ..config import RankDrugsConfig, read_settings

    settings = read_settings(RankDrugsConfig, config, overrides, imputer=imputer, seed=seed)
    check_new(out)
    from ..rank_drugs import rank, summary

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
