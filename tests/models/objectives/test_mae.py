"""The pretraining objective."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cytolake.models import CropBatch, ModelConfig, build_encoder, collate, masking_noise
from cytolake.models.objectives import MaeConfig, MaskedAutoencoder, ObjectiveConfig, View, build_objective
from cytolake.models.objectives.mae import fourier_basis, fourier_distance

CONFIG = ModelConfig(channels=("DNA", "ER", "RNA"), crop_size=16, patch_size=4, width=32, depth=2, heads=2)
MAE = MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
KINDS = [("mae_vit", "shared"), ("chada_vit", "shared"), ("ca_mae_vit", "per_channel"), ("chada_vit", "per_channel")]


def build(architecture: str = "chada_vit", decoder: str = "shared", seed: int = 0) -> MaskedAutoencoder:
    config = ObjectiveConfig(mae=dataclasses.replace(MAE, decoder=decoder))
    model = build_objective(dataclasses.replace(CONFIG, architecture=architecture), config, seed)
    assert isinstance(model, MaskedAutoencoder)
    return model


def losses_of(model: MaskedAutoencoder, batch: CropBatch, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    return model([View(batch, noise)])


def smooth_crops(n: int, n_channels: int) -> list[np.ndarray]:
    """Blobs at random places, which can be guessed from a quarter of their patches."""
    y, x = np.mgrid[:16, :16]
    places = np.random.default_rng(0).uniform(3, 13, (n, 2))
    blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 18) for a, b in places]
    return [np.stack([1000 * (i + 1) * blob + 100 for i in range(n_channels)]).astype(np.uint16) for blob in blobs]


@pytest.mark.parametrize(("architecture", "decoder"), [KINDS[0], KINDS[3]])
def test_training_halves_the_loss_on_smooth_crops(architecture, decoder):
    model = build(architecture, decoder)
    batch = collate(smooth_crops(8, 3), [(1, 2, 3)] * 8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = losses_of(model, batch, masking_noise(0, step, range(8), 48))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize(("architecture", "decoder"), KINDS)
def test_the_loss_is_that_of_a_loop_over_hidden_patches(architecture, decoder):
    model = build(architecture, decoder).eval()
    batch, noise = collate(smooth_crops(2, 3), [(1, 2, 3)] * 2), masking_noise(0, 0, [5, 6], 48)
    said, picture = losses_of(model, batch, noise), model.reconstruct(View(batch, noise))
    mse, fourier = [], []
    for crop in range(2):
        for channel in range(3):
            for y in range(0, 16, 4):
                for x in range(0, 16, 4):
                    where = (crop, channel, slice(y, y + 4), slice(x, x + 4))
                    want, got, seen = (
                        getattr(picture, name)[where].numpy() for name in ("original", "reconstructed", "masked")
                    )
                    if not seen.any():
                        mse.append(((got - want) ** 2).mean())
                        fourier.append(np.abs(np.abs(np.fft.fft2(got)) - np.abs(np.fft.fft2(want))).mean())
    assert len(mse) == 2 * 3 * 12
    assert said["mse"].item() == pytest.approx(np.mean(mse), rel=1e-5)
    assert said["fourier"].item() == pytest.approx(np.mean(fourier), rel=1e-5)
    assert said["loss"].item() == pytest.approx(0.99 * np.mean(mse) + 0.01 * np.mean(fourier), rel=1e-5)


@pytest.mark.parametrize("decoder", ["shared", "per_channel"])
def test_the_loss_of_mixed_channel_counts_is_the_mean_of_the_crops_alone(decoder):
    model = build(decoder=decoder).eval()
    images = [smooth_crops(3, 3)[i][:n] for i, n in enumerate((1, 3, 2))]
    indices = [(2,), (1, 2, 3), (3, 1)]
    noise = masking_noise(0, 0, [1, 2, 3], 48)
    together = losses_of(model, collate(images, indices), noise)["loss"].item()
    alone = [losses_of(model, collate([images[i]], [indices[i]]), noise[i : i + 1])["loss"].item() for i in range(3)]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


def test_hidden_pixels_do_not_reach_the_prediction():
    model = build().eval()
    batch, noise = collate(smooth_crops(1, 2), [(1, 2)]), masking_noise(0, 0, [0], 32)
    with torch.no_grad():
        encoded, mask, patches, _ = model._encode(View(batch, noise))
        predicted = model.decoder(encoded, mask, patches)
        patches.pixels[mask.is_hidden] = 7.0
        *_, encoded = model.encoder.run_blocks(model.encoder.embed(patches)[mask.visible], mask.runs)
        assert torch.equal(model.decoder(model.encoder.norm(encoded), mask, patches), predicted)


def test_pixels_that_the_encoder_saw_do_not_count_in_the_loss():
    model = build().eval()
    batch, noise = collate(smooth_crops(1, 2), [(1, 2)]), masking_noise(0, 0, [0], 32)
    encoded, mask, patches, _ = model._encode(View(batch, noise))
    predicted = model.decoder(encoded, mask, patches)
    before = model._losses(predicted, mask, patches)["loss"]
    patches.pixels[~mask.is_hidden] += 3.0
    assert torch.equal(model._losses(predicted, mask, patches)["loss"], before)
    patches.pixels[mask.is_hidden] += 3.0
    assert not torch.equal(model._losses(predicted, mask, patches)["loss"], before)


def test_a_stain_is_decoded_by_its_own_decoder_whatever_its_place_in_the_crop():
    model = build("ca_mae_vit", "per_channel").eval()
    image, noise = smooth_crops(1, 3)[0] + np.random.default_rng(0).integers(0, 99, (3, 16, 16)), torch.rand(1, 48)
    order = [2, 0, 1]
    straight = model.reconstruct(View(collate([image], [(1, 2, 3)]), noise)).reconstructed
    moved = noise.view(1, 3, 16)[:, order].flatten(1)
    shuffled = model.reconstruct(View(collate([image[order]], [tuple(i + 1 for i in order)]), moved)).reconstructed
    torch.testing.assert_close(shuffled, straight[:, order], atol=1e-4, rtol=0)
    renamed = model.reconstruct(View(collate([image], [(2, 1, 3)]), noise)).reconstructed
    assert (renamed - straight).abs().max() > 1e-3


def test_every_decoder_has_gradients_even_for_stains_that_a_minibatch_lacks():
    model = build("ca_mae_vit", "per_channel")
    losses_of(model, collate(smooth_crops(1, 1), [(2,)]), masking_noise(0, 0, [0], 16))["loss"].backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad == (weight.grad is None)] == []
    assert model.decoder.of_channel[2][0].qkv.weight.grad.abs().max() > 0
    assert model.decoder.of_channel[1][0].qkv.weight.grad.abs().max() == 0


def test_decoders_of_their_own_need_tokens_of_their_own():
    with pytest.raises(ValueError, match="tokens of mae_vit hold all channels"):
        build("mae_vit", "per_channel")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": 0.0}, "nothing to learn"),
        ({"decoder": "none"}, "choose one of shared, per_channel"),
        ({"decoder_heads": 3}, "multiple of 4 and of decoder_heads"),
    ],
)
def test_settings_that_cannot_train_are_refused_at_once(changes, said):
    with pytest.raises(ValueError, match=said):
        MaeConfig(**changes)


def basis_of(patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return fourier_basis(patch_size, torch.device("cpu"))


def test_a_shifted_patch_has_no_fourier_distance():
    patch = torch.randn(1, 4, 4)
    shifted = patch.roll(shifts=(1, 2), dims=(1, 2))
    torch.testing.assert_close(
        fourier_distance(shifted.flatten(1), patch.flatten(1), *basis_of(4)), torch.zeros(1), atol=1e-5, rtol=0
    )
    assert (shifted - patch).square().mean() > 0.1


def test_fourier_magnitudes_of_a_unit_patch_of_16_pixels_are_near_16():
    """Parseval: their mean square is the number of pixels, for noise of variance 1."""
    patches = torch.randn(400, 16, 16, generator=torch.Generator().manual_seed(0))
    distance = fourier_distance(patches.flatten(1), torch.zeros(400, 256), *basis_of(16))
    assert distance.mean().item() == pytest.approx(16 * np.sqrt(np.pi) / 2, rel=0.02)  # a Rayleigh variable's mean


@pytest.mark.parametrize("patch_size", [1, 5, 8, 16])
def test_fourier_distance_is_that_of_numpys_transform(patch_size):
    predicted, target = (
        np.random.default_rng(seed).normal(size=(7, 3, patch_size, patch_size)).astype(np.float32) for seed in (0, 1)
    )
    want = np.abs(np.abs(np.fft.fft2(predicted)) - np.abs(np.fft.fft2(target))).mean(axis=(1, 2, 3))
    got = fourier_distance(*(torch.from_numpy(each).flatten(1) for each in (predicted, target)), *basis_of(patch_size))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


def test_a_flat_patch_has_finite_fourier_gradients():
    flat = torch.zeros(2, 64, requires_grad=True)
    fourier_distance(
        flat, torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), *basis_of(8)
    ).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_weights_are_a_function_of_config_and_seed():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build(seed=seed).encoder.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    bare = build_encoder(CONFIG, 0).state_dict()
    assert all(torch.equal(one[name], bare[name]) for name in one)
    assert not torch.equal(one["patch_embedding.weight"], other["patch_embedding.weight"])
