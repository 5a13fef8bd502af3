"""Post-processing of an embedding before scoring: none, or alignment of each batch to its controls.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.screen import Codes, Screen
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.variants import AlignmentConfig, Variant

Vectors = NDArray[np.float32]
Alignment = Callable[[Vectors, Codes, NDArray[np.bool_]], Vectors]
"""Interface of a further alignment: (N, D) vectors, (N,) batches, (N,) is control -> (N, D)."""

PUBLISHED_NAMES: dict[str, Variant] = {
    "centred": "centre", "centre_scaled": "centre_scale", "tvn": "tvn_efaar_v1",
}  # fmt: skip
"""Names of the three published methods; the published `tvn` does not equalise batch means, `tvn_vcb` does."""
_VARIANTS: dict[str, Variant] = {**PUBLISHED_NAMES, **{name: name for name in get_args(Variant)}}


def post_process(
    screen: Screen,
    vectors: Vectors,
    method: str,
    alignments: Mapping[str, Alignment] | None = None,
    *,
    is_fitted: NDArray[np.bool_] | None = None,
) -> Vectors:
    """(N, D) vectors after one of `PUBLISHED_NAMES`, a variant of `embed.alignment`, or an alignment of the caller.

    Args:
        screen: Screen with batches and controls.
        vectors: (N, D)
        is_fitted: (N,) controls to align on; all where None.

    Raises:
        ValueError: An unknown method, a batch without enough controls, or an alignment that returns another number of
            rows or numbers that are not finite.
    """
    check_method(method, alignments)
    aligned: NDArray[np.floating]
    is_control = screen.is_control if is_fitted is None else is_fitted
    if alignments and method in alignments:
        aligned = np.asarray(alignments[method](vectors, screen.batch_of_row, is_control))
    elif method == "none":
        return vectors
    else:
        variant = _VARIANTS[method]
        config = AlignmentConfig(variant=variant, min_controls=1 if variant == "centre" else 2)
        batches = np.asarray(screen.batches)[screen.batch_of_row]
        aligned = fit_alignment(vectors, batches, is_control, config).apply(vectors, batches)
    if aligned.ndim != 2 or len(aligned) != len(vectors) or not np.isfinite(aligned).all():
        raise ValueError(
            f"post-processing {method}: of {vectors.shape} vectors it made {aligned.shape}, "
            f"{int((~np.isfinite(aligned)).sum())} numbers not finite. Expected a finite vector for each row."
        )
    return aligned.astype(np.float32)


def check_method(method: str, alignments: Mapping[str, Alignment] | None = None) -> None:
    """Raise ValueError unless the name is one of a post-processing."""
    known = dict.fromkeys(("none", *_VARIANTS, *(alignments or {})))
    if method not in known:
        raise ValueError(
            f"post-processing {method!r} is unknown, expected one of {', '.join(known)}. Give your own as "
            "alignments={'name': function}."
        )
