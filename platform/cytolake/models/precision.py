"""Precision of matrix products of a trained encoder."""

from __future__ import annotations

from typing import Literal, get_args

import torch

EncoderPrecision = Literal["fp32", "bf16"]
"""`fp32` gives the same vectors everywhere, to 1e-3. `bf16` is for GPUs, whose declared peak in it is many times
that of fp32; on a CPU that does not multiply it natively it is slower. Vectors of one have a cosine above .999 with the
other's (`make bench-parity`)."""

PRECISIONS: tuple[str, ...] = get_args(EncoderPrecision)


def multiply_in(precision: EncoderPrecision, device: torch.device | str) -> torch.autocast:
    """Context in which matrix products on this device are of this precision; sums and norms stay fp32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
