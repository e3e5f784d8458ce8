"""Models of environments as imputers: a pair of context and action is an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import ArrayLike

from ..data.environment import EnvironmentData
from ..errors import ConfigError, DataError
from ..posterior import Posterior
from ..seeds import isolated
from ..train.fit import fit
from .baselines import checked
from .effects import Array, Codes, Effects

FEATURES = ("membership", "known")


class EnvironmentImputer:
    """A generative model of environments, asked for environments it never saw.

    Every measured pair is an environment with one profile. ``features="membership"`` describes it by its context and its
    action (``K + A`` columns of 0 and 1), for a prior that adds up what environments are made of
    (:class:`~pyro_cge.PerturbationPrior`, the preset ``sams_vae(..., additive=True)``); ``features="known"`` by the
    context's and the action's features, for a prior network or a :class:`~pyro_cge.KernelPrior` that carries over to
    actions never measured anywhere. A missing pair is predicted from the posterior predictive of its environment: no
    profile of it enters.

    Parameters
    ----------
    build : callable, EnvironmentData → (model, guide)
        E.g. ``lambda data: cge.sams_vae(data, d=20, additive=True)``.
    features : {"membership", "known"}
    samples : int
        Draws behind the predictive mean and standard deviation.
    random_state : int
        Seeds the weights as well as the training.
    **settings
        Of :func:`pyro_cge.fit`: ``epochs``, ``lr``, ``objective``, ``device``, ….

    Attributes
    ----------
    fit_ : Fit
    """

    def __init__(
        self,
        build: Callable[[EnvironmentData], tuple[Any, Any]],
        *,
        features: str = "membership",
        samples: int = 100,
        random_state: int = 0,
        **settings: Any,
    ) -> None:
        if not callable(build):
            raise ConfigError(f"build makes (model, guide) from EnvironmentData; got {type(build).__name__}")
        if features not in FEATURES:
            raise ConfigError(f"features must be 'membership' or 'known', got {features!r}")
        if samples < 2:
            raise ConfigError(f"samples must be at least 2, got {samples}")
        if reserved := {"seed"} & set(settings):
            raise ConfigError(f"{reserved.pop()!r} is set by random_state")
        self.build, self.features, self.samples = build, features, samples
        self.random_state, self.settings = random_state, settings

    def fit(self, effects: Effects) -> EnvironmentImputer:
        """Build and train the model; the caller's random state and parameter store are left alone.

        Raises
        ------
        DataError
            For fewer than two training pairs.
        """
        self.effects_ = checked(effects)
        if effects.m < 2:
            raise DataError("a model of environments needs two training pairs or more, there is one")
        data = environments(effects, effects.context, effects.action, effects.x, features=self.features)
        with pyro.get_param_store().scope():
            with isolated(self.random_state, "weights"):
                model, guide = self.build(data)
            self.fit_ = fit(model, guide, data, seed=self.random_state, **self.settings)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Mean ``[p, g]`` of each pair's environment, and the standard deviation of a new profile of it."""
        context, action = self.effects_.codes(pairs)
        data = environments(self.effects_, context, action, None, features=self.features)
        if not len(context):
            mean = np.zeros((0, self.effects_.g))
            return (mean, mean) if return_std else mean
        with pyro.get_param_store().scope():
            posterior: Posterior = self.fit_.posterior(data)
            mean = posterior.predict(data, self.samples, self.random_state).double().numpy()
            if not return_std:
                return mean
            draws = posterior.replicate(self.samples, self.random_state, new_profiles=True)
        return mean, draws.double().std(0).numpy()


def environments(
    effects: Effects, context: Codes, action: Codes, x: Array | None, *, features: str = "membership"
) -> EnvironmentData:
    """The pairs as environments with one profile each; ``x=None`` for pairs that are to be predicted.

    Raises
    ------
    DataError
        For ``features="known"`` without any.
    """
    where, what = (np.asarray(names, dtype=object) for names in (effects.context_names, effects.action_names))
    if features == "membership":
        names = [*(f"context {name}" for name in where), *(f"action {name}" for name in what)]
        table = np.concatenate([np.eye(effects.K)[context], np.eye(effects.A)[action]], 1)
    else:
        names, table = _known(effects, context, action)
    n = len(context)
    labels = [f"{a} in {k} #{i}" for i, (k, a) in enumerate(zip(where[context], what[action], strict=True))]
    env_table = pd.DataFrame(
        {"cell_line": where[context], "perturbagen": what[action]}, index=pd.Index(labels, dtype=str)
    )
    env_table.attrs["feature_names"] = names
    values = np.zeros((n, effects.g)) if x is None else x
    return EnvironmentData(
        x=torch.from_numpy(values.astype(np.float32)),
        env=torch.arange(n),
        gene_names=list(effects.gene_names),
        env_names=labels,
        env_features=torch.from_numpy(table.astype(np.float32)),
        env_table=env_table,
    )


def _known(effects: Effects, context: Codes, action: Codes) -> tuple[list[str], Array]:
    """Features of context and action side by side; a context without features is described by its name."""
    if effects.action_features is None:
        raise DataError("features='known' needs action_features (fingerprints, …); give them to Effects")
    of_action = effects.action_features
    of_context = effects.context_features
    if of_context is None:
        of_context = pd.DataFrame(np.eye(effects.K), columns=[str(name) for name in effects.context_names])
    names = [*(f"context {name}" for name in of_context.columns), *(f"action {name}" for name in of_action.columns)]
    table = np.concatenate([of_context.to_numpy(float)[context], of_action.to_numpy(float)[action]], 1)
    return names, table
