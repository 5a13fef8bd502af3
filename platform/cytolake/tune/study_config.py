"""Config of a study of augmentations: what is varied, and how every encoder is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from cytolake.benchmark.split import SplitBy
from cytolake.models.augment.knobs import KNOBS

MASK_RATIO = "mask_ratio"
"""A knob of the masked autoencoder alone; its strength is the ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What is varied, and how every encoder is evaluated."""

    objectives: tuple[str, ...] = ("mae", "simclr", "vicreg")
    """Self-supervised objectives, as `pretrain.objective.name`."""
    knobs: tuple[str, ...] = ("crop_scale", "gamma")
    """Knobs of `cytolake.models.augment.knobs.KNOBS`, varied one at a time on the recipe's augmentations."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Three or more, increasing, from 0 (off) to 1."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    label: str = "perturbation"
    """Column of `wells` whose classes are predicted."""
    split: SplitBy = "plate"
    split_seeds: tuple[int, ...] = (0, 1)
    """Splits; their test parts are counted in one confusion matrix."""
    nuisances: tuple[str, ...] = ("plate", "batch")
    """Further columns of `wells` that clusters are compared with."""
    block: int = -1
    """Block whose mean pooling is evaluated, -1 = last: one and the same in all trials."""
    crops: int = 1500
    """Crops that every encoder is evaluated on, sampled once."""
    regularisation: float = 0.01
    """Inverse strength of the probes' penalty."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains inside its trial, which is fastest for small encoders."""
    concurrent: int = 0
    """Trainings at the same time; 0 means as many as the cluster has CPUs or GPUs for."""
    level: float = 0.05
    """False discovery rate of effects on classes."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.knobs) - set(KNOBS) - {MASK_RATIO})
        if unknown or not self.knobs:
            raise ValueError(f"study.knobs has {', '.join(unknown) or 'none'}, expected some of {', '.join(KNOBS)}.")
        if len(self.strengths) < 3 or list(self.strengths) != sorted(set(self.strengths)):
            raise ValueError(f"study.strengths is {self.strengths}, expected three or more, increasing.")
        if self.strengths[0] < 0 or self.strengths[-1] > 1:
            raise ValueError(f"study.strengths is {self.strengths}, expected numbers from 0 to 1.")
        for name in ("objectives", "seeds", "split_seeds"):
            if not getattr(self, name):
                raise ValueError(f"study.{name} is empty, expected one or more.")
