"""Causal imputation: predict interventions never done, carry effects to new contexts, find drugs and targets."""

from .baselines import ActionMean, ContextMean, FixedEffects, ShrunkMean, TwoWayMean
from .effects import Effects
from .protocol import HeldOut, cross_validate, few_shot, hold_out, k_fold, leave_one_out

__all__ = [
    "ActionMean",
    "ContextMean",
    "Effects",
    "FixedEffects",
    "HeldOut",
    "ShrunkMean",
    "TwoWayMean",
    "cross_validate",
    "few_shot",
    "hold_out",
    "k_fold",
    "leave_one_out",
]
