"""The work of one crop in training: matrix products and the numbers kept for the backward pass, by formula.

A FLOP is one multiplication or one addition of a matrix product, two for each multiply-accumulate. `cost.training_cost`
adds this up.

Shapes: L tokens of a crop, N patches of a channel, P pixels of a token, D width of the encoder, E of the decoder, M
hidden width of an MLP, H heads, d = D / H.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cytolake.models.config import BlockKind, ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.models.objectives.contrast import PROJECTED_WIDTH
from cytolake.models.resnet_cost import resnet_work

MLP_RATIO = 4  # of decoders, see objectives/decoders.py
_TEACHER_VIEWS = 2  # of a crop: both of BYOL and of MoCo, DINO's two large ones (see objectives/)


def pixels_of_token(model: ModelConfig) -> int:
    """Pixels of one token, P."""
    return model.patch_size**2 * (len(model.channels) if model.is_fused else 1)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Equal blocks one after another, over one or more sequences of a crop."""

    kind: BlockKind
    depth: int
    n_sequences: float
    length: int
    width: int
    heads: int
    mlp_width: int
    has_gain: bool = False
    is_encoder: bool = False
    """May be recomputed in the backward pass; unlike those of decoders, normalises queries and keys."""
    is_trained: bool = True

    @property
    def flops(self) -> float:
        tokens = self.n_sequences * self.length
        matrices = 2 * tokens * (4 * self.width**2 + 2 * self.width * self.mlp_width)
        attention = 4 * tokens * self.length * self.width  # scores, and their mean of the values
        return self.depth * (matrices + attention)

    def kept_bytes_of_block(self, product_bytes: int) -> float:
        """Kept by one block for all its tokens: see `models/transformer.py` for what each kind computes.

        Norms keep their inputs in fp32, products theirs in `product_bytes`. Autocast makes copies of queries and keys
        in fp32 for their norms.
        """
        b, d, m = product_bytes, self.width, self.mlp_width
        copies = (8 * d if b < 4 else 0) + 2 * b * d if self.is_encoder else 0  # the normed, and what they are made of
        attention = 4 * self.heads  # the logarithm of each sum of exponentials
        if self.kind == "parallel":
            # input; normed; queries, keys, values; q and k normed; mixed; gelu's two; change
            kept = 4 * d + b * d + 3 * b * d + copies + b * d + 2 * b * m + b * d * self.has_gain
        elif self.kind == "sequential":
            # input; normed; q, k, v; q and k normed; mixed; its change; then the same of the MLP
            kept = 4 * d + b * d + 3 * b * d + copies + b * d + b * d * self.has_gain
            kept += 4 * d + b * d + 2 * b * m + b * d * self.has_gain
        else:
            # input; normed; q, k, v; mixed; the same norm's second input; the MLP's input and hidden; its norm's input
            kept = 4 * d + b * d + 3 * b * d + b * d + 4 * d + b * d + b * m + 4 * d
        return self.n_sequences * self.length * (kept + attention)

    @property
    def input_bytes(self) -> float:
        return 4 * self.n_sequences * self.length * self.width


@dataclass(frozen=True, slots=True)
class _Product:
    """One linear layer over tokens of a crop."""

    tokens: float
    inputs: int
    outputs: int
    n_backward: int = 2
    """Products of the backward pass: one for the input's gradient, one for the weights'."""

    @property
    def flops(self) -> float:
        return 2 * self.tokens * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Work:
    """All matrix products and stored numbers of one crop."""

    blocks: list[_Blocks]
    products: list[_Product]
    other_fp32: float = 0.0
    """Numbers kept in fp32 outside blocks."""
    other_products: float = 0.0
    """Numbers kept in the products' type outside blocks."""

    @property
    def forward_flops(self) -> float:
        return sum(part.flops for part in self.blocks) + sum(part.flops for part in self.products)

    @property
    def training_flops(self) -> float:
        in_blocks = sum(part.flops * (3 if part.is_trained else 1) for part in self.blocks)
        in_products = sum(part.flops * (1 + part.n_backward) for part in self.products)
        return in_blocks + in_products

    @property
    def recompute_flops(self) -> float:
        return sum(part.flops for part in self.blocks if part.is_encoder and part.is_trained)

    def kept_bytes(self, product_bytes: int, *, recompute: bool = False) -> float:
        kept = 4 * self.other_fp32 + product_bytes * self.other_products
        inside = 0.0
        for part in self.blocks:
            if not part.is_trained:
                continue
            one = part.kept_bytes_of_block(product_bytes)
            if recompute and part.is_encoder:
                kept += part.depth * part.input_bytes
                inside = max(inside, one)
            else:
                kept += part.depth * one
        return kept + inside


def _encoder_blocks(model: ModelConfig, length: int, *, n: float = 1, is_trained: bool = True) -> _Blocks:
    return _Blocks(
        model.block,
        model.depth,
        n,
        length,
        model.width,
        model.heads,
        model.mlp_width,
        has_gain=model.layer_scale > 0,
        is_encoder=True,
        is_trained=is_trained,
    )


