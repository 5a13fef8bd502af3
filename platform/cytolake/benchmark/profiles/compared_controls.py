"""Controls for comparisons with treated wells: controls that the alignment was not fitted on.

Shapes: W wells, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.wells import Wells
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.held_out_controls import hold_out_controls
from cytolake.embed.alignment.variants import AlignmentConfig, Variant

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ComparedControls:
    """Profiles in which wells without an effect have the distribution of these controls."""

    vectors: Floats
    """(W, D) of all wells, aligned on the other controls."""
    is_control: NDArray[np.bool_]
    """(W,) the controls to compare with."""
    is_held_out: bool
    """True: half of the controls, which the alignment was not fitted on. False: all of them, without an alignment."""
    reason: str = ""
    """Why there are no such controls; empty where there are."""

    @property
    def description(self) -> str:
        """Number and kind of the controls, for the details of a score."""
        n = int(self.is_control.sum())
        return f"{n} that the alignment was not fitted on" if self.is_held_out else f"all {n}"

    def checked(self) -> ComparedControls:
        """The same object.

        Raises:
            ValueError: There are no controls to compare with.
        """
        if self.reason:
            raise ValueError(self.reason)
        return self


def compared_controls(
    profiles_WD: Floats, wells: Wells, variant: Variant, config: ProfileBenchmarkConfig, *, is_aligned: bool = False
) -> ComparedControls:
    """Align on half of the controls of each plate or batch (`config.align_by`), for comparisons with the other half.

    Args:
        profiles_WD: (W, D) not aligned.
        wells: Wells with plates, batches and controls.
        config: Unit of the alignment, and seed of the choice of controls.
        is_aligned: Whether the profiles were already aligned on their controls when they were stored.
    """
    nothing = np.zeros(len(profiles_WD), np.bool_)
    if is_aligned:
        return ComparedControls(
            profiles_WD, nothing, False,
            "the representation was aligned on these controls when it was stored, so wells without an effect differ "
            "from them too. Score the representation that it was made from, with the alignment as a setting.",
        )  # fmt: skip
    if variant == "none":
        return ComparedControls(profiles_WD, wells.is_control, False)
    groups = wells.plate if config.align_by == "plate" else wells.batch
    held_out = hold_out_controls(wells.is_control, groups, seed=config.seed)
    if not held_out.any():
        return ComparedControls(
            profiles_WD, nothing, True,
            f"no {config.align_by} has 3 controls: 2 to align on and 1 to compare with. Mark more negative controls in "
            "the plate map, or score with alignments=none.",
        )  # fmt: skip
    settings = AlignmentConfig(variant=variant, missing_controls=config.missing_controls)
    try:
        fitted = fit_alignment(profiles_WD, groups, wells.is_control & ~held_out, settings)
    except ValueError as error:
        return ComparedControls(
            profiles_WD, nothing, True, f"half of the controls are too few for the alignment: {error}"
        )
    return ComparedControls(fitted.apply(profiles_WD, groups), held_out, True)
