"""The search space of a sweep: values of a training's fields, and strengths of augmentations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cytolake.models.augment.knobs import KNOBS
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare, why_without_effect
from cytolake.tune.trials import Settings

Vary = Callable[[Mapping[str, Any]], PretrainConfig]
"""The recipe's training with some fields set, by their paths as in `--set`; raises ValueError for invalid settings."""

KNOB = "knob."
FIELD = "pretrain."
_AUGMENT = "pretrain.augment."


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """One setting of a sweep, and the values it may take: a range of numbers, or a list."""

    name: str
    """`pretrain.` and a field as in `--set`, or `knob.` and a name of `cytolake.models.augment.knobs.KNOBS`."""
    values: tuple[str | bool | int | float, ...] = ()
    """Values to choose from, as in `--set`; empty for a range of numbers."""
    low: float = 0.0
    """Lower end of the range."""
    high: float = 1.0
    """Upper end of the range."""
    log: bool = False
    """Sample the range evenly in its logarithm."""

    EXAMPLE: ClassVar[str] = (
        "{name: pretrain.learning_rate, low: 3e-4, high: 1e-2, log: true}, {name: knob.gamma, low: 0, high: 1} or "
        "{name: pretrain.optimiser, values: [adamw, lion]}"
    )
    """Shown where a recipe has something else."""

    def __post_init__(self) -> None:
        knob = self.name.removeprefix(KNOB)
        if not self.name.startswith((FIELD, KNOB)) or (self.name.startswith(KNOB) and knob not in KNOBS):
            raise ValueError(
                f"sweep.space has {self.name!r}, expected pretrain. and a field, or knob. and one of "
                f"{', '.join(KNOBS)}."
            )
        if self.values:
            return
        found = f"sweep.space, {self.name}: low {self.low:g}, high {self.high:g}"
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{found}, expected low below high, and above 0 for a logarithmic range.")
        if self.name.startswith(KNOB) and not 0 <= self.low < self.high <= 1:
            raise ValueError(f"{found}, expected strengths of a knob from 0 to 1.")


def first_of(each: Range) -> Settings:
    """One value of the range."""
    return {each.name: each.values[0] if each.values else each.low}


def grid(ranges: Sequence[Range]) -> list[Settings]:
    """Every value of each range with every value of the others."""
    return [
        dict(zip([each.name for each in ranges], values, strict=True))
        for values in itertools.product(*(each.values for each in ranges))
    ]


def distribution(each: Range, base: PretrainConfig) -> Any:
    """The range as a distribution of Optuna's: of integers where the field holds one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if each.values:
        return CategoricalDistribution(each.values)
    value: Any = base
    for name in each.name.removeprefix(FIELD).split(".") if each.name.startswith(FIELD) else ():
        value = getattr(value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return IntDistribution(math.ceil(each.low), math.floor(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _ends(each: Range) -> tuple[Any, ...]:
    return each.values or (each.low, each.high)


def trained_with(settings: Settings, vary: Vary, base: PretrainConfig) -> PretrainConfig:
    """The training with some settings: fields first, then knobs applied to the resulting augmentations."""
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
    """Refuse an augmentation whose values all give the encoder the same input: scores would differ by noise alone.

    Nothing is refused where the model or the objective is searched too: the augmentation may have an effect with some.

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
            continue  # some of its values are invalid: those trials fail with the reason
        if not any(changes_input(model, first, other, crops, base.objective) for other in others):
            knob = each.name.removeprefix(KNOB).removeprefix(_AUGMENT)
            raise ValueError(
                f"sweep.space has {each.name}, which {why_without_effect(knob, model, base.objective)}. Take it out of "
                "sweep.space."
            )
