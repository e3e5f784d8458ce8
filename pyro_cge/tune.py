"""Search for settings with Optuna: each trial is a fit, judged by what it says of held-out profiles.

A space has an entry a setting: a range ``1e-4..1e-2``, on a logarithmic scale ``1e-4..1e-2:log``, or choices
``linear|mlp``. As a YAML file (a list there is choices too), or item by item, ``lr=1e-4..1e-2:log``::

    lr: 1e-4..1e-2:log
    latents: 2..20
    decoder: linear|mlp
    hidden: [[64], [128], [128, 128]]

Trials are kept in a *study*, and a study in a database that several processes may share: the same command, started twice
or on two machines, works on the same trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from .config import RunConfig, from_yaml, validated
from .errors import ConfigError, NonFiniteLossError

if TYPE_CHECKING:
    import optuna

    from .data.profiles import Profiles

Space = dict[str, str]
# A loss compares models of the same held-out numbers in the same units, and the rotation follows the loss.
FIXED = ("split", "fractions", "seed", "standardize", "rotate")
COUNTS = {"poisson", "negative_binomial"}
BUSY = ("IntegrityError", "OperationalError", "StorageInternalError")  # of a database that another process sets up
LONGEST_WAIT = 3.0  # seconds


def read_space(path: Path | None = None, vary: Sequence[str] = ()) -> Space:
    """The search space of a YAML file and of ``setting=values`` entries, which win.

    Raises
    ------
    ConfigError
        If there is nothing to vary, or an entry has no such form.
    """
    entries: dict[str, Any] = {}
    if path is not None:
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path} as YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold 'setting: values' lines, found {type(content).__name__}")
        entries |= content
    for item in vary:
        name, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--vary needs setting=values, got {item!r}")
        entries[name.strip()] = text.strip()
    if not entries:
        raise ConfigError("nothing to vary: give --space FILE or --vary lr=1e-4..1e-2:log")
    return {str(name): _text(values) for name, values in entries.items()}


def _text(values: Any) -> str:
    if isinstance(values, list):
        return "|".join(yaml.safe_dump(v, default_flow_style=True).removesuffix("\n...\n").strip() for v in values)
    return str(values)


def distribution(name: str, text: str) -> optuna.distributions.BaseDistribution:
    """What an entry of a space stands for.

    Raises
    ------
    ConfigError
        If it is neither a range nor choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "|" in text:
        return CategoricalDistribution([choice.strip() for choice in text.split("|")])
    ends, colon, scale = text.partition(":")
    low, dots, high = ends.partition("..")
    annotation = RunConfig.model_fields[name].annotation if name in RunConfig.model_fields else float
    real = float in (annotation, *get_args(annotation))
    try:
        if not dots or (colon and scale.strip() != "log"):
            raise ValueError("not a range")
        if real:
            return FloatDistribution(float(low), float(high), log=bool(colon))
        return IntDistribution(int(low), int(high), log=bool(colon))
    except ValueError as error:
        raise ConfigError(
            f"{name}: expected a range 'low..high' or 'low..high:log' (above zero), or choices 'a|b', got {text!r}"
        ) from error


def laws(config: RunConfig, space: Mapping[str, str]) -> dict[str, optuna.distributions.BaseDistribution]:
    """What each entry of a space stands for, when every end of a range and every choice is one that ``config`` may have.

    Raises
    ------
    ConfigError
        Without Optuna, or for a space that does not fit the settings or whose losses are not to be compared.
    """
    _optuna()
    if fixed := [name for name in FIXED if name in space]:
        raise ConfigError(
            f"{', '.join(fixed)} cannot be varied: trials are compared by their loss on the same held-out numbers; give one "
            "value with --set"
        )
    found = {name: distribution(name, text) for name, text in space.items()}
    for values in _corners(found):
        _configured(config, values)
    of_counts = {from_yaml(law, "likelihood") in COUNTS for law in getattr(found.get("likelihood"), "choices", ())}
    if len(of_counts) > 1:
        raise ConfigError(
            f"likelihood = {space['likelihood']}: a probability of counts and a density of reals are not to be compared; "
            f"vary within {', '.join(sorted(COUNTS))} or within the others"
        )
    return found