def encoder_pass(
    model: ModelConfig, size: int, n_channels: int, *, n: float = 1, is_trained: bool = True
) -> tuple[list[_Blocks], list[_Product]]:
    """The encoder on `n` views of `size` px."""
    if not model.is_convolutional:
        length = dataclasses.replace(model, crop_size=size).n_tokens(n_channels)
        blocks = _encoder_blocks(model, length + 1, n=n, is_trained=is_trained)
        return [blocks], [_patch_embedding(model, n * length, is_trained=is_trained)]
    layers = resnet_work(model, size).convolutions
    backward = [2 * is_trained] * len(layers)
    backward[0] = int(is_trained)  # pixels need no gradient
    return [], [
        _Product(n * layer.places, layer.inputs, layer.outputs, n_backward=each)
        for layer, each in zip(layers, backward, strict=True)
    ]


def _patch_embedding(model: ModelConfig, tokens: float, *, is_trained: bool = True) -> _Product:
    return _Product(tokens, pixels_of_token(model), model.width, n_backward=int(is_trained))  # pixels need no gradient


def mae_work(model: ModelConfig, mae: MaeConfig, n_channels: int, n_views: int) -> Work:
    """The encoder on the visible tokens of each view; the decoder on all tokens of the first, to the hidden pixels."""
    length = model.n_tokens(n_channels)
    visible = max(1, int(length * (1 - mae.mask_ratio) + 1e-6))  # see masking.py
    hidden = length - visible
    width, pixels = mae.decoder_width, pixels_of_token(model)
    blocks = [_encoder_blocks(model, visible + 1, n=n_views)]
    products = [
        _patch_embedding(model, n_views * visible),
        _Product(visible + 1, model.width, width),
        _Product(hidden, width, pixels),
    ]
    fp32 = n_views * (visible * pixels + (visible + 1) * model.width)  # pixels, and the final norm's input
    fp32 += hidden * pixels  # difference of pixels
    other = (visible + 1) * model.width + hidden * width  # inputs of the decoder's entry and exit
    if mae.fourier_weight > 0:
        patch = model.patch_size**2
        frequencies = model.patch_size * (model.patch_size // 2 + 1)
        patches = hidden * pixels // patch
        products.append(_Product(patches, patch, 2 * frequencies, n_backward=1))  # of the prediction
        products.append(_Product(patches, patch, 2 * frequencies, n_backward=0))  # of the target
        fp32 += 4 * patches * frequencies  # real and imaginary part, magnitude, difference
    shape = (width, mae.decoder_heads, MLP_RATIO * width)
    if mae.decoder == "per_channel":
        blocks.append(_Blocks("sequential", mae.decoder_depth, n_channels, model.n_patches, *shape))
        products += [
            _Product(length, width, 3 * width),  # queries, keys and values of the look at all channels
            _Product(length, 2 * length, width),  # its scores, and their mean of the values
            _Product(length, width, width),
            _Product(length, width, MLP_RATIO * width),
            _Product(length, MLP_RATIO * width, width),
        ]
        fp32 += 2 * length * width  # inputs of the norms
        other += length * width * (7 + 2 * MLP_RATIO)  # two normed, q, k, v, mixed, normed, gelu's two
    else:
        blocks.append(_Blocks("sequential", mae.decoder_depth, 1, length + 1, *shape))
        fp32 += hidden * width  # the final norm's input
    if mae.contrastive_weight > 0:
        products += [
            _Product(n_views, model.width, 2 * model.width),
            _Product(n_views, 2 * model.width, PROJECTED_WIDTH),
        ]
    return Work(blocks, products, fp32, other)


def views_work(
    model: ModelConfig, n_channels: int, objective: ObjectiveConfig, heads: int, teacher: int, teacher_heads: int
) -> Work:
    """The encoder on all views, a teacher's on two. Heads multiply each of their weights once for a view."""
    views = {model.crop_size: objective.n_views}
    if objective.name == "dino":
        local = objective.dino.local_size
        views = {model.crop_size: _TEACHER_VIEWS}
        views[local] = views.get(local, 0) + objective.n_views - _TEACHER_VIEWS
    passes = [encoder_pass(model, size, n_channels, n=n) for size, n in views.items()]
    if teacher:
        passes.append(encoder_pass(model, model.crop_size, n_channels, n=_TEACHER_VIEWS, is_trained=False))
    blocks = [part for of_pass, _ in passes for part in of_pass]
    products = [part for _, of_pass in passes for part in of_pass]
    products.append(_Product(objective.n_views, heads, 1))
    if teacher:
        products.append(_Product(_TEACHER_VIEWS, teacher_heads, 1, n_backward=0))
    kept, maps = 0.0, 0.0
    if model.is_convolutional:
        maps = sum(n * resnet_work(model, size).kept for size, n in views.items())
    else:
        tokens = sum(n * dataclasses.replace(model, crop_size=size).n_tokens(n_channels) for size, n in views.items())
        kept = tokens * (pixels_of_token(model) + model.width)
    if objective.name == "moco_v2_plus":  # a query's cosines with all keys; their log-softmax is kept
        queue = objective.moco_v2_plus.queue_size
        products.append(_Product(objective.n_views, objective.moco_v2_plus.projected_width, queue, n_backward=1))
        kept += objective.n_views * queue
    return Work(blocks, products, kept, maps)
