"""Real L1000 profiles that were never seen: unseen compounds, drug × cell pairs, cell lines and doses.

Every model of the suite at the paper's size, the environment model with a Gaussian-process prior, and trivial baselines,
on the same held-out profiles. Each result is kept as a small JSON in ``OUT/rows``; ``--resume`` skips those already there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from baselines import baselines, ceilings
from contract import finish, options
from gaussian_process import learn_kernel, model_of
from splits import Task, plate, screen, synthetic

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.errors import NonFiniteLossError
from pyro_cge.metrics import mean_interval, pearson_per_profile, rank_among, top_gene_overlap
from pyro_cge.models.kernels import nystroem
from pyro_cge.presets import PRESETS
from pyro_cge.runs import build, objective_of

SPLITS = ("compounds", "pairs", "cell lines", "doses")
STRUCTURED = ("structured", "structured_translation", "discrepancy")
ELSEWHERE = ("conditional", "environment")  # presets on the other three splits
KERNEL = ("kernel", "kernel_annotated")
LATENTS = 150  # of the Gaussian-process prior
PREDICTIONS = 5  # hundreds of draws
FEATURES = 64  # leading kernel components that presets see of an environment
Row = dict[str, Any]


def accuracy(task: Task, prediction: Tensor) -> Row:
    """How near predictions ``[n_valid, g]`` are, with an interval over compounds."""
    valid, table = task.held_out, task.data.env_table
    env = valid.env.numpy()
    compound = table["perturbagen"].to_numpy()[env]
    context = table["dose" if task.name == "doses" else "cell_line"].to_numpy()[env]
    r = pearson_per_profile(valid.x, prediction)
    low, high = mean_interval(r, compound)
    return {
        "r": float(r.mean()),
        "low": low,
        "high": high,
        "rank": float(rank_among(valid.x, prediction, context).nanmean()),
        "top20": float(top_gene_overlap(valid.x, prediction, min(20, valid.x.shape[1])).mean()),
    }


def judged(task: Task, fit: cge.Fit, data: cge.EnvironmentData) -> Row:
    """Accuracy, held-out bound, coverage, reconstruction and leak of a fitted model."""
    valid = only(data, task.valid)
    posterior, generator = fit.posterior(valid), torch.Generator().manual_seed(0)
    prediction = predicted(posterior)
    garbage = replace(valid, x=100 * torch.randn(valid.x.shape, generator=generator))
    leak = (predicted(fit.posterior(garbage), repeats=1) - predicted(posterior, repeats=1)).abs().max()
    return {
        **accuracy(task, prediction),
        **coverage(posterior, valid.x),
        "bound": float(posterior.log_evidence(50).mean()) / valid.g,
        "reconstruction": float(pearson_per_profile(valid.x, posterior.reconstruct()).mean()),
        "leak": float(leak),
    }


def only(data: cge.EnvironmentData, rows: np.ndarray) -> cge.EnvironmentData:
    """Some profiles, and no environments but theirs."""
    part = data.rows(rows)
    envs, env = torch.unique(part.env, return_inverse=True)
    assert part.env_features is not None
    return replace(
        part,
        env=env,
        env_names=[part.env_names[e] for e in envs.tolist()],
        env_features=part.env_features[envs],
        env_table=part.env_table.iloc[envs.numpy()],
    )


def predicted(posterior: cge.Posterior, repeats: int = PREDICTIONS) -> Tensor:
    """Expected profile of each profile's environment ``[n, g]``, 100 draws of the noise at a time.

    Too few draws cost accuracy: with 50 of them a fiftieth of the noise's variance is still in the prediction.
    """
    draws = (posterior.predict(n_samples=100, seed=seed) for seed in range(repeats))
    return (sum(draws, torch.zeros(())) / repeats)[posterior.raw.env]


def coverage(posterior: cge.Posterior, x: Tensor, draws: int = 199) -> Row:
    """Share of held-out values inside the central 50 % and 90 % intervals of the environment's predictive law.

    Between two order statistics of ``m`` draws lies a share ``(j − i) / (m + 1)`` of what the law draws next.
    """
    below = (posterior.replicate(draws, new_profiles=True) < x).sum(0)  # 0 … draws, each as likely under the law
    sides = {level: round((draws + 1) * (1 - level) / 2) for level in (0.5, 0.9)}
    return {
        f"coverage_{100 * level:.0f}": float(((below >= side) & (below < draws + 1 - side)).float().mean())
        for level, side in sides.items()
    }


class Study:
    """One split and seed: kernels are computed once for all models."""

    def __init__(self, task: Task, seed: int, arguments: Any) -> None:
        self.task, self.seed, self.arguments = task, seed, arguments
        self.small = task.data.g < 500 or task.fitted.n < 500
        self.learned: dict[bool, Tensor] = {}

    def kernel(self, annotated: bool) -> Tensor:
        if annotated not in self.learned:
            groups = self.task.data.env_table["perturbagen"].to_numpy()[self.task.fitted.env.numpy()]
            self.learned[annotated] = learn_kernel(self.task.kernels(annotated), self.task.fitted, groups, self.seed)
        return self.learned[annotated]

    def baselines(self) -> dict[str, Row]:
        return {name: accuracy(self.task, prediction) for name, prediction in baselines(self.task).items()}

    def gaussian_process(self, name: str) -> dict[str, Row]:
        task, annotated = self.task, name == "kernel_annotated"
        groups, d = task.groups[task.train], min(LATENTS, task.fitted.n // 8, task.data.g // 4)
        model, guide, data = model_of(task.data, self.kernel(annotated), task.fitted, groups, d, self.seed)
        train = data.rows(task.train)
        settings = {"validation": None, "kl_warmup": 0, "seed": self.seed}
        rows = {}
        if task.name == "compounds":  # how much is the closed form's, how much training's?
            scaler = cge.Standardizer.fit(train)
            before = cge.Fit(model, guide, data.schema(), scaler, pd.DataFrame(), best_epoch=0, settings={})
            rows[f"{name}_closed_form"] = judged(task, before, data)
        fit = cge.fit(model, guide, train, epochs=self.arguments.refinement, lr=1e-4, **settings)
        rows[name] = judged(task, fit, data)
        return rows

    def preset(self, name: str) -> dict[str, Row]:
        """At the paper's size, on the leading kernel features; best weights by groups held out of training."""
        task = self.task
        features = nystroem(self.kernel(False), torch.unique(task.fitted.env), FEATURES)
        data = replace(task.data, env_features=features / features[task.fitted.env].std())
        groups = task.groups[task.train]
        distinct = np.random.default_rng(self.seed).permutation(np.unique(groups))
        inner = np.isin(groups, distinct[: max(1, len(distinct) // 10)])
        train, stop = data.rows(task.train[~inner]), data.rows(task.train[inner])
        latents, width = (20, 64) if self.small else (200, 500)
        depth = 5 if name in STRUCTURED else None
        config = RunConfig(model=name, latents=latents, hidden=(width,), depth=depth, seed=self.seed)
        model, guide = build(config, train)
        try:
            fit = cge.fit(
                model,
                guide,
                train,
                objective=objective_of(config, train),
                epochs=self.arguments.epochs,
                batch_size=self.arguments.batch_size,
                lr=self.arguments.lr,
                validation=stop,
                patience=None,
                seed=self.seed,
            )
        except NonFiniteLossError as error:
            print(f"{name}: {error}")
            return {name: {"non_finite": 1}}
        losses = fit.history["valid_loss"]
        extra = {
            "non_finite": int((~np.isfinite(losses)).sum()),
            "last_over_best": float(losses.iloc[-1] / losses.min()),
            "epoch": fit.best_epoch,
        }
        return {name: {**judged(task, fit, data), **extra}}

    def run(self, name: str) -> dict[str, Row]:
        if name == "baselines":
            return self.baselines()
        return self.gaussian_process(name) if name in KERNEL else self.preset(name)


def kept(path: Path, job: Callable[[], dict[str, Row]], key: Row, resume: bool) -> dict[str, Row]:
    if resume and path.exists():
        return {}
    started = time.perf_counter()
    rows = job()
    seconds = round(time.perf_counter() - started, 1)
    path.write_text(json.dumps({**key, "seconds": seconds, "rows": rows}, indent=1) + "\n")
    for name, row in rows.items():
        shown = {k: round(v, 4) for k, v in row.items()}
        print(f"{key['split']:<12}{key['seed']:<3}{name:<30}{shown}  {seconds} s", flush=True)
    return rows


def table_of(folder: Path) -> pd.DataFrame:
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for name, row in record.pop("rows").items():
            records.append({"split": record["split"], "seed": record["seed"], "model": name, **row})
    return pd.DataFrame(records)


def main() -> None:
    parser = options(__doc__ or "", seeds=3, data=True)
    parser.add_argument("--basal", type=Path, help="control profiles of cell lines: an .npz with X and cell_id")
    parser.add_argument("--plates", type=Path, help="an .npz with dose-response plates and its obs.csv.gz beside it")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--models", default="all", help=f"all, or some of: baselines, {', '.join([*KERNEL, *PRESETS])}")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--refinement", type=int, default=5, help="epochs of fit after the closed-form start")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--resume", action="store_true", help="keep the rows in OUT and add to them")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        parser.error("--data FILE.h5ad is needed (made by convert.py), or --quick for a synthetic stand-in")
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.epochs, arguments.refinement, arguments.seeds = 10, 5, 1
    data = synthetic() if arguments.data is None else cge.read_h5ad(arguments.data)
    tasks = dict.fromkeys(SPLITS[:3], screen(data, basal_profiles(arguments.basal)))
    if arguments.plates is not None:
        tasks["doses"] = plate(arguments.plates)
    out = arguments.out or Path(__file__).parent / "results"
    folder = out / ("quick" if arguments.quick else "rows")
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.resume:
        for path in folder.glob("*.json"):
            path.unlink()
    chosen = ["baselines", *KERNEL, *PRESETS] if arguments.models == "all" else arguments.models.split(",")
    if arguments.quick:
        chosen = ["baselines", "kernel", "basic", "conditional", "environment"]
    for seed in range(arguments.seeds):
        for split in arguments.splits.split(","):
            if split not in tasks:
                continue
            task = tasks[split](split, seed)
            study = Study(task, seed, arguments)
            for name in chosen:
                elsewhere = split != "compounds" and name in PRESETS and name not in ELSEWHERE
                if elsewhere or (name == "kernel_annotated" and (split != "compounds" or not task.annotated)):
                    continue
                if name == "baselines" and split == "compounds" and seed:
                    continue  # the same every time
                path = folder / f"{split.replace(' ', '_')}_{name}_{seed}.json"
                kept(path, lambda s=study, n=name: s.run(n), {"split": split, "seed": seed}, arguments.resume)
    limits = {} if "compounds" not in arguments.splits else ceilings(tasks["compounds"]("compounds", 0))
    print("profiles against each other:", {name: round(r, 3) for name, r in limits.items()})
    finish(out, {**figures_of(table_of(folder)), "ceilings": limits}, arguments)


def basal_profiles(path: Path | None) -> pd.DataFrame | None:
    if path is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return pd.DataFrame(arrays["X"], index=arrays["cell_id"].astype(str))


def figures_of(rows: pd.DataFrame) -> dict[str, Any]:
    shown = ["r", "low", "high", "sd", "rank", "top20", "bound", "coverage_50", "coverage_90", "reconstruction"]
    means: dict[str, pd.DataFrame] = {}
    for split in [s for s in SPLITS if s in set(rows["split"])]:
        groups = rows[rows["split"] == split].groupby("model")
        table = groups.mean(numeric_only=True).assign(sd=groups["r"].std(), seeds=groups["seed"].nunique())
        means[split] = table = table.sort_values("r", ascending=False)
        print(f"\nunseen {split}\n{table[[c for c in [*shown, 'seeds'] if c in table]].round(3).to_string()}")

    def column(split: str, name: str) -> dict[str, float]:
        if split not in means or name not in means[split]:
            return {}
        return {str(k): round(float(v), 4) for k, v in means[split][name].dropna().items()}

    figures: dict[str, Any] = {
        "l1000_unseen_r": column("compounds", "r"),
        "coverage_90": column("compounds", "coverage_90"),
        "coverage_50": column("compounds", "coverage_50"),
        "bound": column("compounds", "bound"),
        "rank": column("compounds", "rank"),
        "top20": column("compounds", "top20"),
        "val_r": column("compounds", "r"),
        "last_over_best": {
            str(k): round(float(v), 3) for k, v in rows.groupby("model")["last_over_best"].max().dropna().items()
        }
        if "last_over_best" in rows
        else {},
        "non_finite": int(rows["non_finite"].sum()) if "non_finite" in rows else 0,
        "leak": float(rows["leak"].max()) if "leak" in rows else 0.0,
    }
    for split in SPLITS[1:]:
        name = split.replace(" ", "_")
        figures |= {f"unseen_{name}_r": column(split, "r"), f"unseen_{name}_coverage_90": column(split, "coverage_90")}
    return figures


if __name__ == "__main__":
    main()
