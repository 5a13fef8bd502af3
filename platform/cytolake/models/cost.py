"""What training an encoder costs, by formula, and what devices declare: parameters, FLOPs, bytes kept for backward.

Nothing is run, so that the largest model costs no more to ask about than the smallest. A FLOP is one multiplication or
one addition of a matrix product, two for each multiply-accumulate; everything else that a transformer does is left out,
as is usual. The Fourier loss is a matrix product here, and counted: at most 2 % of a published size. All amounts are of
one crop, and a mean where crops have different channel counts.

Shapes: L tokens of a crop, N patches of a channel, P pixels of a token, D width of the encoder, E of the decoder, M
hidden width of an MLP, H heads, d = D / H.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import nn

from cytolake.models.config import BlockKind, ModelConfig
from cytolake.models.encoder import Encoder
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, build_objective
from cytolake.models.objectives.contrast import PROJECTED_WIDTH
from cytolake.models.objectives.teacher import Teacher
from cytolake.models.resnet_cost import resnet_work
from cytolake.models.transformer import Block

_MLP_RATIO = 4  # of decoders, see objectives/decoders.py
_TEACHER_VIEWS = 2  # of a crop: both of BYOL and of MoCo, DINO's two large ones (see objectives/)


@dataclass(frozen=True, slots=True)
class Device:
    """What a maker declares of one GPU."""

    name: str
    pattern: str
    """Regular expression for the name that torch gives it."""
    peak_tflops: float
    """Dense matrix products of bf16 (V100, T4: fp16), summed in fp32, in 10^12 operations a second."""
    bandwidth_gb_s: float
    """Of its memory, 10^9 bytes a second."""
    memory_gb: float
    """10^9 bytes."""


DEVICES = (
    Device("B200", r"B200", 2250, 8000, 180),
    Device("GH200", r"GH200", 989, 4000, 96),
    Device("H200", r"H200", 989, 4800, 141),
    Device("H100 SXM", r"H100(?!.*(PCIe|NVL))", 989, 3350, 80),
    Device("H100 PCIe", r"H100.*PCIe", 756, 2039, 80),
    Device("H100 NVL", r"H100.*NVL", 835, 3938, 94),
    Device("H20", r"H20", 148, 4000, 96),
    Device("A100", r"A100(?!.*40 ?GB)", 312, 2039, 80),
    Device("A100 40GB", r"A100.*40 ?GB", 312, 1555, 40),
    Device("A40", r"A40", 149.7, 696, 48),
    Device("A30", r"A30", 165, 933, 24),
    Device("A10", r"A10G?", 125, 600, 24),
    Device("L40S", r"L40S", 362, 864, 48),
    Device("L4", r"L4", 121, 300, 24),
    Device("V100", r"V100", 125, 900, 32),
    Device("T4", r"T4", 65, 320, 16),
    Device("RTX A6000", r"RTX A6000", 154.8, 768, 48),
    Device("RTX 4090", r"RTX 4090", 165.2, 1008, 24),
    Device("RTX 3090", r"RTX 3090", 71, 936, 24),
)
"""GPUs that labs have. Sources: NVIDIA's data sheets and architecture papers, without sparsity; where several versions
share a name, the one with the most memory unless the name says otherwise."""

DEVICE_PEAK_TFLOPS = MappingProxyType({device.pattern: device.peak_tflops for device in DEVICES})
"""Declared peak by the pattern of the device's name; the first that matches holds."""


def find_device(name: str) -> Device | None:
    """The device of a name such as torch gives, `NVIDIA H100 80GB HBM3`, or of `DEVICES`; None for one not known."""
    for device in DEVICES:
        if name == device.name:
            return device
    for device in DEVICES:
        if re.search(rf"(?<![A-Za-z0-9]){device.pattern}(?![A-Za-z0-9])", name):
            return device
    return None


