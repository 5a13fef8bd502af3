"""Rules applied to the crops of a catalog, without writing a curation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cytolake.catalog import Catalog
from cytolake.curation.curate import StepReport, all_candidates, apply_rules, parse_steps
from cytolake.curation.rules import Candidates, QcStep


@dataclasses.dataclass(frozen=True)
class Applied:
    """The candidates after the rules."""

    candidates: Candidates
    reasons: np.ndarray
    details: np.ndarray
    steps: tuple[StepReport, ...]

    def column(self, name: str) -> list[Any]:
        return self.candidates.crops.column(name).to_pylist()

    @property
    def kept(self) -> set[str]:
        """Ids of kept crops."""
        return {crop for crop, kept in zip(self.column("crop_id"), self.candidates.kept, strict=True) if kept}

    @property
    def kept_wells(self) -> Counter[str]:
        """Kept crops of each well."""
        return Counter(crop.rsplit("/", 1)[0] for crop in self.kept)

    @property
    def counts(self) -> dict[str, int]:
        """Reason to number of excluded crops."""
        return dict(Counter(reason for reason in self.reasons if reason))

    def reasons_by(self, column: str) -> dict[str, dict[str, int]]:
        """Value of a column to reason to number of crops; reason `` for kept crops."""
        found: dict[str, Counter[str]] = {}
        for label, reason in zip(self.column(column), self.reasons, strict=True):
            found.setdefault(label or "", Counter())[reason] += 1
        return {label: dict(reasons) for label, reasons in found.items()}

    @property
    def kept_perturbations(self) -> Counter[str]:
        """Kept crops of each perturbation."""
        by_label = self.reasons_by("perturbation")
        return Counter({label: reasons[""] for label, reasons in by_label.items() if "" in reasons})

    @property
    def crop_details(self) -> dict[str, str]:
        """Details of each crop that has some."""
        return {crop: text for crop, text in zip(self.column("crop_id"), self.details, strict=True) if text}


@pytest.fixture(scope="session")
def crops() -> Callable[[Catalog], pa.Table]:
    """Columns of crops and wells of a catalog, read once while its tables stay the same."""
    known: dict[tuple[str, str], pa.Table] = {}

    def read(catalog: Catalog) -> pa.Table:
        key = str(catalog.root), str(catalog.versions())
        if key not in known:
            known[key] = all_candidates(catalog, "", 0).crops
        return known[key]

    return read


@pytest.fixture
def run(crops):
    """Apply rules, given as in a spec, to all crops of a catalog."""

    def apply(catalog: Catalog, *steps: dict, seed: int = 0) -> Applied:
        declared = parse_steps(list(steps), Path("tried.yaml"))
        resolved = [step.resolved(catalog, "tried") for step in declared]
        for step in declared:
            if isinstance(step, QcStep):
                step.judge(catalog, None)
        table = crops(catalog)
        candidates = Candidates(
            name="tried", catalog=catalog, crops=table, kept=np.ones(table.num_rows, np.bool_), seed=seed
        )
        return Applied(candidates, *apply_rules(candidates, resolved))

    return apply
