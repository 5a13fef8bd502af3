"""Weights that FSDP2 shards over workers, without the import of its tensors where nothing is sharded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def as_sharded(tensor: Tensor) -> DTensor | None:
    """The tensor as the DTensor that it is; None where it is whole.

    The import of DTensor brings sympy, two seconds of each process of a training, and there is none before it.
    """
    loaded = sys.modules.get("torch.distributed.tensor")
    return tensor if loaded is not None and isinstance(tensor, loaded.DTensor) else None


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. All workers must call it where it is sharded."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()