def device_peak_tflops(name: str) -> float | None:
    """Declared dense bf16 peak, 10^12 operations a second, of the device that torch calls so; None where not known."""
    device = find_device(name)
    return None if device is None else device.peak_tflops


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """What one crop costs, and how many weights there are."""

    encoder_parameters: int
    other_parameters: int
    """Of decoders and heads, which are trained with the encoder and thrown away."""
    teacher_parameters: int
    """Of frozen copies, which take memory and a forward pass, but no gradients."""
    tokens: float
    """Patch tokens of one view."""
    inference_flops: float
    """The encoder alone, on all tokens."""
    forward_flops: float
    """All passes of all views, those of a teacher included."""
    training_flops: float
    """Forward and backward; the backward pass multiplies by weights and by inputs, and costs twice the forward one."""
    recompute_flops: float
    """On top where blocks of the encoder are computed again in the backward pass: one more forward pass of them."""
    activation_bytes: float
    """Kept for the backward pass in bf16 autocast, not compiled."""
    activation_bytes_fp32: float
    """The same in fp32."""
    recomputed_activation_bytes: float
    """Kept in bf16 autocast where blocks of the encoder are computed again: their inputs, and the inside of one."""

    @property
    def trained_parameters(self) -> int:
        """All but a teacher's; among them the few biases that stay 0 because they have no gradient."""
        return self.encoder_parameters + self.other_parameters


def training_cost(
    model: ModelConfig, objective: ObjectiveConfig, n_channels: int | Mapping[int, float]
) -> TrainingCost:
    """What it costs to train `model` on a crop of its `crop_size`.

    A masked autoencoder's cost is a formula throughout. Any other objective is taken for what they all are: the encoder
    on all tokens of `n_views` views, a teacher on two of them where there is one, and heads that see one vector of each
    view and keep nothing worth counting.

    Args:
        model: The encoder. Its `channels` are counted as they are: give a channel-adaptive one its vocabulary first.
        objective: What it is trained to do.
        n_channels: Channels of a crop; or how many crops, or which share of them, have so many.

    Raises:
        ValueError: No channels, or other channels than a `mae_vit` has.
    """
    share = _shares(model, n_channels)
    mae = objective.mae if objective.name == "mae" else None
    if mae is None:
        trained, heads, teacher, teacher_heads = _sizes_of(model, objective)
    else:
        trained, heads = _encoder_parameters(model), mae_parameters(model, mae)
        teacher = teacher_heads = 0
    mean = _Sums()
    for n, weight in share.items():
        length = model.n_tokens(n)
        alone = _Work(*_encoder_pass(model, model.crop_size, n))
        if mae is not None:
            work = _mae_work(model, mae, n, objective.n_views)
        else:
            work = _views_work(model, n, objective, heads, teacher, teacher_heads)
        mean.add(weight, model, length, alone, work)
    return TrainingCost(
        encoder_parameters=trained,
        other_parameters=heads,
        teacher_parameters=teacher + teacher_heads,
        tokens=mean.tokens,
        inference_flops=mean.inference,
        forward_flops=mean.forward,
        training_flops=mean.training,
        recompute_flops=mean.recompute,
        activation_bytes=mean.kept,
        activation_bytes_fp32=mean.kept_fp32,
        recomputed_activation_bytes=mean.kept_recomputed,
    )


