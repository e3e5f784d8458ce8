"""Effects of actions in contexts to impute: three real tables, and one whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_cge import simulate
from pyro_cge.data.l1000 import read_gct
from pyro_cge.imputation import Effects
from pyro_cge.scm.shifts import NoiseShift


def level5(folder: Path) -> Effects:
    """1,074 structures × 24 cell lines × 978 genes, level-5 z at 10 µM and 24 h; 3,371 pairs."""
    x, genes, obs = _arrays(folder, "l1000_level5_gps24")
    context, contexts = pd.factorize(obs["cell_id"], sort=True)
    action, actions = pd.factorize(obs["struct_id"], sort=True)
    key = obs.drop_duplicates("struct_id").set_index("struct_id")["compound_key"].loc[actions]
    with np.load(folder / "morgan2048_r2.npz", allow_pickle=False) as z:
        bits = pd.DataFrame(np.unpackbits(z["packed"], axis=1), index=z["compound_key"].astype(str))
    return Effects(
        x,
        context,
        action,
        list(contexts),
        list(actions),
        genes,
        context_features=_basal(folder, list(contexts)),
        action_features=bits.loc[key].set_axis(actions),
    )


def squires(folder: Path) -> Effects:
    """20 drugs × 24 cell lines, log2 of mean level-2 intensity.

    Levels, not fold changes: the DMSO rows are of other batches.
    """
    x, genes, obs = _arrays(folder, "l1000_level2mean_squires20x24")
    treated = ~obs["is_control"].to_numpy(bool)
    x, obs = np.log2(x[treated]), obs[treated]
    context, contexts = pd.factorize(obs["cell_id"], sort=True)
    action, actions = pd.factorize(obs["pert_id"], sort=True)
    return Effects(x, context, action, list(contexts), list(actions), genes)


def plate(folder: Path) -> Effects:
    """One LJP005 plate (A375, 24 h), doses as contexts: plate z-scores of its drugs."""
    found = read_gct(folder / "raw_gct" / "LJP005_A375_24H_X1_B19_zs.gct")
    obs = found.obs.reset_index(drop=True)
    name, dose = obs["pert_iname"].astype(str), pd.to_numeric(obs["pert_dose"], errors="coerce")
    kept = ((name != "DMSO") & (dose > 0)).to_numpy()
    table = pd.DataFrame(np.asarray(found.x)[kept], columns=[str(gene) for gene in found.var.index])
    means = table.groupby([dose[kept].to_numpy(), name[kept].to_numpy()]).mean()
    context, contexts = pd.factorize(means.index.get_level_values(0).map("{:g}".format))
    action, actions = pd.factorize(means.index.get_level_values(1), sort=True)
    return Effects(means.to_numpy(), context, action, list(contexts), list(actions), list(means.columns))


def semi_synthetic(
    folder: Path | None,
    seed: int,
    *,
    n_actions: int = 300,
    n_contexts: int = 24,
    n_genes: int = 300,
    noise: float = 1.0,
) -> tuple[Effects, np.ndarray]:
    """Effects of a simulated cell under a real pattern of missing pairs, and the noise-free effects of the same pairs.

    Each context offsets all latent noise, each action shifts one to three latents; 20 latents in a growing network, a
    neural observation map. The effect of a pair is its expected expression less that of the untreated context, scaled to
    unit variance, plus noise of standard deviation ``noise``. All actions are measured in the reference context, MCF7 as in
    the PNAS study, which always trains. Without ``folder`` other pairs are missing at random.
    """
    rng = np.random.default_rng(seed)
    d = 20
    base = 0.7 * rng.normal(size=(n_contexts, d))
    shift = np.zeros((n_actions, d))
    for row in shift:
        hit = rng.choice(d, rng.integers(1, 4), replace=False)
        row[hit] = 2.5 * rng.choice([-1, 1], len(hit)) * rng.uniform(0.5, 1.5, len(hit))
    context, action = np.nonzero(_mask(folder, rng, n_contexts, n_actions))
    loc = np.concatenate([base[context] + shift[action], base])
    environments = simulate.Environments(
        [f"e{i}" for i in range(len(loc))],
        NoiseShift(torch.tensor(loc, dtype=torch.float32), torch.zeros(loc.shape)),
    )
    truth = simulate.growing_network(
        n_latents=d, n_genes=n_genes, decoder="neural", attach=0.15, environments=environments, seed=seed
    )
    everyone = torch.arange(len(loc))
    with torch.no_grad():
        torch.manual_seed(seed)
        mean = truth.predict(environments.schema(truth.gene_names).cells(everyone), n_samples=200).double().numpy()
    effect = mean[: len(context)] - mean[len(context) :][context]
    effect /= effect.std()
    names = [f"cell {k}" for k in range(n_contexts)], [f"drug {a}" for a in range(n_actions)], list(truth.gene_names)
    noisy = effect + noise * rng.normal(size=effect.shape)
    return Effects(noisy, context, action, *names, training_only=("cell 0",)), effect


def full_size(seed: int) -> Effects:
    """18,000 pairs × 978 genes of low rank and noise, 70 contexts × 2,000 actions: the size of the PNAS study's fold."""
    rng = np.random.default_rng(seed)
    n_contexts, n_actions, n_genes, rank = 70, 2000, 978, 20
    flat = rng.choice(n_contexts * n_actions, 20_000, replace=False)
    context, action = np.divmod(flat, n_actions)
    left = rng.normal(size=(n_contexts, rank))[context] * rng.normal(size=(n_actions, rank))[action]
    x = left @ rng.normal(size=(rank, n_genes)) / rank**0.5 + rng.normal(size=(len(flat), n_genes))
    names = [[f"{letter}{i}" for i in range(n)] for letter, n in (("c", n_contexts), ("a", n_actions), ("g", n_genes))]
    return Effects(x, context, action, *names, training_only=("c0",))


def seen_elsewhere(effects: Effects, train: np.ndarray, test: np.ndarray, at_least: int = 2) -> np.ndarray:
    """Test rows whose action has so many training pairs."""
    return np.bincount(effects.action[train], minlength=effects.A)[effects.action[test]] >= at_least


def _mask(folder: Path | None, rng: np.random.Generator, n_contexts: int, n_actions: int) -> np.ndarray:
    """Which pairs there are ``[K, A]``, all of the first context: actions drawn from those measured in MCF7 and elsewhere."""
    if folder is None:
        seen = rng.random((n_contexts, n_actions)) < 0.2
        seen[0] = True
        return seen
    table = pd.read_csv(folder / "meta" / "gps_availability_8148x42.csv.gz", index_col=0)
    fullest = table.sum().drop("MCF7").sort_values(ascending=False).index[: n_contexts - 1]
    there = table[["MCF7", *fullest]].to_numpy().T > 0
    possible = np.flatnonzero(there[0] & (there.sum(0) >= 2))
    return there[:, rng.choice(possible, n_actions, replace=False)]


def _basal(folder: Path, contexts: list[str]) -> pd.DataFrame:
    with np.load(folder / "l1000_cell_baselines165.npz", allow_pickle=False) as z:
        return pd.DataFrame(z["X"].astype(float), index=z["cell_id"].astype(str)).loc[contexts]


def _arrays(folder: Path, name: str) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as z:
        return z["X"].astype(float), z["gene"].astype(str).tolist(), pd.read_csv(folder / f"{name}_obs.csv.gz")
