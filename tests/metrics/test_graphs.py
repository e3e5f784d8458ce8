"""Structural Hamming distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_cge.metrics import structural_hamming_distance


def test_missing_extra_and_reversed_edges_count_once_each():
    truth = torch.zeros(4, 4)
    truth[0, 1] = truth[1, 2] = truth[2, 3] = 1
    estimate = np.zeros((4, 4))
    estimate[1, 0] = -0.7  # reversed
    estimate[1, 2] = 0.3  # right
    estimate[0, 3] = 1.0  # extra; 2 → 3 is missing
    assert structural_hamming_distance(estimate, truth) == 3
    assert structural_hamming_distance(truth, truth) == 0


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"one size, got \[2, 2\] and \[3, 3\]"):
        structural_hamming_distance(torch.zeros(2, 2), torch.zeros(3, 3))
