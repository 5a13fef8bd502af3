"""Holds out controls from the fit of an alignment, so that aligned vectors can be compared with them.

An alignment puts the controls it is fitted on where it wants them: their mean and spread are exact, and those of all
other wells only nearly so. After `pca_cs` on 24 controls a plate and 64 features, every group of 6 wells without any
effect differs from those controls (energy distance, p up to 0.05), half of them retrieve each other before those
controls, and no probe finds the plate of those controls. Wells that the alignment has not seen are alike.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytolake.embed.alignment.checked_input import Batches, batch_codes, checked_controls

Flags = NDArray[np.bool_]


def hold_out_controls(is_control: Flags, batches: Batches, *, seed: int = 0) -> Flags:
    """Half of the controls of each batch at random, rounded down, as long as two remain to fit on.

    Args:
        is_control: (N,)
        batches: (N,) whose controls a row is aligned on.

    Returns:
        (N,) True for the controls to compare with; fit the alignment on the others.
    """
    names, codes = batch_codes(batches, len(is_control))
    flags = checked_controls(is_control, len(codes))
    held_out = np.zeros(len(codes), np.bool_)
    rng = np.random.default_rng(seed)
    for batch in range(len(names)):
        controls = np.flatnonzero(flags & (codes == batch))
        n = max(0, min(len(controls) // 2, len(controls) - 2))
        held_out[rng.choice(controls, n, replace=False)] = True
    return held_out
