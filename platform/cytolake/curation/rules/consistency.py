"""Rule `consistency`: keeps conditions whose replicate wells resemble each other more than random treated wells do."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.representations import find_representation
from cytolake.catalog.tables import Catalog
from cytolake.curation.consistency import align_to_controls, combined_p_value
from cytolake.curation.rules.contract import Candidates, Exclusions, Numbers, Rule, check_field
from cytolake.qc.verdicts import Progress
from cytolake.statistics.consistency import ConsistencyTest, consistency_tests
from cytolake.statistics.false_discovery import benjamini_hochberg


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyStep(Rule):
    """Keep conditions whose wells are more similar than random treated wells, under any of the representations.

    A well's profile is the mean of its kept crops, centred on the negative controls of the plate. Each condition is
    tested in each experiment; p-values of the experiments are combined. Controls stay. Details of an excluded crop hold
    the p-value and the q-value (Benjamini-Hochberg over the conditions). See `cytolake.statistics.consistency`.
    """

    rule: ClassVar[str] = "consistency"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representations: tuple[str, ...] = ("pixel_statistics",)
    """Ids, `champion` or `pixel_statistics`; a condition stays if it passes under any of them."""
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    condition: tuple[str, ...] = ("perturbation", "dose")
    """Columns that together define a condition within a screen."""
    experiment: str = "batch"
    """Unit within which wells are compared: plate or batch."""
    is_stratified: bool = True
    """Draw random wells from the plates of the condition's wells, the same number from each."""
    sphere: bool = True
    """Sphere profiles on the controls: directions in which controls vary count less."""
    n_draws: int = 10_000
    """Random sets of wells per experiment and number of wells; the smallest p-value is 1 / (1 + n_draws)."""
    alpha: float = 0.01
    """A condition stays if its p-value is below this; this share of the conditions without an effect stays too. The
    q-values bound their share among the conditions that stay."""

    def __post_init__(self) -> None:
        check_field(self, "representations", bool(self.representations), "one or more")
        check_field(self, "condition", bool(self.condition), "one column or more")
        check_field(self, "experiment", self.experiment in ("plate", "batch"), "plate or batch")
        check_field(self, "n_draws", self.n_draws >= 100, "100 or more")
        check_field(self, "alpha", 1 / (1 + self.n_draws) < self.alpha <= 1, "more than 1 / (1 + n_draws), at most 1")

    def resolved(self, catalog: Catalog, curation: str) -> ConsistencyStep:
        found = [
            find_representation(catalog, name, of=self.of, not_of=curation)["representation_id"]
            for name in self.representations
        ]
        return replace(self, representations=tuple(found))

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        candidates.check_columns(self.condition, "consistency.condition")
        conditions, first = candidates.groups(["screen", *self.condition])
        best, best_q = (np.full(len(first), np.nan) for _ in range(2))
        for representation in self.representations:
            of_conditions = self._p_values(candidates, representation, conditions, first, progress)
            best, best_q = np.fmin(best, of_conditions), np.fmin(best_q, benjamini_hochberg(of_conditions))
        p_values, q_values = best[conditions], best_q[conditions]
        treated = candidates.kept & candidates.is_equal("control", "")
        rows = np.flatnonzero(treated & ~(p_values < self.alpha))
        untested = "consistency: not tested, fewer than 2 wells with embeddings in each experiment, or too few others"
        return Exclusions(
            rows=rows,
            reasons=[untested if np.isnan(p) else f"consistency: p {self.alpha:g} or more" for p in p_values[rows]],
            details=[
                "" if np.isnan(p) else f"p = {p:.3g}, q = {q:.3g}"
                for p, q in zip(p_values[rows], q_values[rows], strict=True)
            ],
        )

    def _p_values(
        self,
        candidates: Candidates,
        representation: str,
        conditions: Numbers,
        first: Numbers,
        progress: Progress | None,
    ) -> NDArray[np.float64]:
        """p-value of each condition over its experiments, NaN where no test was possible; stores all as evidence."""
        found, _ = candidates.vectors(representation)
        wells, crop = np.unique(candidates.groups(["well_id"])[0][found.rows], return_inverse=True)
        row_of_well = np.zeros(len(wells), np.int64)
        row_of_well[crop] = found.rows  # any crop of the well: only columns of the well are read
        sums = np.zeros((len(wells), found.vectors.shape[1]))
        np.add.at(sums, crop, found.vectors)
        profiles = sums / np.bincount(crop)[:, None]
        plates = candidates.groups(["plate_id"])[0][row_of_well]
        is_negative = candidates.is_equal("control", "negative")[row_of_well]
        aligned, _ = align_to_controls(profiles, plates, is_negative, sphere=self.sphere)
        is_treated = candidates.is_equal("control", "")[row_of_well]
        experiments, experiment_row = candidates.experiments(self.experiment)
        labels = [
            json.dumps([candidates.text(c)[int(row)].as_py() for c in ("screen", self.experiment)])
            for row in experiment_row
        ]
        tasks, names = [], []
        for experiment in np.unique(experiments[row_of_well][is_treated]).tolist():
            members = np.flatnonzero(is_treated & (experiments[row_of_well] == experiment))
            strata = (
                np.unique(plates[members], return_inverse=True)[1] if self.is_stratified else np.zeros(len(members))
            )
            names.append(labels[experiment])
            tasks.append(
                (
                    aligned[members],
                    conditions[row_of_well[members]],
                    strata.astype(np.int64),
                    self.n_draws,
                    candidates.seed,
                    labels[experiment],
                )
            )
        tests: dict[int, list[ConsistencyTest]] = {}
        for name, of_experiment in zip(
            names, run_tasks(consistency_tests, tasks, len(tasks), "experiments tested", progress), strict=True
        ):
            for test in of_experiment:
                if np.isnan(test.p_value):  # too few ways to draw other wells for a test
                    continue
                tests.setdefault(test.group, []).append(test)
                self._store_evidence(candidates, representation, first, name, test)
        p_values = np.full(len(first), np.nan)
        for condition, of_condition in sorted(tests.items()):
            p_values[condition] = combined_p_value([test.p_value for test in of_condition], self.n_draws)
            whole = ConsistencyTest(
                group=condition,
                n_rows=sum(test.n_rows for test in of_condition),
                cosine=float(np.average([t.cosine for t in of_condition], weights=[t.n_rows for t in of_condition])),
                p_value=float(p_values[condition]),
            )
            self._store_evidence(candidates, representation, first, "", whole)
        return p_values

    def _store_evidence(
        self,
        candidates: Candidates,
        representation: str,
        first: Numbers,
        experiment: str,
        test: ConsistencyTest,
    ) -> None:
        row = int(first[test.group])
        candidates.evidence.append(
            {
                "representation_id": representation,
                "screen": candidates.text("screen")[row].as_py(),
                "condition": json.dumps({name: candidates.text(name)[row].as_py() for name in self.condition}),
                "perturbation": candidates.text("perturbation")[row].as_py(),
                "experiment": experiment,
                "n_wells": test.n_rows,
                "cosine": test.cosine,
                "p_value": test.p_value,
            }
        )
