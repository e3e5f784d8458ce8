"""Is a cell's ATAC found from its RNA? Held-out cells measured in both, from all, some or no anchors.

sci-CAR: 1,874 A549 cells with RNA (2,613 genes) and ATAC (counts at the motifs of 815 transcription factors), 0, 1 or 3 hours
after dexamethasone. The 340 test cells are those of Yang, Belyaeva et al. (2021). Both views of a test cell are placed in the
latent space; a cell is right for k if its other view is among the k nearest of the 340 (chance: k/340). FOSCTTM: fraction
of samples closer than the true match (chance ½). Transfer: a logistic classifier of time trained on the training
cells' latents of one modality, asked for test cells of the other. Anchors: the fraction of training cells known to be
measured in both; the others enter as separate cells. Labels (time) are those of training cells only.

``--data`` is a folder with ``diff_expr_shared_cells.npz`` and ``diff_atac_shared_cells.npz`` (sparse, features × cells),
``shared_cells.csv`` and ``GSM3271040_RNA_sciCAR_A549_cell.txt`` (``sample``, ``treatment_time``). Without it: simulated
cells with one shared cause.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processor seconds are those of one thread

import numpy as np
import pandas as pd
from split import TEST

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

from pyro_cge.imputation import CrossModalAutoencoder
from pyro_cge.metrics import retrieval_scores

Array = np.ndarray
Views = tuple[Array, Array]  # latents of the cells from RNA, and from ATAC
COLUMNS = ("knn_5", "knn_50", "foscttm", "transfer_to_rna", "transfer_to_atac", "translation_r", "cpu_s")


def sci_car(folder: Path) -> tuple[Array, Array, Array, Array]:
    """Normalised log RNA, log ATAC counts, hours and whether a cell is a test cell."""
    from scipy.sparse import load_npz

    rna, atac = (load_npz(folder / f"diff_{name}_shared_cells.npz").T.toarray() for name in ("expr", "atac"))
    cells = pd.read_csv(folder / "shared_cells.csv")["cell"]
    table = pd.read_csv(folder / "GSM3271040_RNA_sciCAR_A549_cell.txt").set_index("sample")
    depth = rna.sum(1, keepdims=True)
    test = np.isin(np.arange(len(cells)), TEST)
    return np.log1p(rna / depth * np.median(depth)), np.log1p(atac), table["treatment_time"][cells].to_numpy(), test


def simulated(seed: int) -> tuple[Array, Array, Array, Array]:
    """Four shared latents, moved by time, and four private ones in each modality."""
    rng = np.random.default_rng(seed)
    n, hours = 360, np.repeat([0.0, 1.0, 3.0], 120)
    z = rng.normal(size=(n, 4)) + rng.normal(size=(3, 4))[np.repeat([0, 1, 2], 120)]
    views = []
    for width in (60, 40):
        private = rng.normal(size=(n, 4)) @ rng.normal(size=(4, width))
        views.append(z @ rng.normal(size=(4, width)) + private + 2 * rng.normal(size=(n, width)))
    return views[0], views[1], hours, rng.random(n) < 0.2


def standardised(x: Array, train: Array) -> Array:
    return (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-9)


def ridge(rna: Array, atac: Array, train: Array) -> tuple[Views, Array]:
    """ATAC predicted from RNA, compared with ATAC; the penalty by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(np.logspace(1, 6, 11)).fit(rna[train], atac[train])
    guess = model.predict(rna)
    return (guess - atac[train].mean(0), atac - atac[train].mean(0)), guess


def components(x: Array, train: Array, width: int) -> Array:
    from sklearn.decomposition import PCA

    return PCA(min(width, *x[train].shape), random_state=0).fit(x[train]).transform(x)


def cca(
    rna: Array, atac: Array, train: Array, anchors: Array, *, whitening: float, widths: tuple[int, int], d: int = 10
) -> tuple[Views, Array]:
    """Canonical correlations over the anchors, of components of all training cells, with ``whitening`` of the largest variance."""
    scaled = []
    for values, width in zip((rna, atac), widths):
        x = components(values, train, width)
        variance = x[train].var(0)
        scaled.append(x / np.sqrt(variance + whitening * variance[0]))
    left, s, right = np.linalg.svd(scaled[0][anchors].T @ scaled[1][anchors] / len(anchors), full_matrices=False)
    root = np.sqrt(s[:d])
    a, b = scaled[0] @ left[:, :d] * root, scaled[1] @ right[:d].T * root
    decoder = np.linalg.lstsq(np.c_[a[anchors], np.ones(len(anchors))], atac[anchors], rcond=None)[0]
    return (a, b), np.c_[a, np.ones(len(a))] @ decoder


