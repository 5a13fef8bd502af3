"""Checks of the tests of well profiles: consistency, magnitude, activity, mechanism, batch leakage, dose response.

Simulated screens have 3 plates that differ, with control wells and perturbations of 6 wells, 2 a plate, in 12 features.
Each test is taken as the benchmark of profiles runs it, without alignment and after `pca_cs`, which is fitted on half
of the controls where the other half is compared with. Without an effect, all treated wells still share one shift where
a test is not about controls.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from inputs.null_checks import NullCheck, share_below_level
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from cytolake.benchmark.guard_rails import batch_leakage, dose_response, false_positives_of_wells
from cytolake.benchmark.perturbation_signal.consistency_magnitude import Signal, SignalConfig, consistency, magnitude
from cytolake.benchmark.retrieval.phenotypic import (
    NullConfig,
    phenotypic_activity,
    phenotypic_consistency,
    with_permuted_activity,
    with_permuted_labels,
)
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.held_out_controls import hold_out_controls
from cytolake.embed.alignment.variants import AlignmentConfig

Floats = NDArray[np.float64]
PValues = list[float]
Variant = Literal["none", "pca_cs"]
N_PLATES, N_FEATURES, N_ROWS = 3, 12, 6
N_DRAWS = 999
SMALL = NullConfig(null_size=999, bootstrap_draws=1)
NAN = float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """Wells of one simulated screen."""

    vectors: Floats
    perturbations: list[str]
    plates: list[str]
    is_control: NDArray[np.bool_]

    @property
    def arguments(self) -> tuple[Floats, list[str], list[str], NDArray[np.bool_]]:
        """As the tests take them."""
        return self.vectors, self.perturbations, self.plates, self.is_control

    def aligned(self, variant: Variant) -> Screen:
        """Aligned on half of the controls, with the other half alone."""
        if variant == "none":
            return self
        held_out = hold_out_controls(self.is_control, self.plates)
        fitted = fit_alignment(self.vectors, self.plates, self.is_control & ~held_out, AlignmentConfig(variant=variant))
        rows = np.flatnonzero(held_out | ~self.is_control)
        return Screen(
            fitted.apply(self.vectors, self.plates)[rows],
            [self.perturbations[i] for i in rows],
            [self.plates[i] for i in rows],
            held_out[rows],
        )


def screen(
    rng: np.random.Generator,
    n_inert: int,
    n_active: int = 0,
    n_controls: int = 60,
    *,
    strength: float = 0.0,
    shared_shift: float = 0.0,
) -> Screen:
    """Perturbations without an effect, and with one in a direction of its own."""
    names = [f"active {i:03d}" for i in range(n_active)] + [f"inert {i:03d}" for i in range(n_inert)]
    labels = [name for name in names for _ in range(N_ROWS)] + ["control"] * n_controls
    plate = np.arange(len(labels)) % N_PLATES
    is_control = np.asarray([label == "control" for label in labels])
    vectors = rng.standard_normal((len(labels), N_FEATURES)) + 2 * rng.standard_normal((N_PLATES, N_FEATURES))[plate]
    vectors[~is_control, 0] += shared_shift
    directions = rng.standard_normal((n_active, N_FEATURES))
    directions *= strength / np.linalg.norm(directions, axis=1, keepdims=True)
    vectors[: n_active * N_ROWS] += np.repeat(directions, N_ROWS, axis=0)
    return Screen(vectors, labels, [f"plate {p}" for p in plate], is_control)


def checks() -> list[NullCheck]:
    """All of them, some two minutes on one core."""
    return [each for make in (_signal_checks, _retrieval_checks, _guard_rail_checks) for each in make()]


def _signal_checks() -> Iterator[NullCheck]:
    config = SignalConfig(n_draws=N_DRAWS)

    def p_values(measure: Callable[..., Signal], wells: Screen, only: str = "") -> PValues:
        rows = measure(*wells.arguments, config).table.to_pylist()
        return [row["p_value"] for row in rows if row["perturbation"].startswith(only)]

    def found(
        measure: Callable[..., Signal], efaar: Callable[[Screen], PValues], strength: float
    ) -> tuple[float, float]:
        ours, theirs = [], []
        for seed in range(40):
            wells = screen(np.random.default_rng([1, seed]), 40, 20, strength=strength)
            wells = Screen(wells.vectors - _plate_means(wells), *wells.arguments[1:])
            ours += p_values(measure, wells, "active")
            theirs += efaar(wells)
        return share_below_level(ours), share_below_level(theirs)

    variants: tuple[Variant, ...] = ("none", "pca_cs")
    for variant in variants:
        for n_controls, share in ((60, "30"), (210, "60")):
            shifted = [
                screen(np.random.default_rng([seed, n_controls]), 140 // N_ROWS, 0, n_controls, shared_shift=3.0)
                for seed in range(90)
            ]
            null = [p for wells in shifted for p in p_values(consistency, wells.aligned(variant))]
            name = f"consistency, {share} % controls, {variant}"
            if variant == "none" and share == "30":
                power, reference = found(consistency, _efaar_consistency, 2.0)
                yield NullCheck(
                    name=name, share_below_05=share_below_level(null), n_simulations=len(null), power=power,
                    reference_power=reference, reference="efaar_benchmarking, effects of 2 sd, 40 null perturbations",
                )  # fmt: skip
            else:
                yield NullCheck(name=name, share_below_05=share_below_level(null), n_simulations=len(null))
    for variant in variants:
        # Magnitudes of one screen share its controls: few of each.
        screens = (screen(np.random.default_rng([2, seed]), 3).aligned(variant) for seed in range(700))
        null = [p for wells in screens for p in p_values(magnitude, wells)]
        power, reference = found(magnitude, _efaar_magnitude, 1.5) if variant == "none" else (None, None)
        yield NullCheck(
            name=f"magnitude, {variant}", share_below_05=share_below_level(null), n_simulations=len(null), power=power,
            reference_power=reference, reference="efaar_benchmarking, effects of 1.5 sd, 40 null perturbations",
        )  # fmt: skip


def _retrieval_checks() -> Iterator[NullCheck]:
    variants: tuple[Variant, ...] = ("none", "pca_cs")
    for variant in variants:
        null = [
            p for seed in range(700)
            for p in _activity_p_values(screen(np.random.default_rng([3, seed]), 3).aligned(variant))
        ]  # fmt: skip
        ours, theirs = [], []
        for seed in range(20 if variant == "none" else 0):
            wells = screen(np.random.default_rng([4, seed]), 0, 30, strength=2.0)
            wells = Screen(wells.vectors - _plate_means(wells), *wells.arguments[1:])
            ours += _activity_p_values(wells)
            theirs += _copairs(
                wells.vectors, _activity_table(wells), ["perturbation", "own"], ["plate"], ["perturbation", "own"]
            )
        yield NullCheck(
            name=f"activity, {variant}", share_below_05=share_below_level(null), n_simulations=len(null),
            power=share_below_level(ours) if ours else None,
            reference_power=share_below_level(theirs) if ours else None, reference="copairs, effects of 2 sd",
        )  # fmt: skip
    null, ours, theirs = [], [], []
    for seed in range(230):
        null += _mechanism_p_values(*_treatments(np.random.default_rng([5, seed]), 0.0))
    for seed in range(60):
        vectors, labels = _treatments(np.random.default_rng([6, seed]), 1.2)
        ours += _mechanism_p_values(vectors, labels)
        table = {"perturbation": [str(i) for i in range(len(labels))], "moa": labels}
        theirs += _copairs(vectors, table, ["moa"], ["perturbation"], ["moa", "perturbation"])
    yield NullCheck(
        name="mechanism", share_below_05=share_below_level(null), n_simulations=len(null),
        power=share_below_level(ours), reference_power=share_below_level(theirs),
        reference="copairs, effects of 1.2 sd",
    )  # fmt: skip


def _guard_rail_checks() -> Iterator[NullCheck]:
    def leak(rng: np.random.Generator, shift: float) -> tuple[Floats, list[str]]:
        plate = np.arange(48) % 3
        return rng.standard_normal((48, 6)) + shift * rng.standard_normal((3, 6))[plate], [f"P{p}" for p in plate]

    def p_value(wells: tuple[Floats, list[str]]) -> float:
        return batch_leakage(*wells, seeds=(0, 1, 2), n_draws=N_DRAWS).p_value

    null = [p_value(leak(np.random.default_rng([7, seed]), 0.0)) for seed in range(2000)]
    shifted = [leak(np.random.default_rng([8, seed]), 0.8) for seed in range(150)]
    yield NullCheck(
        name="batch leakage", share_below_05=share_below_level(null), n_simulations=len(null),
        power=share_below_level([p_value(wells) for wells in shifted]),
        reference_power=share_below_level([_classifier_two_sample_test(*wells) for wells in shifted]),
        reference="scikit-learn and scipy.stats.binomtest: classifier two-sample test, plates 0.8 sd apart",
    )  # fmt: skip
    for confounded in (False, True):
        null = []
        for seed in range(70):
            arguments = _doses(np.random.default_rng([10, seed]), 30, 0.0, confounded)
            null += dose_response(*arguments, n_draws=N_DRAWS, seed=seed).table["p_value"].to_pylist()
        ours, theirs = [], []
        for seed in range(0 if confounded else 30):
            arguments = _doses(np.random.default_rng([11, seed]), 30, 0.8, confounded)
            ours += dose_response(*arguments, n_draws=N_DRAWS, seed=seed).table["p_value"].to_pylist()
            theirs += _spearmans(*arguments)
        yield NullCheck(
            name="dose response" + (", doses tied to plates" if confounded else ""),
            share_below_05=share_below_level(null), n_simulations=len(null),
            power=share_below_level(ours) if ours else None,
            reference_power=share_below_level(theirs) if ours else None,
            reference="scipy.stats.spearmanr, one-sided, effects grow by 0.8 sd a dose",
        )  # fmt: skip
    null = []
    for seed in range(20):
        wells = screen(np.random.default_rng([12, seed]), 0, 0, 120)
        vectors = wells.vectors - _plate_means(wells)
        null += false_positives_of_wells(vectors, wells.plates, wells.is_control).p_values.tolist()
    yield NullCheck(name="false positives of wells", share_below_05=share_below_level(null), n_simulations=len(null))


def _plate_means(wells: Screen) -> Floats:
    """(N, D) mean of each well's plate: references know no plates."""
    plate = np.unique(wells.plates, return_inverse=True)[1]
    return np.stack([wells.vectors[plate == p].mean(axis=0) for p in range(plate.max() + 1)])[plate]


