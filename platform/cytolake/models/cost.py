"""The cost of training an encoder, by formula: parameters, FLOPs, and bytes kept for the backward pass.

Nothing is run, so the largest model takes no longer than the smallest. Matrix products are counted (`work`), everything
else that a transformer does is left out, as is usual. The Fourier loss is a matrix product here, and counted: at most
2 % of a published size. All amounts are of one crop, and a mean where crops have different channel counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from cytolake.models.config import BlockKind, ModelConfig
from cytolake.models.encoder import Encoder
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, build_objective
from cytolake.models.objectives.contrast import PROJECTED_WIDTH
from cytolake.models.objectives.teacher import Teacher
from cytolake.models.transformer import Block
from cytolake.models.work import MLP_RATIO, Work, encoder_pass, mae_work, pixels_of_token, views_work


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """Cost of one crop, and numbers of weights."""

    encoder_parameters: int
    other_parameters: int
    """Of decoders and heads, which are trained with the encoder and discarded."""
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
    """The cost of training `model` on a crop of its `crop_size`.

    All parts of a masked autoencoder have a formula. Every other objective counts as the encoder on all tokens of
    `n_views` views, a teacher on two of them where there is one, and heads that see one vector of each view and keep
    nothing worth counting.

    Args:
        model: The encoder. Its `channels` are counted as they are: give a channel-adaptive one its vocabulary first.
        n_channels: Channels of a crop; or for each number of channels the number or share of crops that have it.

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
        alone = Work(*encoder_pass(model, model.crop_size, n))
        if mae is not None:
            work = mae_work(model, mae, n, objective.n_views)
        else:
            work = views_work(model, n, objective, heads, teacher, teacher_heads)
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
    """Parameters of a masked autoencoder without its encoder."""
    width, codes = mae.decoder_width, 0 if model.is_fused else len(model.channels) + 1
    n = _linear(model.width, width) + width + codes * width + _linear(width, pixels_of_token(model))
    block = _block_parameters("sequential", width, MLP_RATIO * width)
    if mae.decoder == "per_channel":
        n += 3 * 2 * width  # norms
        n += 3 * width**2 + _linear(width, width)  # query, key and value without biases, attention_out
        n += _linear(width, MLP_RATIO * width) + _linear(MLP_RATIO * width, width)
        n += codes * mae.decoder_depth * block
    else:
        n += mae.decoder_depth * block + 2 * width
    if mae.contrastive_weight > 0:
        n += _linear(model.width, 2 * model.width) + _linear(2 * model.width, PROJECTED_WIDTH)
    return n


def _encoder_parameters(model: ModelConfig) -> int:
    n = _linear(pixels_of_token(model), model.width) + model.width + 2 * model.width  # patches, cls, norm
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


class _Sums:
    """Means over crops of different channel counts."""

    def __init__(self) -> None:
        self.tokens = self.inference = self.forward = self.training = self.recompute = 0.0
        self.kept = self.kept_fp32 = self.kept_recomputed = 0.0

    def add(self, weight: float, model: ModelConfig, length: int, alone: Work, work: Work) -> None:
        self.tokens += weight * length
        self.inference += weight * alone.forward_flops
        self.forward += weight * work.forward_flops
        self.training += weight * work.training_flops
        self.recompute += weight * work.recompute_flops
        self.kept += weight * work.kept_bytes(2)
        self.kept_fp32 += weight * work.kept_bytes(4)
        self.kept_recomputed += weight * work.kept_bytes(2, recompute=True)


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
