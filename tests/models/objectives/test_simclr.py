from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import build_objective
from cytolake.models.objectives.simclr import nt_xent


def test_the_loss_is_the_published_one_written_out():
    first, second = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    vectors = torch.cat([first, second]).double().numpy()
    losses = []
    for i in range(10):
        cosines = [a @ vectors[i] / np.linalg.norm(a) / np.linalg.norm(vectors[i]) for a in vectors]
        others = sum(np.exp(cosines[k] / 0.3) for k in range(10) if k != i)
        losses.append(-np.log(np.exp(cosines[(i + 5) % 10] / 0.3) / others))
    assert nt_xent(first, second, 0.3).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_pairs_at_right_angles_and_a_collapse_have_their_known_values():
    orthogonal, collapsed = torch.eye(4), torch.ones(4, 3)
    wanted = math.log(math.exp(1 / 0.5) + 6) - 1 / 0.5
    assert nt_xent(orthogonal, 7 * orthogonal, 0.5).item() == pytest.approx(wanted, rel=1e-5)
    assert nt_xent(collapsed, collapsed, 0.5).item() == pytest.approx(math.log(7), rel=1e-5)


def test_the_loss_has_float32_s_digits_within_autocast():
    first, second = torch.randn(6, 4), torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(first, second, 0.1)
    assert torch.equal(inside, nt_xent(first, second, 0.1))


def test_the_objective_is_the_loss_of_the_projected_mean_tokens():
    objective = build_objective(MODEL, CONFIGS["simclr"], 0)
    views = views_of(CONFIGS["simclr"], mixed_crops(5))
    projected = [objective.projector(objective.encoder.features(view.crops)[1]) for view in views]
    assert torch.equal(objective(views)["loss"], nt_xent(*projected, 0.2))


def test_shapes_can_be_computed_without_a_device():
    assert nt_xent(torch.empty(4, 3, device="meta"), torch.empty(4, 3, device="meta"), 0.1).shape == ()
