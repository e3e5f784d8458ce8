"""Fitting, checkpoints, run folders."""
