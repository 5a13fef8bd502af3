"""AdamW and Lion, which weights they decay, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from cytolake.models.objectives.heads import PrototypeHead
from cytolake.train.sharded import as_sharded

Schedule = Literal["linear_warmup", "one_cycle"]

_FIRST_DIVISOR, _LAST_DIVISOR = 25.0, 1e4  # torch.optim.lr_scheduler.OneCycleLR's div_factor and final_div_factor


class Lion(torch.optim.Optimizer):
    """Moves every weight by the learning rate, in the direction of the sign of a mean of its gradients.

    With gradient g, mean m and weight w: u = sign(b1 m + (1 - b1) g); w = w (1 - lr * decay) - lr u;
    m = b2 m + (1 - b2) g. The mean, `exp_avg`, is the whole state: half of AdamW's, without a count of steps. Steps are
    as long as the learning rate, so that it needs a third to a tenth of AdamW's, and a decay larger by the same factor.

    A weight that is sharded over workers (FSDP2's DTensor) is moved shard by shard, which is exact: no operation here
    combines two numbers of a weight.

    Args:
        params: As all optimisers of torch take them.
        lr: Learning rate.
        betas: b1 and b2.
        weight_decay: Decoupled, as AdamW's: times the learning rate in each step.

    Raises:
        ValueError: A setting out of its range.

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
    """

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lion: lr {lr}, betas {betas}, weight_decay {weight_decay}; expected lr and weight_decay of 0 or more "
                "and 0 <= beta < 1 for both."
            )
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the gradients that the weights have; weights without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
                alike[weight.device, weight.dtype].append(
                    (_own_part(weight), _own_part(weight.grad), _own_part(state["exp_avg"]))
                )
            for parts in alike.values():
                weights, gradients, means = (list(each) for each in zip(*parts, strict=True))
                _move(weights, gradients, means, group["lr"], group["betas"], group["weight_decay"])
        return loss


def _move(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One step of Lion in place, all tensors of one device and type at once."""
    updates = torch._foreach_lerp(means, gradients, 1 - betas[0])
    torch._foreach_sign_(updates)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - learning_rate * weight_decay)
    torch._foreach_add_(weights, updates, alpha=-learning_rate)
    torch._foreach_lerp_(means, gradients, 1 - betas[1])


def _own_part(tensor: Tensor) -> Tensor:
    """This worker's part of a shared tensor, without a copy; the tensor itself where it is not shared."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def build_optimiser(
    objective: nn.Module,
    *,
    name: Literal["adamw", "lion"],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimiser of all weights that are trained: first the group that decays, then the one that does not.

    Args:
        objective: On the device it trains on; where its weights are sharded, after that.
        name: `adamw` is torch's, fused: Loshchilov & Hutter 2019, arXiv 1711.05101. `lion`: see `Lion`.
        learning_rate: Of the first step; `learning_rate_at` gives it for every step.
        betas: Decay of the moments. (0.9, 0.95) in He et al. 2022, table 8, and in Kenyon-Dean et al. 2024 for Lion.
        weight_decay: Of the weights that `decayed_names` lists.

    Raises:
        ValueError: Another name.
    """
    decays = decayed_names(objective)
    named = [(key, weight) for key, weight in objective.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for key, weight in named if key in decays], "weight_decay": weight_decay},
        {"params": [weight for key, weight in named if key not in decays], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    if name == "lion":
        return Lion(groups, lr=learning_rate, betas=betas)
    raise ValueError(f"no optimiser {name!r}: choose adamw or lion.")


def decayed_names(objective: nn.Module) -> set[str]:
    """Names of the parameters that weight decay pulls to 0: the matrices that something is multiplied by.

    Those are of linear layers and convolutions, and DINO's prototypes, which its authors decay too. Not biases, norms,
    gains of LayerScale, tokens, learned positions and embeddings, whatever their shape.
    """
    names = set()
    for path, module in objective.named_modules():
        owner = module
        if isinstance(module, ParametrizationList):  # such as weight norm: `<layer>.parametrizations.weight`
            owner = objective.get_submodule(path.rsplit(".parametrizations.", 1)[0])
        if not isinstance(owner, nn.Linear | nn.modules.conv._ConvNd | PrototypeHead):
            continue
        for key, weight in module.named_parameters(prefix=path, recurse=False):
            if weight.ndim >= 2 and weight.shape[0] != weight.numel():  # weight norm's lengths are (rows, 1)
                names.add(key)
    return names


def learning_rate_at(
    step: float, n_steps: float, peak: float, warmup_share: float, schedule: Schedule = "linear_warmup"
) -> float:
    """The learning rate of one step, see `PretrainConfig.schedule`.

    Step 0 is the first one and already learns; the last one still learns a little. Steps may be counted in parts of
    whole ones, where minibatches differ in size.

    Sources: Kenyon-Dean et al. 2024, arXiv 2411.02572, describe a linear warm-up; Smith & Topin 2018, arXiv 1708.07120,
    in the form of torch's `OneCycleLR` with its own divisors. The two differ by at most a tenth of the peak in the
    warm-up, and by a step's worth after it.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, n_steps, peak, warmup_share)
    n_warmup = max(1, round(n_steps * warmup_share))
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    done = (step - n_warmup + 1) / (n_steps - n_warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def _one_cycle(step: float, n_steps: float, peak: float, warmup_share: float) -> float:
    first, last = peak / _FIRST_DIVISOR, peak / _FIRST_DIVISOR / _LAST_DIVISOR
    top, end = warmup_share * n_steps - 1, n_steps - 1  # the steps at which the peak and the lowest rate are reached
    if step < top:
        return _along_cosine(first, peak, step / top)
    if end <= top or step == top:
        return peak
    return _along_cosine(peak, last, (step - top) / (end - top))


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
