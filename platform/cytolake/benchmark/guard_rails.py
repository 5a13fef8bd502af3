"""Guard rails: checks of a representation that a benchmark's score depends on.

- Batch leakage: prediction of the plate or batch of a well from its vector.
- False positives: share of control wells that a test calls, compared with its level.
- Dose response: correlation of a compound's distance from the controls with its concentration.

Confounding of labels with positions is in `confounding`.

Shapes: N wells, D features, K batches, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from cytolake.benchmark.linear_probe import linear_probe
from cytolake.benchmark.split import hold_out_wells
from cytolake.statistics.balanced_accuracy import WellCounts, balanced_accuracy
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import Interval, Share, mean_of_splits, share_of
from cytolake.statistics.p_values import cauchy_combination, permutation_p_value
from cytolake.statistics.random_subsets import MIN_PLACEMENTS, seeded_generator

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Vectors = NDArray[np.generic]

TIE = 1e-9
WELLS_AT_ONCE = 1024

DOSE_SCHEMA = pa.schema(
    [
        pa.field("compound", pa.string(), nullable=False),
        pa.field("spearman", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("q_value", pa.float64()),
        pa.field("n_wells", pa.int64(), nullable=False),
        pa.field("n_doses", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class BatchLeakage:
    """Prediction of the batch of held-out wells."""

    balanced_accuracy: Interval
    """Mean over splits; the 95 % interval is for other wells of the same batches, with NaN ends for a single split."""
    chance: float
    """1 / K, the score of guessing."""
    p_value: float
    """From batches permuted among the held-out wells; p-values of the splits combined (Cauchy)."""
    n_wells: int
    n_batches: int
    dropped: tuple[str, ...]
    """Batches of one well, which cannot be in both parts."""


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """Share of control wells that a test calls."""

    rate: Share
    """Wells called among those tested: p up to alpha."""
    discovered: Share
    """Wells called after adjustment for their number: q (Benjamini-Hochberg) up to alpha."""
    alpha: float
    """Level of the test, and the expected rate without plate effects."""
    p_values: Floats
    """p-values of the tested wells, in the order of `names`."""
    names: tuple[str, ...]
    """Row numbers of the tested wells."""
    n_untested: int
    """Wells with too few controls to compare with."""


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """Correlation of distance from the controls with dose."""

    table: pa.Table
    """`DOSE_SCHEMA`, sorted by compound; empty where undefined, and `reason` then says why."""
    increasing: Share
    """Compounds with p up to alpha among those tested."""
    discovered: Share
    """The same with q (Benjamini-Hochberg over the compounds) up to alpha."""
    median_spearman: float
    """Median over the tested compounds; NaN without one."""


def batch_leakage(
    vectors: Vectors,
    batches: Sequence[str],
    *,
    is_control: Flags | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    held_out_share: float = 0.25,
    regularisation: float = 0.1,
    n_draws: int = 999,
) -> BatchLeakage:
    """Predict the batch of held-out wells with a linear probe.

    The statistic of the p-value is the mean predicted probability of a held-out well's own batch, with equal weight of
    each batch; its null distribution permutes the batches of the held-out wells. Probabilities have no ties, unlike
    accuracies of few wells, so the test of one split is exact.

    Where batches hold different perturbations, differences between perturbations predict the batch: give `is_control`
    to use the controls alone.

    Args:
        vectors: (N, D) of wells, not of crops: crops of one well in both parts would be recognised by their well. They
            must not be aligned on these wells, or no batch can be predicted: `embed.alignment.held_out_controls`.
        batches: (N,) plate or batch of each well.
        is_control: (N,) wells that are used; all where None.
        seeds: One split of each batch's wells for each seed.
        held_out_share: Share of each batch's wells in the test part.
        regularisation: Inverse strength C of the probe's penalty.
        n_draws: Permutations of each split.

    Raises:
        ValueError: Arguments of different lengths, a vector that is not finite, or fewer than two batches of two wells.
    """
    matrix, flags = _checked(vectors, batches, is_control)
    chosen = [i for i in range(len(matrix)) if is_control is None or flags[i]]
    names, of_well, counts = np.unique([str(batches[i]) for i in chosen], return_inverse=True, return_counts=True)
    keep = counts[of_well] > 1
    used = [i for i, count in enumerate(counts.tolist()) if count > 1]
    if len(used) < 2:
        raise ValueError(
            f"{len(used)} batches have 2 wells or more ({', '.join(names[used].tolist()) or 'none'}), expected at "
            "least 2. Give plates as batches, or all wells where controls are few."
        )
    rows = np.asarray(chosen, np.intp)[keep]
    wells, label = matrix[rows].astype(np.float32), np.searchsorted(used, of_well[keep])
    ids = [str(row) for row in rows.tolist()]
    scores, p_values, is_tested = [], [], np.zeros(len(label), bool)
    for split in hold_out_wells(ids, [names[used[i]] for i in label.tolist()], held_out_share, seeds):
        probe = linear_probe(wells[~split.is_test], label[~split.is_test], regularisation=regularisation)
        logits = probe.logits(wells[split.is_test])
        correct, total = np.zeros(len(label)), split.is_test.astype(np.float64)
        correct[split.is_test] = probe.classes[logits.argmax(axis=1)] == label[split.is_test]
        scores.append(balanced_accuracy(WellCounts(correct, total), label))
        is_tested |= split.is_test
        rng = seeded_generator(split.seed, "batch leakage")
        p_values.append(_permuted_batches(logits, np.searchsorted(probe.classes, label[split.is_test]), n_draws, rng))
    dropped = tuple(name for i, name in enumerate(names.tolist()) if i not in used)
    return BatchLeakage(
        mean_of_splits(np.asarray(scores), held_out_share, int(is_tested.sum())),
        1 / len(used),
        cauchy_combination([min(p, n_draws / (n_draws + 1)) for p in p_values]),
        len(label),
        len(used),
        dropped,
    )


def false_positives_of_wells(
    vectors: Vectors, plates: Sequence[str], is_control: Flags, *, alpha: float = 0.05
) -> FalsePositives:
    """Test for each control well whether it is farther out than the control wells of all other plates.

    The well joins the controls of the other plates, and p is the share of these that lie as far from their common mean
    or farther. Without differences between plates p is exact, and alpha of the wells are called; all wells of a plate
    that is not aligned are called.

    Args:
        vectors: (N, D) of wells, aligned as for the benchmark.
        plates: (N,)
        is_control: (N,)
        alpha: Level of the test.

    Raises:
        ValueError: Arguments of different lengths, a control vector that is not finite, or no plate with 1 / alpha
            control wells on others.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected between 0 and 1.")
    matrix, flags = _checked(vectors, plates, is_control)
    controls = _control_rows(flags)
    wells = matrix[controls]
    wells = wells - wells.mean(axis=0)
    square_N = np.square(wells).sum(axis=1)
    plate = np.unique(np.asarray([str(plates[i]) for i in controls]), return_inverse=True)[1]
    p_values = np.full(len(wells), np.nan)
    for number in range(int(plate.max()) + 1):
        others = np.flatnonzero(plate != number)
        n_all = len(others) + 1
        if n_all * alpha < 1:  # no p-value can be as low as alpha
            continue
        total_D = wells[others].sum(axis=0)
        own = np.flatnonzero(plate == number)
        for start in range(0, len(own), WELLS_AT_ONCE):
            here = own[start : start + WELLS_AT_ONCE]
            # Squared distances to the mean (total + x) / n, without the term that is the same for all.
            middle_BD = (total_D + wells[here]) / n_all
            others_BN = square_N[others] - 2 * middle_BD @ wells[others].T
            self_B = square_N[here] - 2 * np.einsum("bd,bd->b", middle_BD, wells[here])
            tie = TIE * max(1e-300, float(square_N.max()))
            p_values[here] = (1 + (others_BN >= self_B[:, None] - tie).sum(axis=1)) / n_all
    tested = np.isfinite(p_values)
    if not tested.any():
        raise ValueError(
            f"{len(wells)} control wells on {int(plate.max()) + 1} plates: no plate has {math.ceil(1 / alpha) - 1} "
            "control wells on others, expected that many to test a well at alpha. Add plates, or raise alpha."
        )
    called = int((p_values[tested] <= alpha + TIE).sum())
    names = tuple(str(row) for row in controls[tested].tolist())
    discovered = int((benjamini_hochberg(p_values[tested]) <= alpha + TIE).sum())
    n_tested = int(tested.sum())
    return FalsePositives(
        share_of(called, n_tested),
        share_of(discovered, n_tested),
        alpha,
        p_values[tested],
        names,
        int((~tested).sum()),
    )