def tune(
    config: RunConfig,
    data: Profiles,
    space: Mapping[str, str],
    *,
    trials: int = 50,
    storage: str | None = None,
    study: str = "pyro-cge",
    device: str | None = None,
    out: Path | None = None,
) -> optuna.Study:
    """Look for the settings under which held-out profiles are most probable.

    Every trial splits and initialises as ``config`` says, with the settings of ``space`` in place of its own. It is
    judged by minus the ELBO of the split's validation part (nats a profile, at full weight of the KL term whatever the
    trial's own objective), at the epoch that early stopping keeps. After each epoch the trial's loss is compared with
    that of the others at the same epoch, and a trial that is worse than most is stopped (median pruning, not before the
    KL term has its full weight). Settings are proposed by a tree-structured Parzen estimator (Bergstra et al. 2011).

    A loss compares models of the same held-out numbers: what decides them or their units (``split``, ``fractions``,
    ``seed``, ``standardize``, likelihoods of counts and of reals) is not to be varied, nor is ``rotate``, which follows it.

    Parameters
    ----------
    config : RunConfig
        The settings that stay.
    space : mapping
        Setting → values (:func:`read_space`).
    trials : int
        Of the study in all, by whatever processes, that ended: a trial whose process was killed is made up for. Of ``w``
        processes each begins trials until so many have ended, so that there may be ``w − 1`` more.
    storage : str, optional
        Database of the study, such as ``sqlite:///study.db``: an existing study goes on, and others may join it. In
        memory without; then the search is a function of the configuration's seed.
    study : str
        Its name in the database.
    out : path, optional
        Folder for ``space.yaml``, ``best.yaml`` (settings of the best trial, for ``--config``) and ``trials.csv``, the
        last two renewed after each trial and at the end. The settings are those the trial was judged with, its ``epochs`` too; a first
        line says at which epoch it was best, and a fit that should train longer is given more.

    Returns
    -------
    optuna.Study

    Raises
    ------
    ConfigError
        Without Optuna; for a space that does not fit the settings; if nothing is held out; for a study of other
        settings or data; if no trial of the study came to an end.
    """
    from .runs import build, make_split, train
    from .train.checkpoint import write_atomically
    from .train.distributed import joined

    optuna = _optuna()
    with joined() as world:
        if world.size > 1:
            raise ConfigError(
                f"processes share a search by its storage, not by torchrun ({world.size} processes here): start the same "
                "command several times with one --storage"
            )
    distributions = laws(config, space)
    parts = make_split(config, data)
    if not len(parts.valid):
        raise ConfigError(
            f"nothing is held out to judge trials by: fractions are {config.fractions}, give a second one"
        )
    found = _open(optuna, storage, study, config.seed)
    _agree(found, {"config": config.model_dump(mode="json"), "space": dict(space), "data": data.digest})

    states = optuna.trial.TrialState
    if out is not None:
        write_atomically(Path(out) / "space.yaml", yaml.safe_dump(dict(space), sort_keys=False).encode())

    def judged(trial: Any) -> float:
        settings = _configured(config, trial.params)

        def report(row: Mapping[str, float]) -> None:
            trial.report(_loss(row), int(row["epoch"]))
            if row["epoch"] + 1 > settings.kl_warmup and trial.should_prune():
                raise optuna.TrialPruned

        model, guide = build(settings, data)
        unturned = settings.model_copy(update={"rotate": False})
        result = train(model, guide, unturned, data, parts, device=device, on_record=report, progress=False)
        trial.set_user_attr("best_epoch", result.best_epoch)
        return _loss(result.history.iloc[result.best_epoch])

    def keep() -> None:
        if out is None or not _count(found, states.COMPLETE):
            return
        settings = best(config, found)
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        write_atomically(Path(out) / "best.yaml", f"# {_judgement(settings, found)}\n{text}".encode())
        write_atomically(Path(out) / "trials.csv", found.trials_dataframe().to_csv(index=False).encode())

    ended = (states.COMPLETE, states.PRUNED, states.FAIL)  # a killed one says for ever that it is running
    while _count(found, *ended) < trials:
        trial = found.ask(distributions)
        try:
            found.tell(trial, judged(trial))
        except optuna.TrialPruned:
            found.tell(trial, state=states.PRUNED)
        except BaseException as error:
            found.tell(trial, state=states.FAIL)
            if not isinstance(error, NonFiniteLossError):
                raise
        keep()
    keep()  # another process may have written last, what it had read before
    if not _count(found, states.COMPLETE):
        running = _count(found, states.RUNNING)
        others = f" ({running} are still running, or were killed)" if running else ""
        raise ConfigError(
            f"none of {len(found.trials)} trials came to an end{others}: narrow the space, or look at the settings"
        )
    return found


