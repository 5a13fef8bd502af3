"""Biases that cannot change a loss are not trained: Adam would divide the rounding error of their gradient by its size.

Which they are is not listed here but measured: a bias is one of them where a large change of it leaves the loss alone.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.fast_cases import fast_cases
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import MaeConfig, Objective, ObjectiveConfig, build_objective

ENCODERS = {
    "chada sequential": MODEL,
    "chada parallel": dataclasses.replace(MODEL, block="parallel", layer_scale=0.5),
    "chada published": dataclasses.replace(MODEL, block="post_norm", positions="learned", channel_code="order"),
    "channel-agnostic": dataclasses.replace(MODEL, architecture="ca_mae_vit", block="parallel"),
    "fused": dataclasses.replace(MODEL, architecture="mae_vit", channels=("DNA", "ER")),
}
PER_CHANNEL = MaeConfig(decoder="per_channel", decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)
CASES = [(encoder, name) for encoder in ENCODERS for name in CONFIGS if encoder == "chada sequential" or name == "mae"]
CASES += [(encoder, name) for encoder in ("chada published", "chada parallel") for name in ("dino", "byol")]
CASES += [("channel-agnostic", "per channel")]


def case(encoder: str, name: str) -> tuple[Objective, list]:
    """An objective with weights far from their first values, and its views."""
    model = dataclasses.replace(ENCODERS[encoder], depth=2)
    config = ObjectiveConfig(mae=PER_CHANNEL) if name == "per channel" else CONFIGS[name]
    objective = build_objective(model, config, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in objective.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=random)
    crops = mixed_crops(12)
    return objective, views_of(config, [crop for crop in crops if len(crop) == 2] if model.is_fused else crops)


def parts_of(objective: Objective) -> list[tuple[str, torch.Tensor, slice]]:
    """Every bias that no teacher holds; of queries, keys and values in one, each on its own."""
    parts = []
    for name, weight in objective.named_parameters():
        if name.startswith("teacher.") or not name.endswith("bias"):
            continue
        n = 3 if name.endswith("qkv.bias") else 1
        width = len(weight) // n
        parts += [(f"{name} {i}" if n > 1 else name, weight, slice(i * width, (i + 1) * width)) for i in range(n)]
    return parts


@pytest.mark.parametrize(("encoder", "name"), fast_cases(CASES, *CASES[::3]))
def test_a_bias_has_a_gradient_of_exactly_0_where_it_cannot_change_the_loss_and_else_another(encoder, name):
    objective, views = case(encoder, name)
    parts = parts_of(objective)
    loss = objective(views)["loss"]
    loss.backward()
    random = torch.Generator().manual_seed(2)
    without = []
    for part, weight, place in parts:
        before = weight.detach().clone()
        with torch.no_grad():
            weight[place] += torch.randn(weight[place].shape, generator=random)
            change = abs(objective(views)["loss"] - loss)
            weight.copy_(before)
        # In exact arithmetic 0 or of the order of the loss. Rounding: 2^-24 for each of some hundred operations that
        # follow each other, in numbers that the change made a few times larger.
        can_change = change > 1e-4 * abs(loss)
        gradient = None if weight.grad is None else weight.grad[place]
        moves = gradient is not None and bool((gradient != 0).any())
        assert moves == can_change, f"{part}: the loss changes by {change} of {loss}, gradient {gradient}"
        if not can_change:
            without.append(part)
    assert [part for part in without if part.startswith("encoder.blocks.1.")]  # keys of every kind of block


def test_what_has_no_gradient_stays_0_in_training_with_adam():
    for name in ("mae", "byol", "vicreg", "barlow_twins"):
        objective = build_objective(MODEL, CONFIGS[name], 0)
        weights = [weight for weight in objective.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, 1e-2)
        for step in range(3):
            objective(views_of(CONFIGS[name], mixed_crops(8), epoch=step))["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
        state = objective.state_dict()
        assert not state["encoder.blocks.0.key_norm.bias"].any()
        assert state["encoder.blocks.0.query_norm.bias"].any()
        if name == "mae":
            query, key, value = state["decoder.blocks.0.qkv.bias"].chunk(3)
            assert [part.any().item() for part in (query, key, value)] == [True, False, True]
        else:
            assert not state["projector.0.bias"].any()
            assert state["projector.1.bias"].any()
