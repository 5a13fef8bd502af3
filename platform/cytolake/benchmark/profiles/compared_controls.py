"""Controls that treated wells can be compared with: those that the alignment was not fitted on.

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
    """Profiles in which wells without an effect are like these controls."""

    vectors: Floats
    """(W, D) of all wells, aligned on the other controls."""
    is_control: NDArray[np.bool_]
    """(W,) the controls to compare with."""
    is_held_out: bool
    """Half of the controls, which the alignment has not seen; else all, for nothing was aligned."""
    reason: str = ""
    """Why there are none."""

    def checked(self) -> ComparedControls:
        """Itself.

        Raises:
            ValueError: There are no controls that wells can be compared with.
        """
        if self.reason:
            raise ValueError(self.reason)
        return self


def compared_controls(
    profiles_WD: Floats, wells: Wells, variant: Variant, config: ProfileBenchmarkConfig, *, is_aligned: bool = False
) -> ComparedControls:
    """Align on half of the controls of each plate or batch, as `config.align_by` says, to compare with the other half.

    Args:
        profiles_WD: (W, D) not aligned.
        wells: With plates, batches and controls.
        variant: How to align.
        config: Whose controls align a well, and the seed of the choice.
        is_aligned: The profiles were aligned when they were written, on the controls that they would be compared with.
    """
    nothing = np.zeros(len(profiles_WD), np.bool_)
    if is_aligned:
        return ComparedControls(
            profiles_WD, nothing, False,
            "the representation was aligned on these controls when it was written, so wells without an effect differ "
            "from them too. Score the representation that it was made of, with the alignment as a setting.",
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
