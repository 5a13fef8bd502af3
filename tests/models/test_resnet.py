"""ResNets as encoders: the published network, its stages as blocks, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cytolake.models import CheckpointError, ModelConfig, ResNet, build_encoder, collate, load_encoder, save_encoder
from cytolake.models.crops import CropBatch
from cytolake.models.resnet_cost import resnet_work

RGB = ("red", "green", "blue")
SMALL = ModelConfig(architecture="resnet", channels=RGB, crop_size=16)


def crops(n: int = 3, size: int = 16, order: tuple[int, ...] = (1, 2, 3)) -> CropBatch:
    images = np.random.default_rng(0).gamma(2, 300, (n, 3, size, size))
    return collate([image[[i - 1 for i in order]] for image in images], [order] * n)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_the_standard_stem_it_is_torchvision_s_network(name):
    torchvision = pytest.importorskip("torchvision")
    encoder = build_encoder(dataclasses.replace(SMALL, resnet=name, stem="standard", input_scaling="as_is"), 0).eval()
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.fc = torch.nn.Identity()
    for part in encoder.modules():  # statistics as after some training
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    theirs.load_state_dict(encoder.net.state_dict())
    batch = crops(2, 64)
    batch = dataclasses.replace(batch, pixels=batch.pixels / batch.pixels.max(), full_scale=(1.0, 1.0))
    with torch.no_grad():
        wanted = theirs(batch.pixels)
        torch.testing.assert_close(encoder.final_vectors(batch, "mean"), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.pooled_blocks(batch)["mean"][-1], wanted, rtol=1e-4, atol=1e-4)


def test_the_small_stem_keeps_every_place_and_the_standard_one_a_sixteenth():
    small, standard = (ResNet(dataclasses.replace(SMALL, stem=stem)).eval() for stem in ("small", "standard"))
    assert [tuple(each.shape[1:]) for each in small.maps(crops(1, 32))] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4),
    ]  # fmt: skip
    assert next(standard.maps(crops(1, 32))).shape[1:] == (64, 8, 8)


@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet18", (64, 128, 256, 512, 512)), ("resnet34", (64, 128, 256, 512, 512)),
     ("resnet50", (256, 512, 1024, 2048, 2048))],
)  # fmt: skip
def test_blocks_are_the_four_stages_and_the_pooled_vector_with_their_own_widths(name, widths):
    config = dataclasses.replace(SMALL, resnet=name)
    assert config.block_widths == widths
    encoder = build_encoder(config, 0)
    pooled = encoder.pooled_blocks(crops(2))
    assert list(pooled) == ["mean"]
    assert [tuple(block.shape) for block in pooled["mean"]] == [(2, width) for width in widths]
    assert encoder.n_blocks == len(widths)


def test_a_stage_is_the_mean_of_its_layer_normed_places():
    encoder = build_encoder(SMALL, 0).eval()
    with torch.no_grad():
        maps = list(encoder.maps(crops()))
    blocks = encoder.pooled_blocks(crops())["mean"]
    for map_, block in zip(maps, blocks, strict=False):
        normed = torch.nn.functional.layer_norm(map_.movedim(1, -1), (map_.shape[1],), eps=1e-6)
        torch.testing.assert_close(block, normed.mean(dim=(1, 2)))


def test_frozen_features_do_not_depend_on_the_minibatch_and_change_no_statistics():
    encoder = build_encoder(SMALL, 0).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batch = crops(4)
    together = encoder.pooled_blocks(batch)["mean"]
    alone = encoder.pooled_blocks(CropBatch(batch.pixels[:1], batch.channel_index[:1], batch.n_channels[:1]))["mean"]
    for one, all_ in zip(alone, together, strict=True):
        torch.testing.assert_close(one, all_[:1], rtol=1e-4, atol=1e-5)
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_stains_are_taken_by_name_and_not_by_their_order_in_the_crop():
    encoder = build_encoder(SMALL, 0)
    straight, turned = (encoder.pooled_blocks(crops(order=order))["mean"] for order in ((1, 2, 3), (3, 1, 2)))
    for one, other in zip(straight, turned, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("n_blocks", [1, 3, 4, 5])
def test_a_trimmed_network_gives_the_first_blocks_as_before_and_computes_no_more(n_blocks):
    encoder = build_encoder(SMALL, 0).eval()
    trimmed = encoder.trim(n_blocks)
    assert trimmed.n_blocks == n_blocks
    with FlopCounterMode(display=False) as counter:
        blocks = trimmed.pooled_blocks(crops())["mean"]
    assert len(blocks) == n_blocks
    for one, other in zip(blocks, encoder.pooled_blocks(crops())["mean"], strict=False):
        assert torch.equal(one, other)
    with FlopCounterMode(display=False) as whole:
        encoder.pooled_blocks(crops())
    assert (counter.get_total_flops() < whole.get_total_flops()) == (n_blocks < 4)
    assert encoder.n_blocks == 5


def test_a_file_gives_the_same_network_with_its_statistics(tmp_path):
    encoder = build_encoder(SMALL, 0).train()
    encoder.final_vectors(crops(8), "mean")
    encoder.eval()
    identity = save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors", expect=SMALL)
    assert isinstance(loaded, ResNet)
    assert not torch.equal(loaded.net.bn1.running_mean, torch.zeros(64))
    for one, other in zip(loaded.pooled_blocks(crops())["mean"], encoder.pooled_blocks(crops())["mean"], strict=True):
        assert torch.equal(one, other)
    assert identity == save_encoder(loaded, tmp_path / "again.safetensors")
    with pytest.raises(CheckpointError, match="found resnet=resnet18, expected resnet=resnet34"):
        load_encoder(tmp_path / "encoder.safetensors", expect=dataclasses.replace(SMALL, resnet="resnet34"))


def test_weights_are_a_function_of_config_and_seed():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (build_encoder(SMALL, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.conv1.weight"], other["net.conv1.weight"])


def test_settings_of_a_vision_transformer_do_not_concern_it():
    config = ModelConfig(architecture="resnet", channels=RGB, crop_size=28)  # 28 is no multiple of the patch size
    assert (config.size_step, config.vector_width, config.n_tokens(3)) == (1, 512, 16)
    assert build_encoder(config, 0).pooled_blocks(crops(1, 28))["mean"][-1].shape == (1, 512)


def test_the_new_settings_are_not_part_of_a_vision_transformer_s_identity():
    text = ModelConfig(architecture="mae_vit", channels=RGB).to_json()
    assert "resnet" not in text.replace('"architecture"', "")
    assert "stem" not in text
    assert ModelConfig.from_json(text) == ModelConfig(architecture="mae_vit", channels=RGB)
    standard = dataclasses.replace(SMALL, stem="standard", resnet="resnet50")
    assert ModelConfig.from_json(standard.to_json()) == standard


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ModelConfig(architecture="resnet"), "resnet needs its input stains"),
        (lambda: dataclasses.replace(SMALL, resnet="resnet19"), "resnet 'resnet19' is not known"),
        (lambda: dataclasses.replace(SMALL, stem="none"), "stem 'none' is not known"),
        (lambda: dataclasses.replace(SMALL, drop_path=0.1), "a resnet skips no blocks"),
        (lambda: SMALL.channel_indices(["red"]), "channels red; this resnet wants exactly red, green, blue"),
        (lambda: build_encoder(SMALL, 0).pooled_blocks(crops(1), ("cls",)), "no pooling cls of a resnet"),
        (lambda: build_encoder(SMALL, 0).final_vectors(crops(1), "cls"), "no pooling cls of a resnet"),
        (lambda: build_encoder(SMALL, 0).trim(6), "expected 1 to 5"),
        (lambda: resnet_work(ModelConfig(channels=RGB), 16), "found a chada_vit"),
    ],
)
def test_what_it_cannot_do_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
