"""The transformer block and the position code that encoder and decoder share.

Shapes: B crops, L tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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

    def forward(self, tokens_BLD: Tensor, is_key_BL: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D). Tokens with `is_key_BL` False are attended by none; None means all are real."""
        tokens_BLD = tokens_BLD + self._drop(self._attend(self.attention_norm(tokens_BLD), is_key_BL))
        return tokens_BLD + self._drop(self.mlp(self.mlp_norm(tokens_BLD)))

    def _drop(self, change_BLD: Tensor) -> Tensor:
        """Leave the change out for some crops of a minibatch in training. Huang et al. 2016, arXiv 1603.09382."""
        if not self.training or self.drop_path == 0:
            return change_BLD
        kept = torch.rand(len(change_BLD), 1, 1, device=change_BLD.device) >= self.drop_path
        return change_BLD * kept / (1 - self.drop_path)

    def _attend(self, tokens_BLD: Tensor, is_key_BL: Tensor | None) -> Tensor:
        query, key, value = self.qkv(tokens_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        mask = None if is_key_BL is None else is_key_BL[:, None, None, :]
        if tokens_BLD.device.type == "cpu":
            # torch 2.15 on a CPU without AMX: attention's backward in bf16 takes 1.4 to 8 times as long as in fp32.
            with torch.autocast("cpu", enabled=False):
                mixed_BHLd = functional.scaled_dot_product_attention(
                    query.float(), key.float(), value.float(), attn_mask=mask
                )
        else:
            query, key = query.to(value.dtype), key.to(value.dtype)
            mixed_BHLd = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.attention_out(mixed_BHLd.transpose(1, 2).flatten(2))
        return out


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
