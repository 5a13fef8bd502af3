from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.nn import functional

from cytolake.models import ModelConfig, build_model, collate, flip_rotate, masking_noise
from cytolake.models.contrast import TEMPERATURE, contrastive_loss

CONFIG = ModelConfig(
    architecture="mae_vit",
    channels=("DNA", "ER"),
    crop_size=16,
    patch_size=4,
    width=16,
    depth=1,
    heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    mask_ratio=0.5,
    contrastive_weight=0.5,
)


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
    plain = build_model(ModelConfig(**{**_fields(CONFIG), "contrastive_weight": 0.0}), seed=0)
    assert plain.projection is None
    assert set(plain(*_view(0))) == {"loss", "mse", "fourier"}


def test_the_term_is_added_with_its_weight_and_reaches_the_encoder():
    model = build_model(CONFIG, seed=0)
    losses = model(*_view(0), *_view(1))
    plain = (1 - CONFIG.fourier_weight) * losses["mse"] + CONFIG.fourier_weight * losses["fourier"]
    torch.testing.assert_close(losses["loss"], plain + 0.5 * losses["contrast"])
    losses["contrast"].backward()
    assert model.encoder.patch_embedding.weight.grad.abs().sum() > 0
    assert model.decoder.pixels.weight.grad is None


def test_a_missing_second_view_is_refused():
    with pytest.raises(ValueError, match="second view"):
        build_model(CONFIG, seed=0)(*_view(0))


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


def test_two_workers_have_the_gradient_of_one(tmp_path):
    """The mean over workers of each worker's loss against all crops is the loss of the whole minibatch."""
    first, second = _unit(6, seed=0).requires_grad_(), _unit(6, seed=1)
    contrastive_loss(first, second).backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat(parts) / 2, first.grad)


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    first = _unit(6, seed=0)[mine].clone().requires_grad_()
    contrastive_loss(first, _unit(6, seed=1)[mine]).backward()
    torch.save(first.grad, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _unit(n: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _view(view: int):
    pixels = np.random.default_rng(0).integers(0, 1000, (3, 2, 16, 16)).astype(np.uint16)
    images = flip_rotate(list(pixels), 0, 0, range(3), view=view)
    return collate(images, [(1, 2)] * 3), masking_noise(0, 0, range(3), CONFIG.n_patches, view=view)


def _fields(config: ModelConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
