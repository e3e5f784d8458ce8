"""Is the infinitely deep network the classifier that theory says it is? Accuracy of neural tangent kernel classifiers.

Points uniform on the non-negative part of the d-sphere, labels drawn with a probability that oscillates along one coordinate,
2,000 of them to learn from and 2,000 new ones. Infinite depth with the optimal activation against the Hilbert kernel
``‖x − x'‖^{−d}`` (Devroye, Györfi, Krzyżak 1998), with an activation of vanishing mean and slope against the nearest neighbour,
and with one of positive mean against the majority; Radhakrishnan, Belkin, Uhler (2023). Beside them finite depths, the wrong
singularities, and the best that any classifier can do (the label that is more probable at each point).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import KNeighborsClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

from pyro_cge.imputation import DeepNTKClassifier, HermiteActivation

DIMENSIONS = (2, 5, 10)
NEAREST = HermiteActivation(np.array([0.0, 0.0, 1.0, 1.0]))
MAJORITY = HermiteActivation(np.array([0.5, 0.5, 0.7]))


def draw(n: int, d: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points ``[n, d + 1]``, labels and the more probable label of each."""
    x = np.abs(rng.normal(size=(n, d + 1)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    odds = 6 * np.sin(5 * x[:, 0]) * (x @ (np.arange(d + 1) % 2 * 2 - 1)) + 0.6
    return x, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int), (odds > 0).astype(int)


def hilbert(x: np.ndarray, y: np.ndarray, new: np.ndarray, order: float) -> np.ndarray:
    distance = np.sqrt(np.maximum(2 - 2 * new @ x.T, 1e-30))
    weight = (distance / distance.min(1, keepdims=True)) ** -order
    return (weight @ (2 * y - 1) > 0).astype(int)


def one(d: int, n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Predictions by method, true labels, and CPU seconds of the optimal classifier."""
    rng = np.random.default_rng(seed)
    (x, y, _), (new, truth, best) = draw(n, d, rng), draw(n, d, rng)
    start = time.process_time()
    found = {"infinite depth, optimal": DeepNTKClassifier().fit(x, y).predict(new)}
    cpu = time.process_time() - start
    found["Hilbert kernel"] = hilbert(x, y, new, d)
    found["infinite depth, no slope"] = DeepNTKClassifier(NEAREST).fit(x, y).predict(new)
    found["nearest neighbour"] = KNeighborsClassifier(1).fit(x, y).predict(new)
    found["infinite depth, a mean"] = DeepNTKClassifier(MAJORITY).fit(x, y).predict(new)
    found["majority vote"] = np.full(n, np.bincount(y).argmax())
    for alpha in (d // 2 or 1, 2 * d):
        found[f"infinite depth, alpha = {'d/2' if alpha < d else '2d'}"] = (
            DeepNTKClassifier(HermiteActivation.optimal(alpha, degree=5)).fit(x, y).predict(new)
        )
    for depth in (2, 10, 50):
        found[f"depth {depth}, optimal"] = DeepNTKClassifier(depth=depth).fit(x, y).predict(new)
    found["Hilbert kernel of order d + 2"] = hilbert(x, y, new, d + 2)
    found["Bayes"] = best
    return found, truth, cpu


def main() -> None:
    arguments = options(__doc__ or "", seeds=5).parse_args()
    n = 500 if arguments.quick else 2000
    seeds = range(1 if arguments.quick else arguments.seeds)
    rows, gaps, seconds = [], [], []
    agreement: dict[str, list[float]] = {"nearest": [], "majority": [], "hilbert": [], "depth_50_order_d_plus_2": []}
    for d in DIMENSIONS:
        for seed in seeds:
            found, truth, cpu = one(d, n, seed)
            accuracy = {name: float((labels == truth).mean()) for name, labels in found.items()}
            rows.append({"d": d, **accuracy})
            gaps.append(abs(accuracy["infinite depth, optimal"] - accuracy["Hilbert kernel"]))
            seconds.append(cpu)
            for name, a, b in (
                ("nearest", "infinite depth, no slope", "nearest neighbour"),
                ("majority", "infinite depth, a mean", "majority vote"),
                ("hilbert", "infinite depth, optimal", "Hilbert kernel"),
                ("depth_50_order_d_plus_2", "depth 50, optimal", "Hilbert kernel of order d + 2"),
            ):
                agreement[name].append(float((found[a] == found[b]).mean()))
        print(f"d = {d} done", flush=True)
    table = pd.DataFrame(rows).groupby("d").mean().T
    print(table.round(4).to_string())
    figures = {
        "n": n,
        "gap_hilbert": round(max(gaps), 5),
        "mean_gap_hilbert": round(float(np.mean(gaps)), 5),
        "agreement": {name: round(float(np.mean(values)), 4) for name, values in agreement.items()},
        "accuracy": {f"d{d}": table[d].round(4).to_dict() for d in DIMENSIONS},
        "cpu_s": round(float(np.mean(seconds)), 3),
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()
