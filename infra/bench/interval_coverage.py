"""How often 95 % intervals hold the truth when plates differ: probe, recall of relations, average precision.

Every simulation draws new plates of the same biology; each plate changes every class, or gene, a little. The truth is
the mean score over all simulations. An interval over wells of the same data is printed next to ours: it takes the wells
of one plate for independent. The figure is the largest distance of a coverage from .95; the bar is .03 (.92 to .98).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from inputs.plate_effects import candidate, plate_deviations
from numpy.typing import NDArray
from scipy import stats

from cytolake.benchmark.position_confounding import WellPlace
from cytolake.benchmark.profiles.compared_controls import ComparedControls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.gene_sets import GeneSets
from cytolake.benchmark.profiles.plate_jackknife import with_plate_intervals
from cytolake.benchmark.profiles.profile_input import BenchmarkInput
from cytolake.benchmark.profiles.tasks import TASKS
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.relations.relation_files import Relations

Numbers = NDArray[np.float64]
BAR = 0.03
PLATES = (4, 8, 16)
N_SIMULATIONS = 200
N_GENES, DIM, GENES_OF_PATHWAY, N_CONTROLS = 36, 16, 3, 6

Simulated = tuple[float, float, float, float, float]
"""Score, ends of the interval over plates, ends of the one over wells or classes."""


def probe(random: np.random.Generator, n_plates: int, means: Numbers) -> Simulated:
    """Balanced accuracy of held-out plates."""
    deviations = plate_deviations(random, (n_plates, *means.shape[:1], 3, means.shape[1]), 1.0)
    scores = candidate(means[None, :, None, :] + deviations).scores
    found = scores.interval()
    n_wells = scores.n_test
    half = stats.norm.ppf(0.975) * np.sqrt(found.value * (1 - found.value) / n_wells)
    return found.value, found.low, found.high, found.value - half, found.value + half


def profiles(task: str, metric: str) -> Callable[[np.random.Generator, int, Numbers], Simulated]:
    """A benchmark of well profiles."""

    def simulate(random: np.random.Generator, n_plates: int, means: Numbers) -> Simulated:
        rows = with_plate_intervals(task, TASKS[task], _input(random, n_plates, means))  # type: ignore[index]
        (row,) = [each for each in rows if each["metric"] == metric]
        low, high = row["details"]["over_classes"]
        return row["value"], row["ci_low"], row["ci_high"], low, high

    return simulate


def _input(random: np.random.Generator, n_plates: int, means: Numbers) -> BenchmarkInput:
    """One well of every gene on every plate, and controls."""
    genes = [*range(N_GENES), *([-1] * N_CONTROLS)]
    places = [(plate, gene) for plate in range(n_plates) for gene in genes]
    of_plate = random.normal(size=(n_plates, N_GENES + 1, DIM))
    of_plate[:, -1] = 0  # controls
    signal = np.vstack([means, np.zeros(DIM)])
    vectors = np.stack([signal[gene] + of_plate[plate, gene] for plate, gene in places])
    vectors += random.normal(size=vectors.shape)
    n = len(places)
    name = [f"gene{gene}" if gene >= 0 else "" for _, gene in places]
    plates = tuple(f"P{plate}" for plate, _ in places)
    wells = Wells(
        well_id=tuple(f"w{i}" for i in range(n)),
        plate=plates,
        batch=plates,
        perturbation=tuple(each or "DMSO" for each in name),
        gene=tuple(name),
        guide=("",) * n,
        compound=("",) * n,
        pathway=tuple(f"pathway{gene // GENES_OF_PATHWAY}" if gene >= 0 else "" for _, gene in places),
        dose=np.full(n, np.nan),
        is_control=np.asarray([gene < 0 for _, gene in places]),
        place=tuple(WellPlace(plate, None, None, plate) for plate in plates),
    )
    pairs = tuple(
        (f"gene{a}", f"gene{b}")
        for a in range(N_GENES)
        for b in range(a + 1, N_GENES)
        if a // GENES_OF_PATHWAY == b // GENES_OF_PATHWAY
    )
    config = ProfileBenchmarkConfig(draws=99)
    compared = ComparedControls(vectors, wells.is_control, False)
    return BenchmarkInput(
        vectors, wells, [Relations("pathway", pairs, len(pairs))], {}, GeneSets(), config, "none", compared
    )


def main() -> int:
    random = np.random.default_rng(0)
    classes = 0.7 * random.normal(size=(8, 20))
    pathways = np.repeat(random.normal(size=(N_GENES // GENES_OF_PATHWAY, DIM)), GENES_OF_PATHWAY, axis=0)
    genes = 0.45 * pathways + 0.35 * random.normal(size=(N_GENES, DIM))
    worst = 0.0
    for name, simulate, means in (
        ("probe, balanced accuracy", probe, classes),
        ("relation recall", profiles("relations", "recall_05_95"), genes),
        ("mechanism, average precision", profiles("mechanism", "mean_average_precision"), genes),
    ):
        for n_plates in PLATES:
            started = time.perf_counter()
            runs = [simulate(np.random.default_rng([n_plates, i]), n_plates, means) for i in range(N_SIMULATIONS)]
            value, low, high, well_low, well_high = np.asarray(runs, np.float64).T
            truth = value.mean()
            coverage = float(np.mean((low <= truth) & (truth <= high)))
            naive = float(np.mean((well_low <= truth) & (truth <= well_high)))
            worst = max(worst, abs(coverage - 0.95))
            half, seconds = np.mean(high - low) / 2, time.perf_counter() - started
            print(
                f"{name:30s} {n_plates:2d} plates: truth {truth:.3f}, coverage {coverage:.3f} over plates (half width "
                f"{half:.3f}), {naive:.3f} over wells or classes; {seconds:.0f} s",
                flush=True,
            )
    is_ok = worst <= BAR + 1e-9
    print(f"coverage: figure={worst:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