def _activity_p_values(wells: Screen) -> PValues:
    vectors, names, plates, is_control = wells.arguments
    table = pa.table({"perturbation": names, "plate": plates})
    found = phenotypic_activity(table, vectors, is_control, positives_differ=("plate",), null=SMALL)
    found = with_permuted_activity(found, vectors, names, plates, is_control, N_DRAWS, 0)
    return [p for p in found.groups["p_value"].to_pylist() if p is not None]


def _activity_table(wells: Screen) -> dict[str, list[Any]]:
    own = np.where(wells.is_control, np.arange(len(wells.is_control)), -1).tolist()
    return {"perturbation": wells.perturbations, "plate": wells.plates, "own": own}


def _treatments(rng: np.random.Generator, strength: float) -> tuple[Floats, list[str]]:
    """60 treatments of 10 mechanisms; those of one share a direction."""
    label = np.arange(60) // 6
    directions = rng.standard_normal((10, N_FEATURES))
    directions *= strength / np.linalg.norm(directions, axis=1, keepdims=True)
    return rng.standard_normal((60, N_FEATURES)) + directions[label], [f"mechanism {i}" for i in label]


def _mechanism_p_values(vectors: Floats, labels: list[str]) -> PValues:
    names = [str(i) for i in range(len(labels))]
    found = phenotypic_consistency(pa.table({"perturbation": names, "moa": labels}), vectors, null=SMALL)
    return list(with_permuted_labels(found, vectors, labels, names, N_DRAWS, 0).groups["p_value"].to_pylist())


