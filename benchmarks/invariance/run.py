"""Do the invariance objectives do what they are for?

IRM: genes are predicted from other genes, some of which follow the causes with a factor that differs between training
environments and changes sign in a new one. Adversarial prior: can a classifier trained afresh tell the environment from
the counterfactual noise Z_count, as it can from Z?
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.data.environment import Batch
from pyro_cge.train.loop import evaluate

CAUSES, STABLE, SPURIOUS, RESPONSE = 3, 20, 6, 20  # latents and genes of each kind
G = STABLE + SPURIOUS + RESPONSE
IS_SPURIOUS = (torch.arange(G) >= STABLE) & (torch.arange(G) < STABLE + SPURIOUS)
IS_RESPONSE = torch.arange(G) >= STABLE + SPURIOUS
TRAINING, NEW = (0.5, 0.75, 1.0, 1.25, 1.5), (-1.0,)  # factor of the spurious genes in each environment


# Invariant risk minimisation


def spurious_data(factors: Sequence[float], n_per_env: int, world: int, seed: int) -> cge.EnvironmentData:
    """``z ~ N(0, I)``; stable genes ``A z + N(0, 2²)``; spurious ``a_e B z + N(0, 0.1²)``; response ``C z + N(0, 0.5²)``."""
    weights = torch.randn(CAUSES, G, generator=torch.Generator().manual_seed(world))
    generator = torch.Generator().manual_seed(seed)
    env = torch.arange(len(factors)).repeat_interleave(n_per_env)
    factor = torch.where(IS_SPURIOUS, torch.tensor(factors)[env].unsqueeze(-1), 1.0)
    noise = 2.0 - 1.9 * IS_SPURIOUS - 1.5 * IS_RESPONSE
    z = torch.randn(len(env), CAUSES, generator=generator)
    x = factor * (z @ weights) + noise * torch.randn(len(env), G, generator=generator)
    return cge.EnvironmentData(
        x=x, env=env, gene_names=[f"gene {k}" for k in range(G)], env_names=[f"factor {a}" for a in factors]
    )


class Encoder(cge.AmortizedGuide):
    """Sees some genes only."""

    seen: Tensor

    def __init__(self, model: cge.CellModel, seen: Tensor) -> None:
        super().__init__(model, None, hidden=())
        self.register_buffer("seen", seen)

    def hidden_layer(self, batch: Batch, shift: cge.NoiseShift | None = None) -> Tensor:
        return super().hidden_layer(replace(batch, x=batch.x * self.seen), shift)


class Partial(cge.GaussianLikelihood):
    """Explains some genes only."""

    explained: Tensor

    def __init__(self, explained: Tensor) -> None:
        super().__init__(G)
        self.register_buffer("explained", explained)

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        return dist.Normal(mean, self.scale).mask(self.explained).to_event(1)


def irm(seed: int, weight: float, *, seen: Tensor, explained: Tensor, n_per_env: int, epochs: int) -> dict[str, float]:
    """Mean squared error of the explained genes (in training sds) in training and new environments, and the penalty."""
    train = spurious_data(TRAINING, n_per_env, seed, 1000 + seed)
    new = spurious_data(NEW, 2000, seed, 2000 + seed)
    with cge.isolated(seed):
        model = cge.CellModel(
            cge.StandardPrior(train, CAUSES), None, cge.LinearDecoder(CAUSES, G, likelihood=Partial(explained))
        )
        guide = Encoder(model, seen)
    fit = cge.fit(
        model, guide, train, objective=cge.Irm(weight=weight), epochs=epochs, batch_size=500, lr=1e-2,
        kl_warmup=epochs // 3, validation=None, seed=seed, progress=False,
    )  # fmt: skip

    def error(data: cge.EnvironmentData) -> float:
        batch = fit.scaler.transform(data).batch()
        with torch.no_grad():
            residual = model.mean(guide.encode(batch)[0], batch) - batch.x
        return float(residual[:, explained].square().mean())

    penalty = evaluate(model, guide, fit.scaler.transform(train), cge.Irm())["irm"]
    mean = float(fit.scaler.transform(new).x[:, explained].square().mean())
    return {"train": error(train), "new": error(new), "penalty": penalty, "mean": mean}


def irm_table(seeds: int, quick: bool) -> dict[str, float]:
    everything = torch.ones(G, dtype=torch.bool)
    prediction = {"seen": ~IS_RESPONSE, "explained": IS_RESPONSE}
    rows = {
        "prediction, no penalty": (0.0, prediction),
        "prediction, IRM 0.1": (0.1, prediction),
        "prediction, IRM 1": (1.0, prediction),
        "prediction, IRM 10": (10.0, prediction),
        "prediction, never sees the spurious genes": (0.0, prediction | {"seen": ~IS_RESPONSE & ~IS_SPURIOUS}),
        "autoencoder, no penalty": (0.0, {"seen": everything, "explained": everything}),
        "autoencoder, IRM 1": (1.0, {"seen": everything, "explained": everything}),
    }
    if quick:
        rows = {name: rows[name] for name in list(rows) if "0.1" not in name and "10" not in name}
    size = {"n_per_env": 400, "epochs": 60 if quick else 150}
    runs = {
        name: [irm(seed, weight, **parts, **size) for seed in range(seeds)] for name, (weight, parts) in rows.items()
    }
    trivial = [run["mean"] for run in runs["prediction, no penalty"]]
    print(f"{'mean squared error, training sd = 1':<44}{'training':>16}{'new environment':>18}{'penalty':>20}")
    print(f"{'training mean':<44}{'':>16}{spread(trivial):>18}")
    for name, results in runs.items():
        train, new, penalty = ([r[key] for r in results] for key in ("train", "new", "penalty"))
        print(f"{name:<44}{spread(train):>16}{spread(new):>18}{spread(penalty):>20}")

    def ratio(mode: str, key: str) -> list[float]:
        pairs = zip(runs[f"{mode}, IRM 1"], runs[f"{mode}, no penalty"], strict=True)
        return [a[key] / b[key] for a, b in pairs]

    figures = {}
    for key, mode, term in (
        ("irm_ood_ratio", "prediction", "new"),
        ("irm_penalty_ratio", "prediction", "penalty"),
        ("irm_train_ratio", "prediction", "train"),
        ("irm_ood_ratio_autoencoder", "autoencoder", "new"),
    ):
        values = ratio(mode, term)
        figures[key], figures[f"{key}_sd"] = statistics.mean(values), sd(values)
    return figures


# Adversarial prior


def adversarial(seed: int, weight: float, *, n_per_env: int, epochs: int) -> dict[str, float]:
    """Accuracy of fresh critics on new profiles of the training environments."""
    environments = cge.simulate.random_shifts(5, 10, variance=5, cover=True, control=False, seed=seed)
    truth = cge.simulate.growing_network(n_latents=5, n_genes=50, environments=environments, seed=seed)
    data, new = truth.sample(n_per_env, seed=seed), truth.sample(500, seed=1000 + seed)
    with cge.isolated(seed):
        model, guide = cge.basic_vae(data, 5, decoder="linear")
        objective = cge.AdversarialPrior(data, 5, weight=weight)
    fit = cge.fit(
        model, guide, data, objective=objective, epochs=epochs, batch_size=500, lr=1e-2, schedule="cosine",
        kl_warmup=3 * epochs // 4, validation=None, patience=None, seed=seed, progress=False,
    )  # fmt: skip
    batch = fit.scaler.transform(new).batch()
    with torch.no_grad(), cge.isolated(seed):
        z = guide(batch)
        hidden = objective.counterfactual(z, batch)
        mean = guide.encode(batch)[0]
        error = float((model.mean(mean, batch) - batch.x).square().mean())
    critics = {"z": cge.fresh_critic(z, new.env), "z_count": cge.fresh_critic(hidden, new.env)}
    assert new.truth is not None
    noise, moved = new.truth.z, environments.targets[new.env]
    replaced = torch.where(moved, torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed)), noise)
    return {
        "truth": cge.fresh_critic(noise, new.env).accuracy,
        "truth_count": cge.fresh_critic(replaced, new.env).accuracy,
        "z": critics["z"].accuracy,
        "z_count": critics["z_count"].accuracy,
        "chance": critics["z_count"].chance,
        "standard_error": critics["z_count"].error,
        "reconstruction": error,
        "mcc": float(cge.metrics.match_latents(mean.numpy(), new.truth.z).mcc),
    }


def adversarial_table(seeds: int, quick: bool) -> dict[str, float]:
    size = {"n_per_env": 400 if quick else 1000, "epochs": 150 if quick else 200}
    weights = (100.0,) if quick else (0.0, 10.0, 100.0)
    runs = {weight: [adversarial(seed, weight, **size) for seed in range(seeds)] for weight in weights}
    ours = runs[weights[-1]]

    def column(results: list[dict[str, float]], *keys: str) -> str:
        return "".join(f"{spread([r[key] for r in results]):>16}" for key in keys)

    heads = ("Z", "Z_count", "reconstruction", "Z-MCC")
    print(f"\n{'accuracy of a fresh critic':<28}{''.join(f'{head:>16}' for head in heads)}")
    print(f"{'majority class':<28}{column(ours, 'chance', 'chance')}")
    print(f"{'truth, target replaced':<28}{column(ours, 'truth', 'truth_count')}")
    for weight, results in runs.items():
        name = f"adversarial prior, {weight:g}" if weight else "critic alone"
        print(f"{name:<28}{column(results, 'z', 'z_count', 'reconstruction', 'mcc')}")
    figures = {f"critic_accuracy_{key}": statistics.mean(r[key] for r in ours) for key in ("z", "z_count")}
    figures["critic_accuracy_z_count_sd"] = sd([r["z_count"] for r in ours])
    figures["critic_standard_error"] = statistics.mean(r["standard_error"] for r in ours)
    figures["critic_accuracy_truth_count"] = statistics.mean(r["truth_count"] for r in ours)
    figures["chance"] = statistics.mean(r["chance"] for r in ours)
    figures["z_mcc"] = statistics.mean(r["mcc"] for r in ours)
    return figures


def sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {sd(values):.3f}"


def main() -> None:
    arguments = options(__doc__ or "", seeds=5).parse_args()
    seeds = min(arguments.seeds, 3) if arguments.quick else arguments.seeds
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    figures = irm_table(seeds, arguments.quick) | adversarial_table(seeds, arguments.quick)
    finish(
        arguments.out or Path(__file__).parent / "results",
        {name: round(value, 4) for name, value in figures.items()},
        arguments,
    )


if __name__ == "__main__":
    main()
