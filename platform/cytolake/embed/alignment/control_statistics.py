"""Statistics of the negative controls for an alignment, collected chunk by chunk and merged over workers.

    statistics = ControlStatistics.for_config(config, n_features)
    for vectors, batches, is_control in chunks:
        statistics.add(vectors, batches, is_control)
    fitted = fit_from_statistics(statistics.merge(those_of_another_worker), config)

Merging is associative and in any order, up to rounding, and gives what one pass over all rows gives.

Shapes: N rows of a chunk, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from cytolake.embed.alignment.checked_input import (
    Batches,
    Floats,
    batch_codes,
    checked_controls,
    checked_vectors,
    rows_of_each,
)
from cytolake.embed.alignment.moments import Moments, merge_moments
from cytolake.embed.alignment.variants import ROBUST, AlignmentConfig


@dataclass(slots=True, eq=False)
class ControlStatistics:
    """Count, mean and scatter of the controls of each batch, in float64.

    Memory: 8 bytes times, for each batch, D (`full` false) or up to 2 D^2 (`full`; fewer controls than 2 D: their
    number times D); twice that with `keep_other_wells`.
    """

    n_features: int
    full: bool = True
    """Covariances between features too, not just the variance of each."""
    keep_other_wells: bool = False
    """Also statistics of wells that are no controls, for batches without controls."""
    controls: dict[str, Moments] = field(default_factory=dict)
    """Batch -> moments of its controls; batches without a control are not there."""
    other_wells: dict[str, Moments] = field(default_factory=dict)
    n_wells: dict[str, int] = field(default_factory=dict)
    """Batch -> rows seen, controls or not."""

    @staticmethod
    def for_config(config: AlignmentConfig, n_features: int) -> ControlStatistics:
        """Empty statistics that hold what `config` needs and no more.

        Raises:
            ValueError: The variant is a robust one: medians do not add up.
        """
        check_not_robust(config)
        keep = config.missing_controls == "all_wells" and config.each_batch_needs_controls
        return ControlStatistics(n_features, full=config.needs_scatter, keep_other_wells=keep)

    def add(self, vectors: ArrayLike, batches: Batches, is_control: ArrayLike) -> None:
        """Count a chunk of rows in.

        Args:
            vectors: (N, D) integers or floats.
            batches: (N,) batch of each row.
            is_control: (N,) True where the row is a negative control.

        Raises:
            ValueError: Wrong shapes or types, a row without a batch, or a row that is not finite. Nothing is counted.
        """
        vectors_ND = checked_vectors(vectors, self.n_features)
        names, codes_N = batch_codes(batches, len(vectors_ND))
        is_control_N = checked_controls(is_control, len(vectors_ND))
        for name, rows in zip(names, rows_of_each(codes_N, len(names)), strict=True):
            is_control_here = is_control_N[rows]
            self.n_wells[name] = self.n_wells.get(name, 0) + len(rows)
            _count_in(self.controls, name, vectors_ND[rows[is_control_here]].astype(np.float64), self.full)
            if self.keep_other_wells:
                _count_in(self.other_wells, name, vectors_ND[rows[~is_control_here]].astype(np.float64), self.full)

    def merge(self, other: ControlStatistics) -> ControlStatistics:
        """Statistics of the rows of both; neither is changed.

        Raises:
            ValueError: They were set up differently.
        """
        kinds = [(each.n_features, each.full, each.keep_other_wells) for each in (self, other)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"statistics with (n_features, full, keep_other_wells) = {kinds[0]} and {kinds[1]} cannot be merged, "
                "expected equal ones. Make both with ControlStatistics.for_config and the same config."
            )
        merged = ControlStatistics(*kinds[0])
        for ours, theirs, into in (
            (self.controls, other.controls, merged.controls),
            (self.other_wells, other.other_wells, merged.other_wells),
        ):
            for name in sorted(ours.keys() | theirs.keys()):
                into[name] = merge_moments([each[name] for each in (ours, theirs) if name in each])
        for name in sorted(self.n_wells.keys() | other.n_wells.keys()):
            merged.n_wells[name] = self.n_wells.get(name, 0) + other.n_wells.get(name, 0)
        return merged


def check_not_robust(config: AlignmentConfig) -> None:
    """Raise ValueError for a variant that statistics which add up cannot fit."""
    if config.variant in ROBUST:
        raise ValueError(
            f"alignment.variant {config.variant} takes medians, which need all control rows at once. Call "
            "fit_alignment with the control rows, or use centre_scale."
        )


def _count_in(into: dict[str, Moments], name: str, rows_ND: Floats, full: bool) -> None:
    if len(rows_ND):
        new = Moments.of_rows(rows_ND, full=full)
        into[name] = merge_moments([into[name], new]) if name in into else new
