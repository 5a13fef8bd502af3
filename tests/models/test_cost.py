"""The cost of training, by formula, against real modules, torch's own counters and published figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.fast_cases import fast_cases
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cytolake.models import SIZES, ModelConfig, collate, masking_noise, published_size
from cytolake.models.cost import parameter_units, training_cost
from cytolake.models.devices import DEVICES, device_peak_tflops, find_device
from cytolake.models.objectives import (
    DinoConfig,
    MaeConfig,
    MoCoV2PlusConfig,
    Objective,
    ObjectiveConfig,
    View,
    build_objective,
)

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito", "WGA")
PUBLISHED_MAE = ObjectiveConfig(mae=MaeConfig(decoder_width=512, decoder_depth=8, decoder_heads=16))
N_CROPS = 2

SMALL = ModelConfig(channels=STAINS[:3], crop_size=64, patch_size=8, width=48, depth=3, heads=4, layer_scale=1e-4)
RESNET = ModelConfig(architecture="resnet", channels=STAINS[:3], crop_size=32)
SMALL_MAE = MaeConfig(decoder_width=32, decoder_depth=2, decoder_heads=4)

CASES = {
    "mae_vit": (dataclasses.replace(SMALL, architecture="mae_vit", block="parallel"), ObjectiveConfig(mae=SMALL_MAE)),
    "ca_mae_vit": (dataclasses.replace(SMALL, architecture="ca_mae_vit"), ObjectiveConfig(mae=SMALL_MAE)),
    "chada_vit": (
        dataclasses.replace(SMALL, block="post_norm", positions="learned", channel_code="order"),
        ObjectiveConfig(mae=SMALL_MAE),
    ),
    "per_channel": (
        dataclasses.replace(SMALL, architecture="ca_mae_vit", block="parallel"),
        ObjectiveConfig(mae=dataclasses.replace(SMALL_MAE, decoder="per_channel")),
    ),
    "contrastive": (SMALL, ObjectiveConfig(mae=dataclasses.replace(SMALL_MAE, contrastive_weight=0.1))),
    "simclr": (SMALL, ObjectiveConfig(name="simclr")),
    "byol": (SMALL, ObjectiveConfig(name="byol")),
    "moco_v2_plus": (
        SMALL,
        ObjectiveConfig(name="moco_v2_plus", moco_v2_plus=MoCoV2PlusConfig(queue_size=4096, projected_width=16)),
    ),
    "moco_v3": (SMALL, ObjectiveConfig(name="moco_v3")),
    "simsiam": (SMALL, ObjectiveConfig(name="simsiam")),
    "resnet18": (RESNET, ObjectiveConfig(name="moco_v3")),
    "resnet50": (
        dataclasses.replace(RESNET, resnet="resnet50", stem="standard", crop_size=64),
        ObjectiveConfig(
            name="dino",
            dino=DinoConfig(n_local_views=1, local_size=32, pooling="mean", hidden_width=64, n_prototypes=96),
        ),
    ),
    "dino": (SMALL, ObjectiveConfig(name="dino", dino=DinoConfig(n_local_views=3, hidden_width=64, n_prototypes=96))),
}


def views_of(model: ModelConfig, objective: Objective, config: ObjectiveConfig) -> list[View]:
    rng = np.random.default_rng(0)
    views = []
    for view in range(objective.n_views):
        size = config.dino.local_size if config.name == "dino" and view >= 2 else model.crop_size
        images = [rng.normal(size=(3, size, size)) for _ in range(N_CROPS)]
        crops = collate(images, [model.channel_indices(STAINS[:3])] * N_CROPS)
        views.append(View(crops, masking_noise(0, 0, range(N_CROPS), model.n_tokens(3), view=view)))
    return views


@pytest.mark.parametrize("name", fast_cases(CASES, "mae_vit", "per_channel", "dino", "resnet18"))
def test_parameters_are_those_of_the_real_modules(name):
    model, config = CASES[name]
    objective = build_objective(model, config, 0)
    cost = training_cost(model, config, 3)
    encoder = sum(weight.numel() for weight in objective.encoder.parameters())
    frozen = sum(weight.numel() for name, weight in objective.named_parameters() if name.startswith("teacher."))
    trained = sum(weight.numel() for weight in objective.parameters()) - frozen
    assert (cost.encoder_parameters, cost.other_parameters) == (encoder, trained - encoder)
    assert cost.teacher_parameters == frozen
    assert cost.trained_parameters == sum(parameter_units(model, config).values())


@pytest.mark.parametrize("architecture", ["mae_vit", "ca_mae_vit", "chada_vit"])
@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_every_published_size_are_those_of_the_real_modules(size, architecture):
    model = published_size(size, architecture, STAINS)
    with torch.device("meta"):
        objective = build_objective(model, PUBLISHED_MAE, 0)
    cost = training_cost(model, PUBLISHED_MAE, 6)
    assert cost.encoder_parameters == sum(weight.numel() for weight in objective.encoder.parameters())
    assert cost.trained_parameters == sum(weight.numel() for weight in objective.parameters())


# Millions of parameters of the encoder; GFLOP for each crop of 256 px and 6 stains, inference and training. Derived
# from the published shapes, Kenyon-Dean et al. 2024 and Kraus et al. 2024.
@pytest.mark.parametrize(
    ("size", "millions", "inference", "training"),
    [
        ("s16", 21.9, 12.1, 50),
        ("b16", 86.2, 45.9, 75),
        ("b8", 85.3, 213, 344),
        ("l16", 303.8, 161, 159),
        ("l8", 302.6, 722, 689),
        ("g8", 1841.7, 4104, 3096),
    ],
)
def test_published_sizes_cost_what_is_known_of_them(size, millions, inference, training):
    cost = training_cost(published_size(size, channels=STAINS), PUBLISHED_MAE, 6)
    assert cost.encoder_parameters / 1e6 == pytest.approx(millions, rel=0.002)
    assert cost.inference_flops / 1e9 == pytest.approx(inference, rel=0.05)
    assert cost.training_flops / 1e9 == pytest.approx(training, rel=0.06)


def test_the_published_channel_agnostic_encoder_costs_what_is_known_of_it():
    config = ObjectiveConfig(mae=dataclasses.replace(PUBLISHED_MAE.mae, decoder="per_channel"))
    cost = training_cost(published_size("s16", "ca_mae_vit", STAINS), config, 6)
    assert cost.tokens == 6 * 256
    assert cost.inference_flops / 1e9 == pytest.approx(109, rel=0.05)
    assert cost.training_flops / 1e9 == pytest.approx(360, rel=0.05)


@pytest.mark.parametrize("name", fast_cases(CASES, "mae_vit", "chada_vit", "dino"))
def test_operations_are_those_that_torch_counts(name):
    model, config = CASES[name]
    objective = build_objective(model, config, 0)
    views = views_of(model, objective, config)
    cost = training_cost(model, config, 3)
    with sdpa_kernel(SDPBackend.MATH):  # flash attention computes scores again in its backward pass
        with FlopCounterMode(display=False) as forward:
            loss = objective(views)["loss"]
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    counted = forward.get_total_flops()
    assert cost.forward_flops * N_CROPS == pytest.approx(counted, rel=0.02)
    assert cost.training_flops * N_CROPS == pytest.approx(counted + backward.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("name", fast_cases(["chada_vit", "resnet18", "resnet50"], "chada_vit", "resnet18"))
def test_inference_is_what_torch_counts(name):
    model, config = CASES[name]
    objective = build_objective(model, config, 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective.encoder.final_vectors(views_of(model, objective, config)[0].crops, "mean")
    cost = training_cost(model, config, 3)
    assert cost.inference_flops * N_CROPS == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(("name", "gflops", "millions"), [("resnet18", 3.63, 11.18), ("resnet50", 8.18, 23.51)])
def test_published_resnets_cost_what_is_known_of_them(name, gflops, millions):
    """He et al. 2016, table 1: 1.8 and 3.8 billion multiply-adds; the stride in the 3 x 3 layer makes 4.1 of those."""
    model = ModelConfig(architecture="resnet", channels=STAINS[:3], crop_size=224, resnet=name, stem="standard")
    cost = training_cost(model, ObjectiveConfig(name="simclr"), 3)
    assert cost.inference_flops / 1e9 == pytest.approx(gflops, rel=0.01)
    assert cost.encoder_parameters / 1e6 == pytest.approx(millions, rel=0.001)


def test_recomputing_costs_one_more_pass_of_the_blocks():
    model, config = CASES["mae_vit"]
    counted = []
    for recomputes in (False, True):
        objective = build_objective(model, config, 0)
        objective.encoder.recomputes = recomputes
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            objective(views_of(model, objective, config))["loss"].backward()
        counted.append(counter.get_total_flops())
    # torch stops a recomputation where nothing more is needed, before the last products of a block.
    assert 0.6 < (counted[1] - counted[0]) / (training_cost(model, config, 3).recompute_flops * N_CROPS) <= 1.01


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bytes_kept_for_the_backward_pass_are_those_that_torch_keeps(name):
    model, config = CASES[name]
    objective = build_objective(model, config, 0)
    kept = _kept_bytes(objective, views_of(model, objective, config))
    assert training_cost(model, config, 3).activation_bytes_fp32 * N_CROPS == pytest.approx(kept, rel=0.12)


@pytest.mark.parametrize("block", ["sequential", "parallel", "post_norm"])
def test_a_block_keeps_what_torch_keeps_of_it(block):
    deep, deeper = (dataclasses.replace(SMALL, block=block, depth=depth) for depth in (2, 6))
    config = ObjectiveConfig(mae=SMALL_MAE)
    kept = [_kept_bytes(built, views_of(SMALL, built, config)) for built in _built(config, deep, deeper)]
    predicted = [training_cost(model, config, 3).activation_bytes_fp32 * N_CROPS for model in (deep, deeper)]
    assert predicted[1] - predicted[0] == pytest.approx(kept[1] - kept[0], rel=0.1)


def test_bf16_and_recomputing_keep_less():
    for model, config in CASES.values():
        cost = training_cost(model, config, 3)
        assert cost.activation_bytes < cost.activation_bytes_fp32
        if not model.is_convolutional:  # which has no blocks to compute again
            assert cost.recomputed_activation_bytes < cost.activation_bytes


def test_crops_of_several_channel_counts_cost_their_mean():
    model, config = CASES["ca_mae_vit"]
    one, three = (training_cost(model, config, n) for n in (1, 3))
    mixed = training_cost(model, config, {1: 30, 3: 10})
    for name in ("tokens", "training_flops", "inference_flops", "activation_bytes"):
        assert getattr(mixed, name) == pytest.approx(0.75 * getattr(one, name) + 0.25 * getattr(three, name))
    assert mixed.encoder_parameters == one.encoder_parameters


def test_small_views_cost_less_than_large_ones():
    with_local = ObjectiveConfig(name="dino")
    large_only = dataclasses.replace(with_local, dino=dataclasses.replace(with_local.dino, n_local_views=0))
    cost, base = (training_cost(SMALL, config, 3) for config in (with_local, large_only))
    assert with_local.n_views == 10
    assert base.training_flops < cost.training_flops < 5 * base.training_flops


@pytest.mark.parametrize("n_channels", [0, {}, {3: 0}, {3: -1}])
def test_no_crops_are_refused(n_channels):
    with pytest.raises(ValueError, match="expected at least one count"):
        training_cost(SMALL, ObjectiveConfig(), n_channels)


def test_channels_that_a_fixed_model_cannot_take_are_refused():
    with pytest.raises(ValueError, match="crops of 5 channels for a mae_vit of 3"):
        training_cost(CASES["mae_vit"][0], ObjectiveConfig(), 5)


def test_every_block_is_a_unit_and_the_rest_is_one():
    model, config = CASES["per_channel"]
    units = parameter_units(model, config)
    blocks = {f"encoder.blocks.{i}" for i in range(3)}
    decoders = {f"decoder.of_channel.{i}.{j}" for i in range(4) for j in range(2)}
    assert set(units) == {""} | blocks | decoders


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10G", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3060", None),
        ("a laptop", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(name, peak):
    assert device_peak_tflops(name) == peak


def test_every_declared_gpu_is_found_by_its_own_name():
    assert [find_device(device.name) for device in DEVICES] == list(DEVICES)
    assert find_device("NVIDIA A100-PCIE-40GB").memory_gb == 40


def _built(config: ObjectiveConfig, *models: ModelConfig) -> list[Objective]:
    return [build_objective(model, config, 0) for model in models]


def _kept_bytes(objective: Objective, views: list[View]) -> int:
    """Bytes of all storages that autograd keeps, each once, without those of weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in objective.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # so that no other tensor gets its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(views)
    return sum(kept.values())