def parameter_units(model: ModelConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Trained parameters of each transformer block by its name, and of all the rest under `""`.

    Counted on the real modules, on torch's meta device, which holds no numbers. These are the units in which FSDP2
    shares a model: one block is gathered at a time, and the rest stays gathered for the whole step.
    """
    with torch.device("meta"):
        built = build_objective(model, objective, 0)
    units = {"": 0}
    blocks = [name for name, module in built.named_modules() if isinstance(module, Block)]
    of_teachers = _of_teachers(built)
    for name, weight in built.named_parameters():
        if id(weight) not in of_teachers:
            owner = next((block for block in blocks if name.startswith(f"{block}.")), "")
            units[owner] = units.get(owner, 0) + weight.numel()
    return units


def mae_parameters(model: ModelConfig, mae: MaeConfig) -> int:
    """Parameters that a masked autoencoder has beside its encoder."""
    width, codes = mae.decoder_width, 0 if model.is_fused else len(model.channels) + 1
    n = _linear(model.width, width) + width + codes * width + _linear(width, _pixels(model))
    block = _block_parameters("sequential", width, _MLP_RATIO * width)
    if mae.decoder == "per_channel":
        n += 3 * 2 * width  # norms
        n += 3 * width**2 + _linear(width, width)  # query, key and value without biases, attention_out
        n += _linear(width, _MLP_RATIO * width) + _linear(_MLP_RATIO * width, width)
        n += codes * mae.decoder_depth * block
    else:
        n += mae.decoder_depth * block + 2 * width
    if mae.contrastive_weight > 0:
        n += _linear(model.width, 2 * model.width) + _linear(2 * model.width, PROJECTED_WIDTH)
    return n


def _encoder_parameters(model: ModelConfig) -> int:
    n = _linear(_pixels(model), model.width) + model.width + 2 * model.width  # patches, cls, norm
    if model.positions == "learned":
        n += model.n_patches * model.width
    if model.architecture == "chada_vit":
        n += (len(model.channels) + 1 if model.channel_code == "stain" else model.max_channels) * model.width
    block = _block_parameters(model.block, model.width, model.mlp_width)
    if model.block != "post_norm":
        block += 4 * (model.width // model.heads)  # norms of queries and keys
        block += (model.layer_scale > 0) * model.width * (1 if model.block == "parallel" else 2)
    return n + model.depth * block


def _block_parameters(kind: BlockKind, width: int, mlp_width: int) -> int:
    """Without norms of queries and keys, and without gains."""
    matrices = 4 * width**2 + 2 * width * mlp_width
    if kind == "parallel":
        return matrices + 2 * width + mlp_width + 2 * width
    return matrices + 5 * width + mlp_width + 4 * width  # biases, norms


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _pixels(model: ModelConfig) -> int:
    """Pixels of one token, P."""
    return model.patch_size**2 * (len(model.channels) if model.is_fused else 1)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """So many equal blocks one after another, over so many sequences of a crop."""

    kind: BlockKind
    depth: int
    n_sequences: float
    length: int
    width: int
    heads: int
    mlp_width: int
    has_gain: bool = False
    is_encoder: bool = False
    """May be computed again in the backward pass; unlike those of decoders, normalises queries and keys."""
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
    """One linear layer over so many tokens of a crop."""

    tokens: float
    inputs: int
    outputs: int
    n_backward: int = 2
    """Products of the backward pass: one for the input's gradient, one for the weights'."""

    @property
    def flops(self) -> float:
        return 2 * self.tokens * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything that is done with one crop."""

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


class _Sums:
    """Means over crops of different channel counts."""

    def __init__(self) -> None:
        self.tokens = self.inference = self.forward = self.training = self.recompute = 0.0
        self.kept = self.kept_fp32 = self.kept_recomputed = 0.0

    def add(self, weight: float, model: ModelConfig, length: int, alone: _Work, work: _Work) -> None:
        self.tokens += weight * length
        self.inference += weight * alone.forward_flops
        self.forward += weight * work.forward_flops
        self.training += weight * work.training_flops
        self.recompute += weight * work.recompute_flops
        self.kept += weight * work.kept_bytes(2)
        self.kept_fp32 += weight * work.kept_bytes(4)
        self.kept_recomputed += weight * work.kept_bytes(2, recompute=True)


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


def _encoder_pass(
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
    return _Product(tokens, _pixels(model), model.width, n_backward=int(is_trained))  # pixels need no gradient


def _mae_work(model: ModelConfig, mae: MaeConfig, n_channels: int, n_views: int) -> _Work:
    """The encoder on the visible tokens of each view; the decoder on all tokens of the first, to the hidden pixels."""
    length = model.n_tokens(n_channels)
    visible = max(1, int(length * (1 - mae.mask_ratio) + 1e-6))  # see masking.py
    hidden = length - visible
    width, pixels = mae.decoder_width, _pixels(model)
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
    shape = (width, mae.decoder_heads, _MLP_RATIO * width)
    if mae.decoder == "per_channel":
        blocks.append(_Blocks("sequential", mae.decoder_depth, n_channels, model.n_patches, *shape))
        products += [
            _Product(length, width, 3 * width),  # queries, keys and values of the look at all channels
            _Product(length, 2 * length, width),  # its scores, and their mean of the values
            _Product(length, width, width),
            _Product(length, width, _MLP_RATIO * width),
            _Product(length, _MLP_RATIO * width, width),
        ]
        fp32 += 2 * length * width  # inputs of the norms
        other += length * width * (7 + 2 * _MLP_RATIO)  # two normed, q, k, v, mixed, normed, gelu's two
    else:
        blocks.append(_Blocks("sequential", mae.decoder_depth, 1, length + 1, *shape))
        fp32 += hidden * width  # the final norm's input
    if mae.contrastive_weight > 0:
        products += [
            _Product(n_views, model.width, 2 * model.width),
            _Product(n_views, 2 * model.width, PROJECTED_WIDTH),
        ]
    return _Work(blocks, products, fp32, other)


def _views_work(
    model: ModelConfig, n_channels: int, objective: ObjectiveConfig, heads: int, teacher: int, teacher_heads: int
) -> _Work:
    """The encoder on all views, a teacher's on two. Heads multiply each of their weights once for a view."""
    views = {model.crop_size: objective.n_views}
    if objective.name == "dino":
        local = objective.dino.local_size
        views = {model.crop_size: _TEACHER_VIEWS}
        views[local] = views.get(local, 0) + objective.n_views - _TEACHER_VIEWS
    passes = [_encoder_pass(model, size, n_channels, n=n) for size, n in views.items()]
    if teacher:
        passes.append(_encoder_pass(model, model.crop_size, n_channels, n=_TEACHER_VIEWS, is_trained=False))
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
        kept = tokens * (_pixels(model) + model.width)
    if objective.name == "moco_v2_plus":  # a query's cosines with all keys; their log-softmax is kept
        queue = objective.moco_v2_plus.queue_size
        products.append(_Product(objective.n_views, objective.moco_v2_plus.projected_width, queue, n_backward=1))
        kept += objective.n_views * queue
    return _Work(blocks, products, kept, maps)


@lru_cache(maxsize=32)
def _sizes_of(model: ModelConfig, objective: ObjectiveConfig) -> tuple[int, int, int, int]:
    """Parameters of the encoder, of what else is trained, of frozen encoders, and of what else is frozen."""
    with torch.device("meta"):
        built = build_objective(model, objective, 0)
    in_encoders = {id(weight) for part in built.modules() if isinstance(part, Encoder) for weight in part.parameters()}
    of_teachers = _of_teachers(built)
    sizes = {(taught, inside): 0 for taught in (True, False) for inside in (True, False)}
    for weight in built.parameters():
        sizes[id(weight) in of_teachers, id(weight) in in_encoders] += weight.numel()
    return sizes[False, True], sizes[False, False], sizes[True, True], sizes[True, False]


def _of_teachers(objective: nn.Module) -> set[int]:
    """Which weights, by their `id`, belong to a teacher: no gradient reaches them, and no optimiser holds them."""
    teachers = [part for part in objective.modules() if isinstance(part, Teacher)]
    return {id(weight) for part in teachers for weight in part.parameters()}


def _shares(model: ModelConfig, n_channels: int | Mapping[int, float]) -> dict[int, float]:
    """The share of crops that have each number of channels."""
    counts = {n_channels: 1.0} if isinstance(n_channels, int) else dict(n_channels)
    total = sum(counts.values())
    if not counts or min(counts) < 1 or min(counts.values()) < 0 or total <= 0:
        raise ValueError(f"channel counts {counts}: expected at least one count of 1 or more, with some crops.")
    for n in counts:
        if model.is_fused and n != len(model.channels):
            raise ValueError(
                f"crops of {n} channels for a {model.architecture} of {len(model.channels)} "
                f"({', '.join(model.channels)}). "
                "Name as many stains in model.channels, or take a chada_vit, which takes any number."
            )
        model.check_number_of_channels(n)
    return {n: weight / total for n, weight in counts.items()}
