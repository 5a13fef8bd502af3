"""The pretraining objective."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cytolake.models import ModelConfig, build_model, collate, masking_noise
from cytolake.models.mae import fourier_distance

CONFIG = ModelConfig(
    channels=("DNA", "ER", "RNA"), crop_size=16, patch_size=4, width=32, depth=2, heads=2,
    decoder_width=32, decoder_depth=1, decoder_heads=2,
)  # fmt: skip


def smooth_crops(n: int, n_channels: int) -> list[np.ndarray]:
    """Blobs at random places, which can be guessed from a quarter of their patches."""
    y, x = np.mgrid[:16, :16]
    places = np.random.default_rng(0).uniform(3, 13, (n, 2))
    blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 18) for a, b in places]
    return [np.stack([1000 * (i + 1) * blob + 100 for i in range(n_channels)]).astype(np.uint16) for blob in blobs]


@pytest.mark.parametrize("architecture", ["mae_vit", "chada_vit"])
def test_training_halves_the_loss_on_smooth_crops(architecture):
    model = build_model(dataclasses.replace(CONFIG, architecture=architecture), 0)
    batch = collate(smooth_crops(32, 3), [(1, 2, 3)] * 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = model(batch, masking_noise(0, step, range(32), 48))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize("architecture", ["mae_vit", "chada_vit"])
def test_the_loss_is_that_of_a_loop_over_hidden_patches(architecture):
    config = dataclasses.replace(CONFIG, architecture=architecture)
    model = build_model(config, 0).eval()
    batch, noise = collate(smooth_crops(2, 3), [(1, 2, 3)] * 2), masking_noise(0, 0, [5, 6], 48)
    said, picture = model(batch, noise), model.reconstruct(batch, noise)
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


def test_the_loss_of_mixed_channel_counts_is_the_mean_of_the_crops_alone():
    model = build_model(CONFIG, 0).eval()
    images = [smooth_crops(3, 3)[i][:n] for i, n in enumerate((1, 3, 2))]
    indices = [(2,), (1, 2, 3), (3, 1)]
    noise = masking_noise(0, 0, [1, 2, 3], 48)
    together = model(collate(images, indices), noise)["loss"].item()
    alone = [model(collate([images[i]], [indices[i]]), noise[i : i + 1])["loss"].item() for i in range(3)]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


def test_hidden_pixels_do_not_reach_the_prediction():
    model = build_model(CONFIG, 0).eval()
    batch, noise = collate(smooth_crops(1, 2), [(1, 2)]), masking_noise(0, 0, [0], 32)
    with torch.no_grad():
        predicted, mask, patches = model._predict(batch, noise)
        patches.pixels[mask.is_hidden] = 7.0
        *_, encoded = model.encoder.run_blocks(model.encoder.embed(patches)[mask.visible], mask.runs)
        assert torch.equal(model.decoder(model.encoder.norm(encoded), mask, patches), predicted)


def test_a_shifted_patch_has_no_fourier_distance():
    patch = torch.randn(1, 4, 4)
    shifted = patch.roll(shifts=(1, 2), dims=(1, 2))
    torch.testing.assert_close(
        fourier_distance(shifted.flatten(1), patch.flatten(1), 4), torch.zeros(1), atol=1e-5, rtol=0
    )


def test_weights_are_a_function_of_config_and_seed():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build_model(CONFIG, seed).encoder.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["patch_embedding.weight"], other["patch_embedding.weight"])
