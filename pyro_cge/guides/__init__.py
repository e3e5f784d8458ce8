"""Variational guides: encoders and how they see the environment."""
