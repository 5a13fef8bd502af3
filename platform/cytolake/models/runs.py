"""Tokens of crops with different channel counts in one row, without padding.

Crops of equal length lie side by side: a run. Layers that treat each token alone see one long row; attention sees each
run as an ordinary stack of sequences. So no token is computed that no crop has, and no mask is needed.

Shapes: T tokens of all crops; in a run n crops of L tokens each; D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Runs: TypeAlias = "tuple[tuple[int, int], ...]"
"""(n, L) of each run, in the order of the row."""


def split_runs(row_TD: Tensor, runs: Runs) -> list[Tensor]:
    """The (n, L, D) stack of each run; views of the row."""
    stacks = []
    first = 0
    for n, length in runs:
        stacks.append(row_TD[first : first + n * length].view(n, length, *row_TD.shape[1:]))
        first += n * length
    return stacks


def join_runs(stacks: Iterable[Tensor]) -> Tensor:
    """The row (T, D) of stacks (n, L, D)."""
    parts = [stack.flatten(0, 1) for stack in stacks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def longer(runs: Runs, by: int) -> Runs:
    """Runs of crops with so many more tokens each."""
    return tuple((n, length + by) for n, length in runs)


def lengths(runs: Runs) -> list[int]:
    """Tokens of each crop, in the order of the row."""
    return [length for n, length in runs for _ in range(n)]


def by_length(n_tokens: Sequence[int]) -> tuple[list[int], Runs]:
    """The order in which crops of these lengths form runs, shortest first, and the runs. In a run crops keep theirs."""
    order = sorted(range(len(n_tokens)), key=n_tokens.__getitem__)
    sizes: dict[int, int] = {}
    for i in order:
        sizes[n_tokens[i]] = sizes.get(n_tokens[i], 0) + 1
    return order, tuple((n, length) for length, n in sizes.items())
