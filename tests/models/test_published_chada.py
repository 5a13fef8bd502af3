"""ChAda-ViT weights of its authors' layout give their features in our encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from cytolake.models import CheckpointError, collate, load_encoder, save_encoder
from cytolake.models.published_chada import load_published_chada

WIDTH, DEPTH, HEADS, HIDDEN, SIDE, PATCH, MOST = 24, 2, 2, 40, 4, 4, 10
COUNTS = (3, 1, 10, 2)


def published_weights() -> dict[str, torch.Tensor]:
    """Random weights in the published layout, for crops of 16 px."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, WIDTH), "channel_token": (1, MOST, 1, WIDTH), "pos_embed": (1, 1, SIDE**2 + 1, WIDTH),
        "token_learner.proj.weight": (WIDTH, 1, PATCH, PATCH), "token_learner.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    }  # fmt: skip
    for block in range(DEPTH):
        shapes |= {
            f"blocks.{block}.self_attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"blocks.{block}.self_attn.in_proj_bias": (3 * WIDTH,),
            f"blocks.{block}.self_attn.out_proj.weight": (WIDTH, WIDTH),
            f"blocks.{block}.self_attn.out_proj.bias": (WIDTH,),
            f"blocks.{block}.linear1.weight": (HIDDEN, WIDTH),
            f"blocks.{block}.linear1.bias": (HIDDEN,),
            f"blocks.{block}.linear2.weight": (WIDTH, HIDDEN),
            f"blocks.{block}.linear2.bias": (WIDTH,),
            **{f"blocks.{block}.norm{i}.{what}": (WIDTH,) for i in (1, 2) for what in ("weight", "bias")},
        }
    return {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    return published_weights()


def padded_cls(theirs: dict[str, torch.Tensor], images: list[np.ndarray], n_padded: int) -> torch.Tensor:
    """(B, D) cls tokens by the published recipe: pad to `n_padded` channels, mask the padding as keys."""
    tokens, is_padding = [], []
    for image in images:
        pixels = torch.from_numpy(image)[:, None]
        own = functional.conv2d(
            pixels, theirs["token_learner.proj.weight"], theirs["token_learner.proj.bias"], stride=PATCH
        )
        own = functional.pad(own.flatten(2).transpose(1, 2), (0, 0, 0, 0, 0, n_padded - len(image)))
        own = own + theirs["pos_embed"][0, :, 1:] + theirs["channel_token"][0, :n_padded]
        cls = theirs["cls_token"][0] + theirs["pos_embed"][0, :, 0]
        tokens.append(torch.cat([cls, own.flatten(0, 1)]))
        is_padding.append(torch.arange(1 + n_padded * SIDE**2) >= 1 + len(image) * SIDE**2)
    x, mask = torch.stack(tokens), torch.stack(is_padding)
    for block in range(DEPTH):
        part = {name.removeprefix(f"blocks.{block}."): value for name, value in theirs.items()}
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        attention.load_state_dict(
            {n.removeprefix("self_attn."): v for n, v in part.items() if n.startswith("self_attn.")}
        )

        def norm(y: torch.Tensor, name: str, weights: dict[str, torch.Tensor] = part) -> torch.Tensor:
            return functional.layer_norm(y, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

        before = norm(x, "norm1")
        x = norm(x + attention(before, before, before, key_padding_mask=mask, need_weights=False)[0], "norm1")
        hidden = functional.relu(functional.linear(x, part["linear1.weight"], part["linear1.bias"]))
        x = norm(x + functional.linear(hidden, part["linear2.weight"], part["linear2.bias"]), "norm2")
    return functional.layer_norm(x, (WIDTH,), theirs["norm.weight"], theirs["norm.bias"], eps=1e-6)[:, 0]


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(size=(n, SIDE * PATCH, SIDE * PATCH)).astype(np.float32) for n in COUNTS]


def test_outputs_are_those_of_the_form_padded_to_ten_and_to_fewer(theirs, tmp_path):
    save_file(theirs, tmp_path / "model.safetensors")
    encoder = load_published_chada(tmp_path / "model.safetensors", heads=HEADS)
    with torch.no_grad():
        packed, _ = encoder.features(collate(images(), [(0,) * n for n in COUNTS]))
        torch.testing.assert_close(packed, padded_cls(theirs, images(), MOST), atol=1e-5, rtol=0)
        torch.testing.assert_close(packed[:1], padded_cls(theirs, images()[:1], COUNTS[0]), atol=1e-5, rtol=0)


def test_a_students_weights_are_found_in_a_training_checkpoint(theirs, tmp_path):
    state = {f"backbone.{name}": value for name, value in theirs.items()} | {"head.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    save_file(theirs, tmp_path / "model.safetensors")
    one, other = (load_published_chada(tmp_path / name, heads=2) for name in ("last.ckpt", "model.safetensors"))
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


def test_another_number_of_heads_gives_other_features_and_is_kept(theirs, tmp_path):
    save_file(theirs, tmp_path / "model.safetensors")
    batch = collate(images(), [(0,) * n for n in COUNTS])
    two, twelve = (load_published_chada(tmp_path / "model.safetensors", heads=heads) for heads in (2, 12))
    assert (two.features(batch)[0] - twelve.features(batch)[0]).abs().max() > 1e-3
    save_encoder(twelve, tmp_path / "ours.safetensors")
    assert load_encoder(tmp_path / "ours.safetensors").config.heads == 12


def test_another_layout_is_refused_by_name(theirs, tmp_path):
    del theirs["channel_token"]
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a published ChAda-ViT: 'channel_token' is missing"):
        load_published_chada(tmp_path / "model.safetensors", heads=2)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_published_chada(tmp_path / "nothing.ckpt", heads=2)
    (tmp_path / "text.ckpt").write_text("not tensors")
    with pytest.raises(CheckpointError, match="not a file of tensors that can be read safely"):
        load_published_chada(tmp_path / "text.ckpt", heads=2)
