"""Detection of untrained encoders, from the parameters that initialisation does not draw at random.

Initialisation sets biases, scales of norms and layer scales to constants, and the first step of any optimiser moves
them. An encoder that still has every one of these constants has the weights that it was initialised with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def initial_constants(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of a newly built model with one value in all of their several elements."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
    }


def is_untrained(model: nn.Module, constants: Mapping[str, Tensor]) -> bool:
    """Whether a model still has every constant of its initialisation, allowing for half precision.

    Args:
        constants: `initial_constants` of the same architecture, newly built.

    Returns:
        False without constants: then it cannot be known.
    """
    import torch

    values = dict(model.named_parameters())
    precisions = (torch.float32, torch.bfloat16, torch.float16)
    return bool(constants) and all(
        any(torch.equal(values[name].float(), constant.to(precision).float()) for precision in precisions)
        for name, constant in constants.items()
    )