def _doses(
    rng: np.random.Generator, n_compounds: int, slope: float, confounded: bool
) -> tuple[Floats, list[str], list[float], list[str], NDArray[np.bool_]]:
    """Compounds at 6 doses on 3 plates that differ in spread; confounded: high doses lie on plates of wide spread."""
    rows = []
    for compound in range(n_compounds):
        for plate in range(3):
            doses = (plate, plate + 1, plate + 2, plate + 3) if confounded else range(6)
            rows += [(f"compound {compound:02d}", float(dose), f"P{plate}", False) for dose in doses]
    rows += [("control", NAN, f"P{plate}", True) for plate in range(3) for _ in range(16)]
    compounds, doses, plates, is_control = (list(column) for column in zip(*rows, strict=True))
    spread = np.asarray([1 + 0.5 * int(plate[1]) for plate in plates]) if confounded else np.ones(len(rows))
    vectors = rng.standard_normal((len(rows), N_FEATURES)) * spread[:, None]
    effect = np.nan_to_num(np.asarray(doses)) * slope
    directions = rng.standard_normal((n_compounds + 1, N_FEATURES))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    of_row = [n_compounds if is_one else int(name[-2:]) for name, is_one in zip(compounds, is_control, strict=True)]
    return vectors + effect[:, None] * directions[of_row], compounds, doses, plates, np.asarray(is_control)


