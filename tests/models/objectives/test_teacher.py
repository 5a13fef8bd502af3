from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import build_objective
from cytolake.models.objectives.teacher import Teacher, momentum_at

with_teacher = pytest.mark.parametrize(
    ("name", "head"), [("dino", "head"), ("byol", "projector"), ("moco_v2_plus", "projector"), ("moco_v3", "projector")]
)


MOMENTA = {"dino": (0.9995,), "byol": (0.99,), "moco_v2_plus": (0.99, 0.999), "moco_v3": (0.99,)}


def test_momentum_rises_from_its_first_value_to_1_along_half_a_cosine():
    assert momentum_at(0.0, 0.99) == pytest.approx(0.99)
    assert momentum_at(0.25, 0.99) == pytest.approx(1 - 0.01 * (1 + 2**-0.5) / 2)
    assert momentum_at(0.5, 0.99) == pytest.approx(0.995)
    assert momentum_at(1.0, 0.99) == 1.0


def test_momentum_of_moco_v2_plus_ends_below_1_as_published():
    assert momentum_at(0.0, 0.99, 0.999) == pytest.approx(0.99)
    assert momentum_at(0.5, 0.99, 0.999) == pytest.approx(0.9945)
    assert momentum_at(1.0, 0.99, 0.999) == pytest.approx(0.999)


@with_teacher
def test_the_teacher_follows_a_student_that_stands_still_as_the_schedule_says(name, head):
    objective = build_objective(MODEL, CONFIGS[name], 0)
    student, teacher = getattr(objective, head), objective.teacher
    assert isinstance(teacher, Teacher)
    with torch.no_grad():
        for weight in (*objective.encoder.parameters(), *student.parameters()):
            weight += 1.0
    left = 1.0
    for step in range(1, 5):
        objective.after_step(step / 4)
        left *= momentum_at(step / 4, *MOMENTA[name])
        pairs = [*zip(teacher.encoder.parameters(), objective.encoder.parameters(), strict=True)]
        pairs += zip(teacher.head.parameters(), student.parameters(), strict=True)
        for own, new in pairs:
            torch.testing.assert_close(new - own, torch.full_like(own, left), atol=2e-6, rtol=0)


@with_teacher
def test_no_gradient_reaches_the_teacher(name, head):
    objective = build_objective(MODEL, CONFIGS[name], 0)
    objective(views_of(CONFIGS[name], mixed_crops(4)))["loss"].backward()
    assert not any(weight.requires_grad for weight in objective.teacher.parameters())
    assert all(weight.grad is None for weight in objective.teacher.parameters())
    trained = [weight for weight in getattr(objective, head).parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None for weight in trained)


@with_teacher
def test_the_teacher_is_part_of_the_state(name, head):
    objective = build_objective(MODEL, CONFIGS[name], 0)
    state = objective.state_dict()
    for key, _ in objective.encoder.named_parameters():
        assert f"teacher.encoder.{key}" in state
    for key, _ in getattr(objective, head).named_parameters():
        assert f"teacher.head.{key}" in state


@with_teacher
def test_the_teacher_skips_no_blocks(name, head):
    model = dataclasses.replace(MODEL, depth=4, drop_path=0.9)
    objective = build_objective(model, CONFIGS[name], 0).train()
    crops = views_of(CONFIGS[name], mixed_crops(6))[0].crops
    with torch.no_grad():
        assert torch.equal(objective.teacher.encoder.features(crops)[0], objective.teacher.encoder.features(crops)[0])
        assert not torch.equal(objective.encoder.features(crops)[0], objective.encoder.features(crops)[0])


def test_dino_keeps_its_teacher_and_byol_its_student():
    dino, byol = (build_objective(MODEL, CONFIGS[name], 0) for name in ("dino", "byol"))
    assert dino.final_encoder is dino.teacher.encoder
    assert byol.final_encoder is byol.encoder
