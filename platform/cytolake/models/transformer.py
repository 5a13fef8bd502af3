"""The transformer block and the position code that encoder and decoder share.

Shapes: B crops, T tokens of all crops in runs of equal length (see `runs`), L tokens of a crop, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.runs import Runs, join_runs, lengths, split_runs


class Block(nn.Module):
    """Pre-norm transformer block with normalised queries and keys.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; query-key norm: Dehghani et al. 2023, arXiv 2302.05442.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.key_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = drop_path

    def forward(self, tokens_TD: Tensor, runs: Runs) -> Tensor:
        """(T, D) -> (T, D). A token attends to those of its own crop."""
        tokens_TD = tokens_TD + self._drop(self._attend(self.attention_norm(tokens_TD), runs), runs)
        return tokens_TD + self._drop(self.mlp(self.mlp_norm(tokens_TD)), runs)

    def _drop(self, change_TD: Tensor, runs: Runs) -> Tensor:
        """Leave the change out for some crops of a minibatch in training. Huang et al. 2016, arXiv 1603.09382."""
        if not self.training or self.drop_path == 0:
            return change_TD
        of_crop = torch.tensor(lengths(runs), device=change_TD.device)
        kept_B = torch.rand(len(of_crop), device=change_TD.device) >= self.drop_path
        kept_T = kept_B.repeat_interleave(of_crop, output_size=len(change_TD))
        return change_TD * kept_T[:, None] / (1 - self.drop_path)

    def _attend(self, tokens_TD: Tensor, runs: Runs) -> Tensor:
        query, key, value = self.qkv(tokens_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (T, H, d)
        query, key = self.query_norm(query), self.key_norm(key)
        if tokens_TD.device.type == "cpu":
            # torch 2.15 on a CPU without AMX: attention's backward in bf16 takes 1.4 to 8 times as long as in fp32.
            with torch.autocast("cpu", enabled=False):
                mixed_THd = _attend_in_runs(query.float(), key.float(), value.float(), runs)
        else:
            mixed_THd = _attend_in_runs(query.to(value.dtype), key.to(value.dtype), value, runs)
        out: Tensor = self.attention_out(mixed_THd.flatten(1))
        return out


def _attend_in_runs(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, runs: Runs) -> Tensor:
    """(T, H, d) attention of each crop to itself, a call for each run."""
    mixed = []
    for each in zip(*(split_runs(part, runs) for part in (query_THd, key_THd, value_THd)), strict=True):
        query, key, value = (stack_nLHd.transpose(1, 2) for stack_nLHd in each)
        mixed.append(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2))
    return join_runs(mixed)


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
