"""Split of a screen with whole batches and whole perturbations held out.

    train   seen batches, seen perturbations
    test1   unseen batches, seen perturbations: recognition of a perturbation in another batch
    test2   unseen batches, unseen perturbations: generalisation to new biology

Unseen perturbations in seen batches are in no part. Controls of a part's batches belong to the part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytolake.benchmark.transcriptomics.screen import CONTROL, Codes, Screen

TRAIN_SHARE = 0.7  # of the batches, and of the perturbations; the published protocol's


@dataclass(frozen=True, slots=True)
class PerturbationSplit:
    """Rows of each part, ascending, controls included."""

    seed: int
    train: Codes
    test1: Codes
    test2: Codes
    train_batches: Codes
    """Ascending indices into `Screen.batches`; all others are unseen."""
    train_perturbations: Codes
    """Ascending indices into `Screen.perturbations`; all others are unseen."""


def split_screen(screen: Screen, seed: int, train_share: float = TRAIN_SHARE) -> PerturbationSplit:
    """Draw 70 % of the batches and 70 % of the perturbations, at least one and never all, by the seed.

    test1 has only perturbations with a row in train; a perturbation without a row in seen batches is in no part.

    Raises:
        ValueError: A single batch, a share outside 0..1, or a part without perturbed rows.

    Source: the split of Tx-Evaluation (Bendidi et al. 2024, arXiv 2410.13956), seed made explicit.
    """
    if not 0 < train_share < 1:
        raise ValueError(f"train_share is {train_share}, expected between 0 and 1.")
    if len(screen.batches) < 2:
        raise ValueError(
            f"the screen has 1 batch ({screen.batches[0]}), expected 2 or more: one to train on, one to test on. Name "
            "another column in --batch, or leave out the tasks that hold batches out."
        )
    rng = np.random.default_rng((seed, 0))
    train_batches = _draw(rng, len(screen.batches), train_share)
    train_perturbations = _draw(rng, len(screen.perturbations), train_share)
    in_batches = np.isin(screen.batch_of_row, train_batches)
    in_perturbations = np.isin(screen.perturbation_of_row, train_perturbations)
    is_control = screen.perturbation_of_row == CONTROL
    is_train = in_batches & in_perturbations
    present = np.unique(screen.perturbation_of_row[is_train])
    is_test1 = ~in_batches & np.isin(screen.perturbation_of_row, present)
    is_test2 = ~in_batches & ~in_perturbations & ~is_control
    for name, part in (("train", is_train), ("test1", is_test1), ("test2", is_test2)):
        if not part.any():
            held_out = ", ".join(b for i, b in enumerate(screen.batches) if i not in train_batches)
            raise ValueError(
                f"seed {seed}: with the batches {held_out} held out, {name} has no perturbed row. Expected "
                "perturbations that are repeated over batches: use another seed, or another --batch."
            )
    return PerturbationSplit(
        seed=seed,
        train=np.flatnonzero(is_train | (is_control & in_batches)),
        test1=np.flatnonzero(is_test1 | (is_control & ~in_batches)),
        test2=np.flatnonzero(is_test2 | (is_control & ~in_batches)),
        train_batches=train_batches,
        train_perturbations=train_perturbations,
    )


def downsample(rows: Codes, strata: Codes, size: int, seed: int) -> Codes:
    """At most `size` of the rows, ascending, from each stratum by its share (to within one row).

    Args:
        rows: (n,) any numbers.
        strata: (n,) stratum of each, such as its batch.
        size: Most rows.
        seed: Seed of the draw.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more.")
    if len(rows) <= size:
        return np.sort(rows)
    rng = np.random.default_rng((seed, 2))
    _, of_row, counts = np.unique(strata, return_inverse=True, return_counts=True)
    exact = counts * (size / len(rows))
    sizes = np.floor(exact).astype(np.intp)
    missing = size - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:missing]] += 1
    order = rng.permutation(len(rows))
    order = order[np.argsort(of_row[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(rows)) - np.repeat(starts, counts)
    return np.sort(rows[order[place < np.repeat(sizes, counts)]])


def _draw(rng: np.random.Generator, n: int, share: float) -> Codes:
    n_train = min(max(1, round(share * n)), n - 1)
    return np.sort(rng.permutation(n)[:n_train])
