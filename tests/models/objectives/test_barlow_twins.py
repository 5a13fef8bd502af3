from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from tests.models.objectives.small_objectives import MODEL

from cytolake.models.objectives import BarlowTwins, BarlowTwinsConfig
from cytolake.models.objectives.barlow_twins import cross_correlation


def losses_of(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    config = BarlowTwinsConfig(hidden_width=4, projected_width=4, off_diagonal_weight=0.25)
    return {name: value.item() for name, value in BarlowTwins(MODEL, config).losses(first, second).items()}


def test_the_losses_are_those_of_numpy_s_correlations():
    first, second = (3 * torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)) + 1 for seed in (0, 1))
    matrix = np.corrcoef(first.double().numpy().T, second.double().numpy().T)[:4, 4:]
    np.testing.assert_allclose(cross_correlation(first, second).numpy(), matrix, atol=1e-5)
    on = sum((1 - matrix[i, i]) ** 2 for i in range(4))
    off = sum(matrix[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    wanted = {"loss": on + 0.25 * off, "on_diagonal": on, "off_diagonal": off}
    assert losses_of(first, second) == pytest.approx(wanted, rel=1e-4)


def test_equal_views_of_features_without_correlation_have_no_loss():
    rows = torch.tensor(hadamard(8)[:, 1:5]).float()
    assert losses_of(rows, 3 * rows + 2) == pytest.approx(
        dict.fromkeys(("loss", "on_diagonal", "off_diagonal"), 0.0), abs=1e-8
    )


def test_a_collapse_has_its_known_value():
    wanted = {"loss": 4.0, "on_diagonal": 4.0, "off_diagonal": 0.0}
    assert losses_of(torch.ones(6, 4), torch.ones(6, 4)) == pytest.approx(wanted)


def test_four_copies_of_one_feature_are_fully_correlated():
    rows = torch.tensor(hadamard(8)[:, 1:2]).float().expand(-1, 4)
    wanted = {"loss": 3.0, "on_diagonal": 0.0, "off_diagonal": 12.0}
    assert losses_of(rows, rows) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