def transfer(source: Array, target: Array, hours: Array, train: Array) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(source[train])
    model = LogisticRegression(max_iter=2000).fit(scale.transform(source[train]), hours[train])
    return float(model.score(scale.transform(target[~train]), hours[~train]))


def score(views: Views, guess: Array | None, atac: Array, hours: Array, train: Array, cpu: float) -> dict[str, float]:
    row = retrieval_scores(views[0][~train], views[1][~train])
    row["transfer_to_rna"] = transfer(views[1], views[0], hours, train)
    row["transfer_to_atac"] = transfer(views[0], views[1], hours, train)
    if guess is not None:
        row["translation_r"] = float(
            np.corrcoef((guess - atac[train].mean(0))[~train].ravel(), (atac - atac[train].mean(0))[~train].ravel())[
                0, 1
            ]
        )
    return row | {"cpu_s": cpu}


def network(
    rna: Array, atac: Array, hours: Array, train: Array, anchors: Array, labels: bool, seed: int, **settings: Any
) -> tuple[Views, Array]:
    """The training cells ``anchors`` are known to be one cell; the ATAC rows of the others are shuffled."""
    rows = np.flatnonzero(train)
    kept = np.flatnonzero(np.isin(rows, anchors))
    free = np.setdiff1d(np.arange(len(rows)), kept)
    partner = np.arange(len(rows))
    partner[free] = np.random.default_rng(seed).permutation(free)
    model = CrossModalAutoencoder(random_state=seed, progress=False, **settings).fit(
        rna[rows],
        atac[rows[partner]],
        np.c_[kept, kept],
        rna_labels=hours[rows] if labels else None,
        atac_labels=hours[rows[partner]] if labels else None,
    )
    return (model.transform(rna=rna), model.transform(atac=atac)), model.translate(rna)


def at_random(n: int, seed: int) -> tuple[Views, None]:
    a, b = np.random.default_rng(seed).normal(size=(2, n, 10))
    return (a, b), None


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument("--data", type=Path, default=None, help="folder of the sci-CAR files")
    arguments = parser.parse_args()
    quick = arguments.quick
    few: dict[str, Any] = {"members": 1, "steps": 60, "n_components": (10, 10)} if quick else {}
    plan = [(1.0, True), (0.0, True)] if quick else [(1.0, True), (0.5, True), (0.25, True), (0.0, True), (1.0, False)]
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(1 if quick else arguments.seeds):
        rna, atac, hours, test = simulated(seed) if arguments.data is None else sci_car(arguments.data)
        train = ~test
        rna, wide = standardised(rna, train), standardised(atac, train)
        order = np.random.default_rng(seed).permutation(np.flatnonzero(train))
        who: dict[str, Callable[[], tuple[Views, Array | None]]] = {"at random": partial(at_random, len(rna), seed)}
        for share, labels in plan:
            anchors = order[: round(share * len(order))]
            name = f"anchors {share:g}" + ("" if labels else ", no labels")
            if share and labels:
                who[f"CCA, {name}"] = partial(cca, rna, wide, train, anchors, whitening=0.0, widths=(50, 50))
                who[f"CCA regularised, {name}"] = partial(
                    cca, rna, atac, train, anchors, whitening=0.01, widths=few.get("n_components", (20, 60))
                )
            if share == 1:
                who["ridge, anchors 1"] = partial(ridge, rna, wide, train)
            who[f"ours, {name}"] = partial(network, rna, atac, hours, train, anchors, labels, seed, **few)
        for name, run in who.items():
            began = time.process_time()
            views, guess = run()
            row = score(views, guess, atac, hours, train, time.process_time() - began)
            runs.setdefault(name, []).append(row)
            print(name.ljust(34), "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    table = pd.DataFrame({name: pd.DataFrame(rows).mean() for name, rows in runs.items()}).T
    spread = pd.DataFrame({name: pd.DataFrame(rows).std() for name, rows in runs.items()}).T
    print(table.to_string(float_format="{:.3f}".format))
    figures: dict[str, Any] = {
        f"sci_car_{column.replace('_', '') if column.startswith('knn') else column}": {
            name: round(float(value), 4) for name, value in table[column].dropna().items()
        }
        for column in COLUMNS
    }
    figures["sci_car_knn50_sd"] = {name: round(float(v), 4) for name, v in spread["knn_50"].dropna().items()}
    figures["cells"] = [int(train.sum()), int(test.sum())]
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()
