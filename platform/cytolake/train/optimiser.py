"""AdamW as masked autoencoders are trained with it, and its learning rate as a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn


def build_optimiser(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay for weight matrices only: not for biases, norms, tokens or embeddings.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101; beta2 0.95 as in He et al. 2022, table 8.
    """
    embedded = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in embedded else free).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def learning_rate_at(step: int, n_steps: int, peak: float, warmup_share: float) -> float:
    """One cycle: a straight line up to `peak` over the first `warmup_share` of the steps, then half a cosine to 0.

    Step 0 is the first one and already learns; the last one still learns a little.
    """
    n_warmup = max(1, round(n_steps * warmup_share))
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    done = (step - n_warmup + 1) / (n_steps - n_warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
