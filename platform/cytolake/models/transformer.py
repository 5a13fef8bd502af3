"""Transformer blocks and position codes, shared by encoders and decoders.

Shapes: T tokens of all crops in runs of equal length (see `runs`), L tokens of a crop, n crops of a run, D width,
H heads, d = D / H, M hidden width of the MLP.

A block is two functions of single tokens with attention between them. Only attention needs to know where a crop ends;
so `compile_blocks` can compile the two for any number of tokens, once, or the whole for minibatches of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.config import BlockKind
from cytolake.models.runs import Runs, join_runs, split_runs, spread, starts

_VARLEN_DTYPES = (torch.bfloat16, torch.float16)  # what FlashAttention takes


class Block(nn.Module):
    """Base of all blocks. A token attends to the tokens of its own crop."""

    def __init__(self, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop_path = drop_path

    def before(self, tokens_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values, (T, H, d) each, and what else `after` needs of the tokens, (T, any)."""
        raise NotImplementedError

    def after(self, tokens_TD: Tensor, mixed_TD: Tensor, other: Tensor, kept_2T: Tensor | None) -> Tensor:
        """(T, D) the block's output from its input and the output of attention.

        `kept_2T` scales the block's two changes for each token, 0 where drop-path leaves them out; None means neither.
        """
        raise NotImplementedError

    def forward(self, tokens_TD: Tensor, runs: Runs) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.change(tokens_TD, runs, self._kept(tokens_TD, runs))

    def change(self, tokens_TD: Tensor, runs: Runs, kept_2T: Tensor | None) -> Tensor:
        """`forward` without its random numbers, which would differ in a compiled function."""
        query, key, value, other = self.before(tokens_TD)
        return self.after(tokens_TD, attend(query, key, value, runs), other, kept_2T)

    def _kept(self, tokens_TD: Tensor, runs: Runs) -> Tensor | None:
        """Leave changes out for some crops of a minibatch in training. Huang et al. 2016, arXiv 1603.09382."""
        if not self.training or self.drop_path == 0:
            return None
        n_crops = sum(n for n, _ in runs)
        kept_2B = (torch.rand(2, n_crops, device=tokens_TD.device) >= self.drop_path) / (1 - self.drop_path)
        return spread(kept_2B, runs)

    def _heads(self, features_TX: Tensor, parts: int) -> tuple[Tensor, ...]:
        n_tokens, width = features_TX.shape
        return features_TX.view(n_tokens, parts, self.heads, width // (parts * self.heads)).unbind(1)


class SequentialBlock(Block):
    """Pre-norm block: attention, then an MLP that sees its result; `qk_norm` normalises queries and keys.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; query-key norm: Dehghani et al. 2023, arXiv 2302.05442; gain of
    the changes: Touvron et al. 2021, arXiv 2103.17239.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        qk_norm: bool = True,
    ) -> None:
        super().__init__(heads, drop_path)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // heads, eps=1e-6) if qk_norm else None
        self.key_norm = _key_norm(width // heads) if qk_norm else None
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        self.attention_gain = _gain(width, layer_scale)
        self.mlp_gain = _gain(width, layer_scale)

    def before(self, tokens_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed_TD = self.attention_norm(tokens_TD)
        if self.query_norm is None or self.key_norm is None:
            query, key, value = self._heads(_unnormed_qkv(self.qkv, normed_TD), 3)
        else:
            query, key, value = self._heads(self.qkv(normed_TD), 3)
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        return query, key, value, tokens_TD[:, :0]

    def after(self, tokens_TD: Tensor, mixed_TD: Tensor, other: Tensor, kept_2T: Tensor | None) -> Tensor:
        tokens_TD = _add(tokens_TD, self.attention_out(mixed_TD), self.attention_gain, kept_2T, 0)
        return _add(tokens_TD, self.mlp(self.mlp_norm(tokens_TD)), self.mlp_gain, kept_2T, 1)


class ParallelBlock(Block):
    """Attention and MLP read the same norm and are added at once; one weight makes the inputs of both.

    Source: Dehghani et al. 2023, arXiv 2302.05442, section 2.1, with normalised queries and keys and without biases of
    queries, keys and values; as in the encoders of Kraus et al. 2024, arXiv 2404.10242.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, drop_path: float = 0.0, layer_scale: float = 0.0
    ) -> None:
        super().__init__(heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.entry = nn.Linear(width, 3 * width + mlp_width, bias=False)  # queries, keys, values, MLP
        self.mlp_bias = nn.Parameter(torch.zeros(mlp_width))
        self.query_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.key_norm = _key_norm(width // heads)
        self.attention_out = nn.Linear(width, width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.gain = _gain(width, layer_scale)

    def before(self, tokens_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Two products with parts of one weight: a single one would make backward join two gradients of (T, 3 D + M).
        for_attention, for_mlp = torch.split(self.entry.weight, [3 * tokens_TD.shape[-1], len(self.mlp_bias)])
        normed_TD = self.norm(tokens_TD)
        query, key, value = self._heads(functional.linear(normed_TD, for_attention), 3)
        hidden_TM = functional.linear(normed_TD, for_mlp)
        return self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype), value, hidden_TM

    def after(self, tokens_TD: Tensor, mixed_TD: Tensor, other: Tensor, kept_2T: Tensor | None) -> Tensor:
        hidden_TM = functional.gelu(other + self.mlp_bias.to(other.dtype))
        return _add(tokens_TD, self.attention_out(mixed_TD) + self.mlp_out(hidden_TM), self.gain, kept_2T, 0)


class PostNormBlock(Block):
    """The block of ChAda-ViT as its authors' code has it, for their weights: one norm before and after attention.

    a = attention(norm1(x)); x = norm1(x + a); x = norm2(x + W2 relu(W1 x)). What the published code calls drop-path is
    dropout on both changes, 0 in its recipes, and is left out. Source: Bourriez et al. 2024, arXiv 2311.15264.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__(heads, 0.0)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.ReLU(), nn.Linear(mlp_width, width))

    def before(self, tokens_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value = self._heads(_unnormed_qkv(self.qkv, self.attention_norm(tokens_TD)), 3)
        return query, key, value, tokens_TD[:, :0]

    def after(self, tokens_TD: Tensor, mixed_TD: Tensor, other: Tensor, kept_2T: Tensor | None) -> Tensor:
        tokens_TD = self.attention_norm(tokens_TD + self.attention_out(mixed_TD))
        changed_TD: Tensor = self.mlp_norm(tokens_TD + self.mlp(tokens_TD))
        return changed_TD


def build_block(
    kind: BlockKind, width: int, heads: int, mlp_width: int, *, drop_path: float = 0.0, layer_scale: float = 0.0
) -> Block:
    """A block of an encoder, of the kind that `ModelConfig.block` names."""
    if kind == "post_norm":
        return PostNormBlock(width, heads, mlp_width)
    made = ParallelBlock if kind == "parallel" else SequentialBlock
    return made(width, heads, mlp_width, drop_path=drop_path, layer_scale=layer_scale)


def compile_blocks(module: nn.Module, *, one_shape: bool = False, backend: str = "inductor") -> None:
    """Compile the blocks of an encoder or an objective, in place.

    Args:
        one_shape: False compiles what blocks do with single tokens, once for any number of tokens, and leaves attention
            out: for minibatches of mixed channel counts. True compiles blocks whole, and the methods that a module
            names in `compiled_for_one_shape`, again for every new shape: less memory traffic where all minibatches
            have one.
        backend: Of `torch.compile`.
    """
    for part in module.modules():
        names: tuple[str, ...] = getattr(part, "compiled_for_one_shape", ()) if one_shape else ()
        if isinstance(part, Block):
            names = ("change",) if one_shape else ("before", "after")
        for name in names:
            setattr(part, name, torch.compile(getattr(part, name), dynamic=not one_shape, backend=backend))


def attend(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, runs: Runs, key_runs: Runs | None = None) -> Tensor:
    """(T, D) each crop's queries over its own keys, without padding.

    Args:
        query_THd: (T, H, d).
        key_THd: (K, H, d), of tokens that may be others than the queries'.
        value_THd: (K, H, d).
        runs: Of the queries.
        key_runs: Of keys and values, the same crops in the same order; None means `runs`.
    """
    key_runs = key_runs or runs
    if query_THd.device.type == "cpu" and query_THd.dtype != torch.float32:
        # torch 2.15 on a CPU without AMX: attention's backward in bf16 takes 1.4 to 8 times as long as in fp32.
        with torch.autocast("cpu", enabled=False):
            return attend_run_by_run(query_THd.float(), key_THd.float(), value_THd.float(), runs, key_runs)
    if len(runs) > 1 and query_THd.is_cuda and query_THd.dtype in _VARLEN_DTYPES:
        return attend_in_one_call(query_THd, key_THd, value_THd, runs, key_runs)
    return attend_run_by_run(query_THd, key_THd, value_THd, runs, key_runs)


def attend_run_by_run(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, runs: Runs, key_runs: Runs) -> Tensor:
    """`attend` as one call for each run, on any device."""
    stacks = (split_runs(query_THd, runs), split_runs(key_THd, key_runs), split_runs(value_THd, key_runs))
    mixed = []
    for each in zip(*stacks, strict=True):
        query, key, value = (stack_nLHd.transpose(1, 2) for stack_nLHd in each)
        mixed.append(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    return join_runs(mixed)


def attend_in_one_call(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, runs: Runs, key_runs: Runs) -> Tensor:
    """`attend` as one call for all crops, on a GPU in half precision."""
    from torch.nn.attention.varlen import varlen_attn  # since torch 2.10; a slow import

    device = query_THd.device
    longest, longest_keys = (max(length for _, length in of) for of in (runs, key_runs))
    mixed_THd = varlen_attn(
        query_THd, key_THd, value_THd, starts(runs, device), starts(key_runs, device), longest, longest_keys
    )
    assert isinstance(mixed_THd, Tensor)  # a pair only on request
    return mixed_THd.flatten(1)


def _key_norm(width: int) -> nn.LayerNorm:
    """A norm of keys whose bias is not trained: 0 in a new model, or the value of an older checkpoint.

    One vector added to all keys of a crop adds one number to all scores of a query, which a softmax takes away: the
    bias has no gradient, and an optimiser that divides by the gradient's size would move it by rounding errors.
    """
    norm = nn.LayerNorm(width, eps=1e-6)
    norm.bias.requires_grad_(False)
    return norm


def _unnormed_qkv(qkv: nn.Linear, tokens_TD: Tensor) -> Tensor:
    """(T, 3 D) queries, keys and values; the keys' bias gets a gradient of exactly 0, for the reason of `_key_norm`."""
    query_D, key_D, value_D = qkv.bias.chunk(3)
    return functional.linear(tokens_TD, qkv.weight, torch.cat([query_D, key_D.detach(), value_D]))


def _gain(width: int, first: float) -> nn.Parameter | None:
    return nn.Parameter(torch.full((width,), first)) if first > 0 else None


def _add(tokens_TD: Tensor, change_TD: Tensor, gain_D: Tensor | None, kept_2T: Tensor | None, which: int) -> Tensor:
    if gain_D is not None:
        change_TD = change_TD * gain_D
    if kept_2T is not None:
        change_TD = change_TD * kept_2T[which, :, None]
    return tokens_TD + change_TD


def grid_positions(side: int, width: int) -> Tensor:
    """(side * side, width) fixed sin-cos code of a patch's row and column, rows first.

    Source: Vaswani et al. 2017 with scale 10000, for two axes as in He et al. 2022: a quarter of the features each
    for sin(row), cos(row), sin(column), cos(column).
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    row = place[:, None, :].expand(side, side, -1)
    column = place[None, :, :].expand(side, side, -1)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1).reshape(side * side, width).float()


def initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer. He et al. 2022's own initialisation."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