def best(config: RunConfig, study: optuna.Study) -> RunConfig:
    """The settings of a study's best trial."""
    return _configured(config, study.best_params)


def still_improving(config: RunConfig, study: optuna.Study) -> bool:
    """Whether the best trial was best at its last epoch, so that its settings deserve more ``epochs``."""
    return bool(study.best_trial.user_attrs["best_epoch"] + 1 == best(config, study).epochs)


def _judgement(settings: RunConfig, study: optuna.Study) -> str:
    trial = study.best_trial
    return (
        f"trial {trial.number}: {trial.value:.6g} nats a held-out profile after epoch {trial.user_attrs['best_epoch'] + 1} "
        f"of {settings.epochs}; --set epochs=N trains longer"
    )


def _loss(row: Any) -> float:
    """Minus the held-out ELBO of a row of the history, nats a profile; infinite where it is not a number."""
    loss = float(row["valid_kl"] - row["valid_log_likelihood"])
    return math.inf if math.isnan(loss) else loss


def _configured(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Choices are YAML: ``[128, 128]``, ``null``, ``mlp``."""
    chosen = {name: from_yaml(value, name) if isinstance(value, str) else value for name, value in values.items()}
    return validated(RunConfig, config.model_dump() | chosen, "space")


def _corners(distributions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings that use every end of a range and every choice at least once."""
    ends = {name: list(getattr(law, "choices", ()) or (law.low, law.high)) for name, law in distributions.items()}
    most = max(map(len, ends.values()))
    return [{name: values[min(k, len(values) - 1)] for name, values in ends.items()} for k in range(most)]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("the search for settings needs Optuna: pip install 'pyro-cge[tune]'") from error
    return optuna


def _open(optuna: Any, storage: str | None, name: str, seed: int, wait: float = 0.1) -> Any:
    # Processes that share a study must not make the same proposals.
    sampler = optuna.samplers.TPESampler(seed=seed if storage is None else None)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    try:
        return optuna.create_study(
            storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    except Exception as error:  # of whatever database it is
        # Of processes that start together, all but one may find tables that are just being made.
        if type(error).__name__ in BUSY and wait < LONGEST_WAIT:
            time.sleep(wait)
            return _open(optuna, storage, name, seed, 2 * wait)
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot open the study in {storage}: {reason}; expected such as sqlite:///study.db"
        ) from error


def _agree(study: Any, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a study of something else."""
    known = study.user_attrs
    if other := [name for name in settings if name in known and known[name] != settings[name]]:
        raise ConfigError(
            f"the study {study.study_name!r} was begun with another {' and '.join(other)}: name a new one with --study"
        )
    for name, value in settings.items():
        if name not in known:
            study.set_user_attr(name, value)


def _count(study: Any, *states: Any) -> int:
    return len(study.get_trials(deepcopy=False, states=states))
