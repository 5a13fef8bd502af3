"""Lion and AdamW against loops over numbers, which weights decay, and the learning rate over a run."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from cytolake.models import ModelConfig
from cytolake.models.objectives import DinoConfig, MaeConfig, ObjectiveConfig, build_objective
from cytolake.train.optimiser import Lion, build_optimiser, decayed_names, learning_rate_at

SMALL = ModelConfig(architecture="chada_vit", channels=("DNA", "ER"), crop_size=16, width=16, depth=2, heads=2)
BETAS = (0.9, 0.95)
LEARNING_RATE, DECAY = 0.01, 0.1


def model_and_data(seed: int = 0) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    return model, list(torch.randn(12, 4, 5).unbind())


def train(model: nn.Module, optimiser: torch.optim.Optimizer, data: list[torch.Tensor]) -> None:
    for minibatch in data:
        model(minibatch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def optimiser_of(model: nn.Module, name: str = "lion") -> torch.optim.Optimizer:
    return build_optimiser(model, name=name, learning_rate=LEARNING_RATE, betas=BETAS, weight_decay=DECAY)


def test_lion_is_its_formula():
    model, data = model_and_data()
    weights = {name: weight.detach().numpy().astype(np.float64) for name, weight in model.named_parameters()}
    means = {name: np.zeros_like(weight) for name, weight in weights.items()}
    optimiser = optimiser_of(model)
    for minibatch in data:
        model(minibatch).square().mean().backward()
        for name, weight in model.named_parameters():
            g, m = weight.grad.numpy().astype(np.float64), means[name]
            decay = DECAY if name in ("0.weight", "2.weight") else 0.0
            weights[name] = weights[name] * (1 - LEARNING_RATE * decay)
            weights[name] = weights[name] - LEARNING_RATE * np.sign(BETAS[0] * m + (1 - BETAS[0]) * g)
            means[name] = BETAS[1] * m + (1 - BETAS[1]) * g
        optimiser.step()
        optimiser.zero_grad()
    for name, weight in model.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), weights[name], atol=1e-6)


def test_adamw_is_that_of_torch_without_fusing():
    model, data = model_and_data()
    other = copy.deepcopy(model)
    train(model, optimiser_of(model, "adamw"), data)
    weights = dict(other.named_parameters())
    groups = [
        {"params": [weights[name] for name in ("0.weight", "2.weight")], "weight_decay": DECAY},
        {"params": [weights[name] for name in ("0.bias", "1.weight", "1.bias", "2.bias")], "weight_decay": 0.0},
    ]
    train(other, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=False, foreach=False), data)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_lion_keeps_one_mean_for_each_weight_and_nothing_else():
    model, data = model_and_data()
    optimiser = optimiser_of(model)
    train(model, optimiser, data)
    for weight in model.parameters():
        assert list(optimiser.state[weight]) == ["exp_avg"]
        assert optimiser.state[weight]["exp_avg"].shape == weight.shape


def test_lion_goes_on_from_its_state_as_if_it_had_not_stopped():
    model, data = model_and_data()
    stopped = copy.deepcopy(model)
    train(model, optimiser_of(model), data)
    first = optimiser_of(stopped)
    train(stopped, first, data[:5])
    second = optimiser_of(stopped)
    second.load_state_dict(first.state_dict())
    train(stopped, second, data[5:])
    for one, two in zip(model.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, two)


def test_lion_leaves_a_weight_without_a_gradient_as_it_is():
    model, _ = model_and_data()
    before = model[2].weight.detach().clone()
    optimiser = optimiser_of(model)
    model[0](torch.randn(2, 5)).sum().backward()
    optimiser.step()
    assert torch.equal(model[2].weight, before)
    assert model[2].weight not in optimiser.state


def test_lion_moves_dealt_out_weights_as_whole_ones(one_worker_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model, data = model_and_data()
    dealt = copy.deepcopy(model)
    train(model, optimiser_of(model), data)
    fully_shard(dealt, mesh=init_device_mesh("cpu", (1,)))
    optimiser = optimiser_of(dealt)
    train(dealt, optimiser, data)
    for whole, part in zip(model.parameters(), dealt.parameters(), strict=True):
        assert isinstance(part, DTensor)
        assert isinstance(optimiser.state[part]["exp_avg"], DTensor)
        torch.testing.assert_close(part.full_tensor(), whole)


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"lr": 1.0, "betas": (0.9, 1.0)}, {"lr": 1.0, "weight_decay": -1.0}])
def test_lion_refuses_settings_out_of_range(setting):
    with pytest.raises(ValueError, match="expected lr and weight_decay of 0 or more"):
        Lion([nn.Parameter(torch.zeros(1))], **setting)


def test_an_optimiser_of_another_name_is_refused():
    with pytest.raises(ValueError, match="choose adamw or lion"):
        optimiser_of(nn.Linear(2, 2), "sgd")


# Every matrix that tokens are multiplied by; all else is a bias, a norm, a gain, a token or looked up.
_ENCODER = {"encoder.patch_embedding.weight"}
_OF_BLOCK = {
    "sequential": ("qkv", "attention_out", "mlp.0", "mlp.2"),
    "parallel": ("entry", "attention_out", "mlp_out"),
    "post_norm": ("qkv", "attention_out", "mlp.0", "mlp.2"),
}


def matrices(prefix: str, block: str) -> set[str]:
    return {f"{prefix}.{name}.weight" for name in _OF_BLOCK[block]}


@pytest.mark.parametrize("architecture", ["mae_vit", "ca_mae_vit", "chada_vit"])
@pytest.mark.parametrize("block", ["sequential", "parallel", "post_norm"])
@pytest.mark.parametrize("positions", ["sin_cos", "learned"])
def test_only_matrices_decay(architecture, block, positions):
    model = dataclasses.replace(
        SMALL, architecture=architecture, block=block, positions=positions, layer_scale=1e-4, depth=1
    )
    objective = build_objective(model, ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1)), 0)
    assert decayed_names(objective) == (
        _ENCODER
        | matrices("encoder.blocks.0", block)
        | {"decoder.entry.weight", "decoder.pixels.weight"}
        | matrices("decoder.blocks.0", "sequential")
    )
    decayed, free = optimiser_of(objective).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (DECAY, 0.0)
    names = {id(weight): name for name, weight in objective.named_parameters()}
    assert {names[id(weight)] for weight in decayed["params"]} == decayed_names(objective)
    without_gradient = {name for name in names.values() if name.endswith("key_norm.bias")}
    assert {names[id(weight)] for weight in free["params"]} == {*names.values()} - decayed_names(
        objective
    ) - without_gradient


def test_the_matrices_of_decoders_for_each_channel_and_of_a_projection_decay():
    mae = MaeConfig(decoder="per_channel", decoder_width=16, decoder_heads=2, decoder_depth=1, contrastive_weight=0.1)
    objective = build_objective(dataclasses.replace(SMALL, architecture="ca_mae_vit"), ObjectiveConfig(mae=mae), 0)
    wanted = {f"decoder.{name}.weight" for name in ("query", "key_value", "attention_out", "mlp.0", "mlp.2")}
    for channel in range(3):
        wanted |= matrices(f"decoder.of_channel.{channel}.0", "sequential")
    wanted |= {"projection.hidden.weight", "projection.out.weight"}
    found = decayed_names(objective)
    assert wanted <= found
    assert not [name for name in found if "norm" in name or "embedding.weight" in name.replace("patch_embedding", "")]


def test_a_frozen_teacher_is_no_business_of_the_optimiser_and_prototypes_decay():
    objective = build_objective(
        SMALL, ObjectiveConfig(name="dino", dino=DinoConfig(local_size=8, hidden_width=8, n_prototypes=12)), 0
    )
    moved = {id(weight) for group in optimiser_of(objective).param_groups for weight in group["params"]}
    frozen = [weight for weight in objective.parameters() if not weight.requires_grad]
    assert frozen
    assert not any(id(weight) in moved for weight in frozen)
    assert len(moved) + len(frozen) == len(list(objective.parameters()))
    assert [name for name in decayed_names(objective) if name.endswith("prototypes")]


def test_of_a_resnet_convolutions_decay_and_norms_do_not():
    model = ModelConfig(architecture="resnet", channels=("DNA", "ER"), crop_size=16)
    objective = build_objective(model, ObjectiveConfig(name="simsiam"), 0)
    decayed = {name for name in decayed_names(objective) if name.startswith("encoder.")}
    matrices_of = {f"encoder.{name}" for name, weight in objective.encoder.named_parameters() if weight.ndim == 4}
    assert decayed == matrices_of
    assert len(decayed) == 20  # He et al. 2016: 17 convolutions, and 3 of shortcuts


def test_the_directions_of_a_weight_normed_layer_decay_and_their_lengths_do_not():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    assert decayed_names(nn.Sequential(layer)) == {"0.parametrizations.weight.original1"}


def torch_one_cycle(n_steps: int, peak: float, warmup_share: float) -> list[float]:
    """Learning rates of torch's own OneCycleLR with cosines."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=peak,
        total_steps=n_steps,
        pct_start=warmup_share,
        anneal_strategy="cos",
        cycle_momentum=False,
    )
    rates = []
    for _ in range(n_steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    return rates


@pytest.mark.parametrize(
    ("n_steps", "warmup_share"), [(200, 0.1), (205, 0.1), (37, 0.3), (7, 0.1), (1, 0.1), (50, 0.0)]
)
def test_one_cycle_is_torch_s_step_for_step(n_steps, warmup_share):
    ours = [learning_rate_at(step, n_steps, 0.02, warmup_share, "one_cycle") for step in range(n_steps)]
    np.testing.assert_allclose(ours, torch_one_cycle(n_steps, 0.02, warmup_share), rtol=1e-12)


def test_one_cycle_has_a_rate_where_torch_divides_by_0():
    assert learning_rate_at(0, 10, 1.0, 0.1, "one_cycle") == 1.0  # the peak is the first step
    assert learning_rate_at(0, 1, 1.0, 0.999, "one_cycle") > 0


def test_the_linear_warm_up_differs_from_one_cycle_by_a_tenth_of_the_peak_at_most():
    n_steps = 200
    rates = torch_one_cycle(n_steps, 1.0, 0.1)
    ours = [learning_rate_at(step, n_steps, 1.0, 0.1) for step in range(n_steps)]
    np.testing.assert_allclose(ours[:20], rates[:20], atol=0.11)
    np.testing.assert_allclose(ours[20:], rates[20:], atol=math.pi / n_steps)


def test_the_learning_rate_rises_in_a_straight_line_to_its_peak_and_falls_to_nearly_nothing():
    rates = [learning_rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_at(0, 1, 1.0, 0.1) == 1.0


@pytest.fixture
def one_worker_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
