"""What a search may set: ranges and choices of a training's fields, and strengths of augmentations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytolake.models.augment.knobs import KNOBS
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare, why_without_effect

Settings = dict[str, Any]
Vary = Callable[[Mapping[str, Any]], PretrainConfig]
"""The recipe's training with some fields set, by their paths as in `--set`; ValueError where that makes no sense."""

KNOB = "knob."
FIELD = "pretrain."
_AUGMENT = "pretrain.augment."


@dataclass(frozen=True, slots=True)
class Range:
    """What one setting may be."""

    name: str
    """`pretrain.` and a field, or `knob.` and a knob of `cytolake.models.augment.knobs.KNOBS`."""
    choices: tuple[str, ...] = ()
    """Values as in `--set`; empty for a range of numbers."""
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read `pretrain.learning_rate=1e-4..1e-2 log`, `knob.gamma=0..1` or `pretrain.optimiser=adamw|lion`.

        Raises:
            ValueError: Anything else.
        """
        name, separator, values = (part.strip() for part in text.partition("="))
        found_text = f"sweep.space has {text!r}"
        if not separator or not values:
            raise ValueError(
                f"{found_text}, expected a setting and its values, such as pretrain.learning_rate=1e-4..1e-2 log."
            )
        if not name.startswith((FIELD, KNOB)) or (name.startswith(KNOB) and name.removeprefix(KNOB) not in KNOBS):
            raise ValueError(f"{found_text}, expected pretrain. and a field, or knob. and one of {', '.join(KNOBS)}.")
        low, dots, high = values.removesuffix(" log").partition("..")
        if not dots:
            return cls(name, choices=tuple(choice.strip() for choice in values.split("|")))
        try:
            found = cls(name, (), float(low), float(high), values.endswith(" log"))
        except ValueError:
            raise ValueError(f"{found_text}, expected numbers on both sides of '..'.") from None
        if not found.low < found.high or (found.is_log and found.low <= 0):
            raise ValueError(f"{found_text}, expected a lower number first, and one above 0 for a logarithmic range.")
        if name.startswith(KNOB) and not 0 <= found.low < found.high <= 1:
            raise ValueError(f"{found_text}, expected strengths of a knob from 0 to 1.")
        return found


def first_of(each: Range) -> Settings:
    """One value of the range."""
    return {each.name: each.choices[0] if each.choices else each.low}


def grid(ranges: Sequence[Range]) -> list[Settings]:
    """Every choice with every other."""
    return [
        dict(zip([each.name for each in ranges], values, strict=True))
        for values in itertools.product(*(each.choices for each in ranges))
    ]


def distribution(each: Range, base: PretrainConfig) -> Any:
    """The range as Optuna takes it: of whole numbers where the field holds one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if each.choices:
        return CategoricalDistribution(each.choices)
    value: Any = base
    for name in each.name.removeprefix(FIELD).split(".") if each.name.startswith(FIELD) else ():
        value = getattr(value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return IntDistribution(math.ceil(each.low), math.floor(each.high), log=each.is_log)
    return FloatDistribution(each.low, each.high, log=each.is_log)


def _ends(each: Range) -> tuple[Any, ...]:
    return each.choices or (each.low, each.high)


def trained_with(settings: Settings, vary: Vary, base: PretrainConfig) -> PretrainConfig:
    """The training of some settings; fields first, then knobs on the augmentations that these give."""
    fields = {name: value for name, value in settings.items() if name.startswith(FIELD)}
    training = base
    if fields:
        training = dataclasses.replace(
            vary(fields), evaluate_every=None, seed=base.seed, workers=base.workers, min_workers=None
        )
    for name, strength in settings.items():
        if name.startswith(KNOB):
            augment = KNOBS[name.removeprefix(KNOB)](float(strength), training.augment)
            training = dataclasses.replace(training, augment=augment)
    return training


def check_effects(ranges: Sequence[Range], vary: Vary, base: PretrainConfig, pack: Pack) -> None:
    """Refuse an augmentation whose every value gives the encoder the same input: to search it is to search noise.

    Where the model or the objective are searched too, an augmentation may have an effect with some of them, and none is
    refused.

    Raises:
        ValueError: Such an augmentation, and why it has no effect.
    """
    if any(each.name.startswith((f"{FIELD}model.", f"{FIELD}objective.name")) for each in ranges):
        return
    model = with_vocabulary(base).model
    crops = crops_to_compare(model, pack)
    augmentations = [each for each in ranges if each.name.startswith((KNOB, _AUGMENT))]
    strongest = {each.name: _ends(each)[-1] for each in augmentations}  # a probability has no effect without its knob
    for each in augmentations:
        try:
            first, *others = (trained_with(strongest | {each.name: value}, vary, base).augment for value in _ends(each))
        except ValueError:
            continue  # some of its values make no sense: those trials say so
        if not any(changes_input(model, first, other, crops, base.objective) for other in others):
            knob = each.name.removeprefix(KNOB).removeprefix(_AUGMENT)
            raise ValueError(
                f"sweep.space has {each.name}, which {why_without_effect(knob, model, base.objective)}. Take it out of "
                "sweep.space."
            )