def _spearmans(
    vectors: Floats, compounds: list[str], doses: list[float], plates: list[str], is_control: NDArray[np.bool_]
) -> PValues:
    plate, name = np.asarray(plates), np.asarray(compounds)
    distance = np.zeros(len(vectors))
    for each in np.unique(plate):
        here = plate == each
        distance[here] = np.linalg.norm(vectors[here] - vectors[here & is_control].mean(axis=0), axis=1)
    return [
        float(stats.spearmanr(np.asarray(doses)[name == each], distance[name == each], alternative="greater").pvalue)
        for each in np.unique(name[~is_control])
    ]


def _classifier_two_sample_test(vectors: Floats, batches: list[str]) -> float:
    """Accuracy of a logistic regression on a quarter of the wells, against guessing (Lopez-Paz and Oquab 2017)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    train, test, of_train, of_test = train_test_split(
        vectors, batches, test_size=0.25, stratify=batches, random_state=0
    )
    correct = int((LogisticRegression(C=0.1).fit(train, of_train).predict(test) == np.asarray(of_test)).sum())
    return float(stats.binomtest(correct, len(of_test), 1 / len(set(batches)), alternative="greater").pvalue)


def _efaar_consistency(wells: Screen) -> PValues:
    metric = _efaar("pert_signal_consistency_metric")
    return _against_null(wells, metric) if metric else [NAN]


def _efaar_magnitude(wells: Screen) -> PValues:
    metric = _efaar("pert_signal_magnitude_metric")
    controls = wells.vectors[wells.is_control]
    if metric is None:
        return [NAN]
    return _against_null(wells, lambda rows, *null: metric(rows, controls, *null))


def _against_null(wells: Screen, metric: Callable[..., Any]) -> PValues:
    names = np.asarray(wells.perturbations)
    rows_of = {name: wells.vectors[names == name] for name in sorted(set(names[~wells.is_control]))}
    null = np.sort([metric(rows) for name, rows in rows_of.items() if name.startswith("inert")])
    return [float(metric(rows, null)[1]) for name, rows in rows_of.items() if name.startswith("active")]


def _efaar(name: str) -> Callable[..., Any] | None:
    """A function of efaar_benchmarking, with a stand-in for the one function of its optimal-transport library."""
    if find_spec("efaar_benchmarking") is None:
        return None

    class Distance:
        """geomloss.SamplesLoss("energy"): half of the energy distance."""

        def __init__(self, kind: str) -> None:
            self.kind = kind

        def __call__(self, x: Any, y: Any) -> Any:
            half = cdist(x, y).mean() - cdist(x, x).mean() / 2 - cdist(y, y).mean() / 2
            return np.asarray(half)

    if "geomloss" not in sys.modules and find_spec("geomloss") is None:
        geomloss: Any = types.ModuleType("geomloss")
        geomloss.SamplesLoss = Distance
        sys.modules["geomloss"] = geomloss
    from efaar_benchmarking import benchmarking  # type: ignore[import-not-found]

    function: Callable[..., Any] = getattr(benchmarking, name)
    return function


def _copairs(
    vectors: Floats, table: dict[str, list[Any]], same: list[str], differ: list[str], negatives_differ: list[str]
) -> PValues:
    if find_spec("copairs") is None:
        return [NAN]
    import pandas as pd
    from copairs import map as copairs_map  # type: ignore[import-not-found]

    frame = pd.DataFrame(table)
    rows = copairs_map.average_precision(
        frame, vectors, pos_sameby=same, pos_diffby=differ, neg_sameby=[], neg_diffby=negatives_differ,
        progress_bar=False,
    )  # fmt: skip
    rows = rows[rows["average_precision"].notna()]
    if "own" in rows:
        rows = rows[rows["own"] == -1]
    with tempfile.TemporaryDirectory() as folder:
        groups = copairs_map.mean_average_precision(
            rows, [same[0]], null_size=2000, threshold=0.05, seed=0, progress_bar=False, max_workers=1,
            cache_dir=folder,
        )  # fmt: skip
    return [float(p) for p in groups["p_value"]]
