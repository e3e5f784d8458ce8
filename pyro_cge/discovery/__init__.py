"""Causal structure from environments, on causes that are known or were estimated."""

from .trees import TreeClass, changed_causes, trees_of

__all__ = ["TreeClass", "changed_causes", "trees_of"]