def dose_response(
    vectors: Vectors,
    compounds: Sequence[str],
    doses: Sequence[float],
    batches: Sequence[str],
    is_control: Flags,
    *,
    n_draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
) -> DoseResponse:
    """Spearman correlation of dose and distance from the controls, for each compound, with a permutation p-value.

    The distance is that to the mean of the control wells of the well's own batch. p is one-sided: the share of random
    orders of the compound's wells in each batch with as high a correlation or a higher one. Distances may differ
    between batches because of the batch, so doses that differ between batches only are no evidence.

    Args:
        vectors: (N, D) of wells.
        compounds: (N,); those of control wells are ignored.
        doses: (N,) in one unit for each compound, such as uM; those of control wells are ignored.
        batches: (N,)
        is_control: (N,)
        n_draws: Number of random orders.
        alpha: Level of `increasing`.
        seed: Seed of the orders.

    Returns:
        The correlation is empty for fewer than three doses, or where all distances are equal; the p-value also where
        the doses within batches have fewer than 20 different orders.

    Raises:
        ValueError: Arguments of different lengths, a batch without controls, a vector that is not finite, or a dose
            that is no finite number.
    """
    matrix, flags = _checked(vectors, batches, is_control)
    if len(compounds) != len(matrix) or len(doses) != len(matrix):
        raise ValueError(
            f"{len(matrix)} vectors, {len(compounds)} compounds and {len(doses)} doses, expected as many of each."
        )
    dose_N, batch = np.asarray(doses, np.float64), np.asarray([str(b) for b in batches])
    treated = np.flatnonzero(~flags)
    for i in treated.tolist():
        if not math.isfinite(dose_N[i]):
            raise ValueError(
                f"compound {compounds[i]}, row {i}: dose {dose_N[i]}, expected a finite number. Complete the plate map."
            )
    distance_N = np.full(len(matrix), np.nan)
    for name in np.unique(batch[treated]).tolist():
        here = batch == name
        if not (here & flags).any():
            raise ValueError(
                f"batch {name}: no control well, expected at least 1 to measure distances from. Mark the negative "
                "controls in the plate map, or leave the batch out."
            )
        distance_N[here] = np.linalg.norm(matrix[here] - matrix[here & flags].mean(axis=0), axis=1)
    rows_of: dict[str, list[int]] = {}
    for i in treated.tolist():
        rows_of.setdefault(str(compounds[i]), []).append(i)
    table_rows: list[dict[str, object]] = []
    for compound in sorted(rows_of):
        dose, distance = dose_N[rows_of[compound]], distance_N[rows_of[compound]]
        n_doses = len(np.unique(dose))
        row: dict[str, object] = {"compound": compound, "n_wells": len(dose), "n_doses": n_doses, "reason": ""}
        if n_doses < 3:
            row["reason"] = f"{n_doses} doses, expected at least 3"
        elif np.ptp(distance) <= TIE * max(float(distance.max()), 1e-300):
            row["reason"] = "all wells are as far from the controls"
        else:
            of_batch = np.unique(batch[rows_of[compound]], return_inverse=True)[1]
            rng = seeded_generator(seed, "dose response", compound)
            row["spearman"], p_value = _spearman_test(dose, distance, of_batch, n_draws, rng)
            if p_value is None:
                row["reason"] = f"fewer than {MIN_PLACEMENTS} orders of doses within batches"
            row["p_value"] = p_value
        table_rows.append(row)
    p_values = np.asarray([row.get("p_value") for row in table_rows], np.float64)
    q_values = benjamini_hochberg(p_values)
    tested = ~np.isnan(p_values)
    for row, q_value in zip(table_rows, q_values.tolist(), strict=True):
        row["q_value"] = None if math.isnan(q_value) else q_value
    rhos = [row["spearman"] for row, is_one in zip(table_rows, tested.tolist(), strict=True) if is_one]
    increasing, discovered = (
        share_of(int((values[tested] <= alpha + TIE).sum()), int(tested.sum())) for values in (p_values, q_values)
    )
    median = float(np.median(np.asarray(rhos, np.float64))) if rhos else math.nan
    return DoseResponse(pa.Table.from_pylist(table_rows, schema=DOSE_SCHEMA), increasing, discovered, median)


