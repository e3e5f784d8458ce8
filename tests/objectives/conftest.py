"""A small data set and model that the objectives are tried on."""

from __future__ import annotations

import pytest
import torch

import pyro_cge as cge


@pytest.fixture
def small():
    """30 profiles of 6 genes in environments of 12, 9, 8 and 1 profiles, and the model's pair of 3 latents."""
    env = torch.tensor([0] * 12 + [1] * 9 + [2] * 8 + [3])[torch.randperm(30)]
    data = cge.EnvironmentData(
        x=torch.randn(30, 6),
        env=env,
        gene_names=[f"gene {k}" for k in range(6)],
        env_names=[f"env {e}" for e in range(4)],
        control=[0],
    )
    return data, *cge.environment_vae(data, 3, hidden=(5,))
