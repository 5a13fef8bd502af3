from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.models.turned import flip_rotate
from torch.nn import functional

from cytolake.models import ModelConfig, collate, masking_noise
from cytolake.models.objectives import MaeConfig, MaskedAutoencoder, View
from cytolake.models.objectives.contrast import TEMPERATURE, contrastive_loss

CONFIG = ModelConfig(
    architecture="mae_vit", channels=("DNA", "ER"), crop_size=16, patch_size=4, width=16, depth=1, heads=2
)
MAE = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.5, contrastive_weight=0.5)


def test_the_loss_is_infonce_written_out():
    first, second = _unit(5, seed=0), _unit(5, seed=1)
    similarity = (first @ second.T).double().numpy() / TEMPERATURE
    forth = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(similarity)]
    back = [np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(similarity.T)]
    assert contrastive_loss(first, second).item() == pytest.approx(np.mean(forth + back), rel=1e-5)


def test_views_that_agree_score_better_than_views_of_other_crops():
    views = _unit(8, seed=0)
    assert contrastive_loss(views, views) < contrastive_loss(views, views.roll(1, 0))


def test_a_weight_of_zero_is_the_plain_autoencoder():
    plain = MaskedAutoencoder(CONFIG, dataclasses.replace(MAE, contrastive_weight=0.0))
    assert plain.projection is None
    assert set(plain([_view(0)])) == {"loss", "mse", "fourier"}


def test_the_term_is_added_with_its_weight_and_reaches_the_encoder():
    model = MaskedAutoencoder(CONFIG, MAE)
    losses = model([_view(0), _view(1)])
    plain = (1 - MAE.fourier_weight) * losses["mse"] + MAE.fourier_weight * losses["fourier"]
    torch.testing.assert_close(losses["loss"], plain + 0.5 * losses["contrast"])
    losses["contrast"].backward()
    assert model.encoder.patch_embedding.weight.grad.abs().sum() > 0
    assert model.decoder.pixels.weight.grad is None


def test_a_missing_second_view_is_refused():
    with pytest.raises(ValueError, match="1 views of the crops: MaskedAutoencoder takes 2"):
        MaskedAutoencoder(CONFIG, MAE)([_view(0)])


def test_the_two_views_are_turned_and_masked_independently():
    index = np.arange(400)
    noise = masking_noise(0, 0, index, 8), masking_noise(0, 0, index, 8, view=1)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    images = [np.arange(4.0).reshape(1, 2, 2)] * 400
    same = [
        np.array_equal(a, b)
        for a, b in zip(flip_rotate(images, 0, 0, index), flip_rotate(images, 0, 0, index, view=1), strict=True)
    ]
    assert 0.07 < np.mean(same) < 0.19  # 1 of 8 ways to turn


def _unit(n: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _view(view: int) -> View:
    pixels = np.random.default_rng(0).integers(0, 1000, (3, 2, 16, 16)).astype(np.uint16)
    images = flip_rotate(list(pixels), 0, 0, range(3), view=view)
    return View(collate(images, [(1, 2)] * 3), masking_noise(0, 0, range(3), CONFIG.n_patches, view=view))