def _spearman_test(
    dose: Floats, distance: Floats, batch: NDArray[np.intp], n_draws: int, rng: np.random.Generator
) -> tuple[float, float | None]:
    """Spearman's correlation and its p-value from orders within batches; None where there are too few orders."""
    x, y = stats.rankdata(dose), stats.rankdata(distance)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x @ x) * (y @ y)))
    rho = float(x @ y) / scale
    orders, drawn = 1, np.broadcast_to(y, (n_draws, len(y))).copy()
    for number in np.unique(batch).tolist():
        here = np.flatnonzero(batch == number)
        drawn[:, here] = rng.permuted(drawn[:, here], axis=1)
        # Number of different orders of the doses: n! over the orders of equal doses.
        of_dose = np.unique(x[here], return_counts=True)[1]
        orders *= math.factorial(len(here)) // math.prod(math.factorial(n) for n in of_dose.tolist())
    if orders < MIN_PLACEMENTS:
        return rho, None
    return rho, permutation_p_value(rho, drawn @ x / scale, TIE)


def _permuted_batches(
    logits: NDArray[np.floating], label: NDArray[np.intp], n_draws: int, rng: np.random.Generator
) -> float:
    """p-value of the mean probability of the own class, with equal weight of each class, over permuted labels."""
    wide = logits.astype(np.float64)
    probability = np.exp(wide - wide.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    drawn = np.concatenate([label[None, :], rng.permuted(np.broadcast_to(label, (n_draws, len(label))).copy(), axis=1)])
    weight = 1 / np.bincount(label, minlength=probability.shape[1]).clip(1)
    means = (probability[np.arange(len(label)), drawn] * weight[drawn]).sum(axis=1)
    return permutation_p_value(means[0], means[1:], TIE)


def _checked(vectors: Vectors, batches: Sequence[str], is_control: Flags | None) -> tuple[Floats, Flags]:
    matrix = np.asarray(vectors, np.float64)
    flags = np.zeros(len(batches), bool) if is_control is None else np.asarray(is_control, bool)
    if matrix.ndim != 2 or not len(matrix) == len(batches) == len(flags):
        raise ValueError(
            f"vectors of shape {matrix.shape}, {len(batches)} batches and {len(flags)} control marks, expected (N, D), "
            "N and N. Take all from the same wells."
        )
    if not np.isfinite(matrix).all():
        row = int(np.argwhere(~np.isfinite(matrix))[0, 0])
        raise ValueError(
            f"vector {row} of {len(matrix)} (batch {batches[row]}) is not finite. Leave out the wells that failed, or "
            "embed them again."
        )
    return matrix, np.asarray(flags, np.bool_)


def _control_rows(is_control: Flags) -> NDArray[np.intp]:
    controls = np.flatnonzero(is_control)
    if not len(controls):
        raise ValueError("no control well, expected at least 2. Mark the negative controls in the plate map.")
    return controls
