"""Curation: a named, versioned selection of crops. Every crop gets a row: kept, or the reason for its exclusion.

A curation is an ordered list of rules (`curation.rules`). Each rule works on the crops that the rules before it keep;
the reason of a crop is that of the first rule that excludes it. Spec and run stay in one file because the id of a
curation is the hash of both.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from cytolake.catalog.content import content_of
from cytolake.catalog.declared import declared_path, table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog
from cytolake.curation.rules import RULES, Candidates, CapStep, CurationError, ForegroundStep, QcStep, Rule, WhereStep
from cytolake.qc.verdicts import DEFAULT_PROFILE, Progress, QcConfig

TABLES_READ = ("crops", "plates", "qc_metrics", "sites", "wells")
"""Tables that every curation reads; rules may read more. Metrics distinguish pixels in files of equal name and size."""

GROW_ONLY = frozenset({"embeddings", "representations"})
"""Tables left out of the curation's id. Rows of a representation never change, so its id stands for them; otherwise
embedding the crops of a curation would change the id of the curation."""

_TYPES: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
    "tuple[str, ...]": (str, "a name or a list of names"),
}
"""Annotation of a rule's field to the YAML type that it accepts, and its name in errors."""

Texts = NDArray[np.object_]

_SIMPLE_KEYS = ("min_foreground_share", "where", "max_crops_per_perturbation", "max_crops_per_control")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Which curation to run."""

    name: str = "default"
    """A file of the folder, without `.yaml`."""
    folder: str = ""
    """Folder of the specs; empty means catalog/curation/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationSpec:
    """Content of one file of catalog/curation/; default.yaml and phenoprints.yaml there explain the keys."""

    name: str
    steps: tuple[Rule, ...]
    """Rules in the order in which they are applied."""
    seed: int = 0
    """Seed of every random choice."""

    def resolved(self, catalog: Catalog) -> CurationSpec:
        """With names of representations and verdicts replaced by the ids that they currently stand for."""
        return dataclasses.replace(self, steps=tuple(step.resolved(catalog, self.name) for step in self.steps))

    def as_json(self) -> str:
        """The rules with all values, including defaults."""
        steps = [{"rule": step.rule, **asdict(step)} for step in self.steps]
        for step in steps:
            if not step.get("modalities", True):  # curations written before the key existed keep their ids
                del step["modalities"]
        return json.dumps({"name": self.name, "seed": self.seed, "steps": steps}, sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """Effect of one rule."""

    rule: str
    n_considered: int
    """Crops that the rules before it keep."""
    n_removed: int
    n_kept: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curation:
    """Result of a curation."""

    curation_id: str
    name: str
    n_kept: int
    n_considered: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason to number of excluded crops, largest first."""
    steps: tuple[StepReport, ...] = ()


def curation_spec(config: CurateConfig) -> CurationSpec:
    """Load a spec.

    Raises:
        CatalogError: No such file, unknown rules or keys, values out of range.
    """
    path = (
        Path(config.folder) / f"{config.name}.yaml" if config.folder else declared_path(f"curation/{config.name}.yaml")
    )
    if not path.is_file():
        raise CurationError(f"{path}: no such file. Add it, or set curate.name to an existing curation.")
    declared: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    unknown = sorted(set(declared) - {"about", "seed", "steps", "qc", *_SIMPLE_KEYS})
    if unknown:
        raise CurationError(
            f"{path}: unknown keys {', '.join(unknown)}. There are: about, seed, steps; or instead of steps: qc, "
            f"{', '.join(_SIMPLE_KEYS)}."
        )
    if "steps" in declared and set(declared) & {"qc", *_SIMPLE_KEYS}:
        mixed = ", ".join(sorted(set(declared) & {"qc", *_SIMPLE_KEYS}))
        raise CurationError(f"{path}: found steps and {mixed}. Write those as steps too: the order matters.")
    steps = parse_steps(declared["steps"], path) if "steps" in declared else _simple_steps(declared, path)
    return CurationSpec(name=config.name, seed=int(declared.get("seed") or 0), steps=steps)


def qc_of_curation(config: CurateConfig, qc: QcConfig) -> QcConfig | str:
    """The QC that a curation excludes by, so that pages show the same verdicts.

    Args:
        config: Which spec.
        qc: Used when the spec has no rule `qc`; otherwise only its modalities are used.

    Returns:
        The config that judges the sites, or the `qc_id` of existing verdicts; with several rules `qc`, the first.

    Raises:
        CatalogError: The spec is invalid.
        CurationError: The spec and `qc` name different profiles.
    """
    steps = [step for step in with_modalities(curation_spec(config), qc.modalities).steps if isinstance(step, QcStep)]
    if not steps:
        return qc
    if qc.profile not in (DEFAULT_PROFILE, steps[0].profile):
        raise CurationError(
            f"curation {config.name}: its rule qc excludes by the profile {steps[0].profile}, and qc.profile is "
            f"{qc.profile}. Set the profile in the curation's file (catalog/curation/), and leave qc.profile out."
        )
    return steps[0].qc_id or steps[0].qc


def with_modalities(spec: CurationSpec, modalities: tuple[str, ...]) -> CurationSpec:
    """The spec with these modalities for rules `qc` that have none, see `QcConfig.modalities`."""
    steps = (
        dataclasses.replace(step, modalities=modalities) if isinstance(step, QcStep) and not step.modalities else step
        for step in spec.steps
    )
    return dataclasses.replace(spec, steps=tuple(steps))


def curate(
    catalog: Catalog, config: CurateConfig, progress: Progress | None = None, *, modalities: tuple[str, ...] = ()
) -> Curation:
    """Select crops of all ingested plates, and write a row for each with the reason of its exclusion.

    Sites without verdicts of the QC profile are judged first. The curation's id is the hash of its rules and of the
    rows of every table read (for embeddings: the ids of the representations). A repeated call therefore writes nothing,
    and the same rules on another screen give another id. Long rules run as Ray tasks if Ray is running; results are
    equal.

    Args:
        catalog: The catalog to read crops from and write the curation to.
        config: The spec.
        progress: Called after each judged plate, tested experiment and applied rule.
        modalities: As `QcConfig.modalities`, for rules `qc` without modalities.

    Raises:
        CatalogError: The spec is invalid, nothing is ingested, or a rule needs embeddings that do not exist.
        CurationError: The curation would keep no crop; names the number of crops each rule excludes. Nothing is
            written.
    """
    declared = with_modalities(curation_spec(config), modalities)
    spec = declared.resolved(catalog)
    for step in declared.steps:
        if isinstance(step, QcStep):
            step.judge(catalog, progress)
    tables = {*TABLES_READ, *(table for step in spec.steps for table in step.tables)}
    versions = {name: version for name, version in catalog.versions().items() if name in tables}
    rules = spec.as_json()
    runs = [run for run in catalog.table("curation_runs").to_pylist() if run["curation"] == spec.name]
    if same := [run for run in runs if run["spec"] == rules and _is_of(run, versions)]:
        return _from_row(same[0])  # without reading the tables
    pinned = catalog.at(versions)
    curation_id = content_id("curation", 2, rules, content_of(pinned, tables - GROW_ONLY))
    if same := [run for run in runs if run["curation_id"] == curation_id]:
        return _from_row(same[0])
    candidates = all_candidates(pinned, spec.name, spec.seed)
    reasons, details, steps = apply_rules(candidates, spec.steps, progress)
    curation = Curation(
        curation_id=curation_id,
        name=spec.name,
        n_kept=int(candidates.kept.sum()),
        n_considered=len(reasons),
        reasons=_counts(reasons),
        steps=steps,
    )
    if curation.n_kept == 0:
        listed = "; ".join(f"{reason}: {n}" for reason, n in curation.reasons.items())
        raise CurationError(
            f"curation {spec.name}: keeps 0 of {curation.n_considered} crops. Excluded by {listed or 'nothing'}. "
            "Relax that rule in the curation's file (catalog/curation/) or in catalog/qc.yaml, or inspect the sites: "
            "the table qc_verdicts holds the value and threshold of each."
        )
    _write(catalog, curation, candidates, reasons, details, rules, json.dumps(versions, sort_keys=True))
    return curation


def _is_of(run: dict[str, Any], versions: dict[str, int]) -> bool:
    """Whether a run of this catalog read its tables at their current versions."""
    then = {name: version for name, version in json.loads(run["table_versions"]).items() if name not in GROW_ONLY}
    return then == {name: versions.get(name) for name in then}


def parse_steps(declared: Any, path: Path) -> tuple[Rule, ...]:
    """Rules of the entries under `steps`.

    Args:
        declared: Content of the key.
        path: File of the spec, for error messages.

    Raises:
        CurationError: No list of entries, an unknown rule or key, or a value out of range.
    """
    if not isinstance(declared, list) or not declared:
        raise CurationError(f"{path}: steps is {declared!r}; expected a list of entries with a key `rule`.")
    steps = []
    for number, entry in enumerate(declared, start=1):
        if not isinstance(entry, dict) or entry.get("rule") not in RULES:
            found = entry.get("rule") if isinstance(entry, dict) else entry
            raise CurationError(f"{path}, step {number}: rule {found!r}; expected one of {', '.join(RULES)}.")
        values = {key: value for key, value in entry.items() if key != "rule"}
        steps.append(_step(entry["rule"], values, f"{path}, step {number} ({entry['rule']})"))
    return tuple(steps)


def _step(rule: str, values: dict[str, Any], place: str) -> Rule:
    """Build a rule from its keys; a key with the value null keeps its default."""
    fields = {f.name: f for f in dataclasses.fields(RULES[rule])}
    unknown = sorted(set(values) - set(fields))
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in given]
    if unknown or missing:
        raise CurationError(
            f"{place}: unknown keys {', '.join(unknown) or 'none'}, missing keys {', '.join(missing) or 'none'}. "
            f"Keys of {rule}: {', '.join(fields) or 'none'}."
        )
    for name, value in given.items():
        if isinstance(fields[name].default, tuple):
            is_all = name == "rules" and value == "all"
            given[name] = value = () if is_all else tuple(value) if isinstance(value, list) else (value,)
        accepted, expected = _TYPES[str(fields[name].type).removesuffix(" | None")]
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, accepted) and isinstance(part, bool) == (accepted is bool) for part in parts):
            raise CurationError(f"{place}: {name} is {values[name]!r}; expected {expected}.")
    try:
        return RULES[rule](**given)
    except CurationError as error:
        raise CurationError(f"{place}: {error}") from error


def _simple_steps(declared: dict[str, Any], path: Path) -> tuple[Rule, ...]:
    """Steps of a file without the key `steps`."""
    steps: list[Rule] = []
    qc = declared.get("qc") or {}
    if not isinstance(qc, dict):
        raise CurationError(f"{path}: qc is {qc!r}; expected keys, such as profile: default.")
    if qc:
        steps.append(_step(QcStep.rule, qc, f"{path}, qc"))
    # Also with a minimum of 0: the rule excludes crops whose share is null.
    share = {"min_share": declared.get("min_foreground_share") or 0.0}
    steps.append(_step(ForegroundStep.rule, share, f"{path}, min_foreground_share"))
    if str(declared.get("where") or "").strip():
        steps.append(_step(WhereStep.rule, {"where": declared["where"]}, str(path)))
    caps = {key: declared.get(key) for key in ("max_crops_per_perturbation", "max_crops_per_control")}
    if any(limit is not None for limit in caps.values()):
        steps.append(_step(CapStep.rule, caps, str(path)))
    return tuple(steps)


def all_candidates(catalog: Catalog, name: str, seed: int) -> Candidates:
    """All crops with the columns of their wells, ordered by crop_id."""
    crops = catalog.sql(
        "SELECT crops.*, wells.* EXCLUDE (well_id, plate_id, screen, plate, batch, well) "
        "FROM crops LEFT JOIN wells ON wells.well_id = crops.well_id ORDER BY crop_id"
    )
    return Candidates(name=name, catalog=catalog, crops=crops, kept=np.ones(crops.num_rows, np.bool_), seed=seed)


def apply_rules(
    candidates: Candidates, steps: Sequence[Rule], progress: Progress | None = None
) -> tuple[Texts, Texts, tuple[StepReport, ...]]:
    """Apply prepared rules in order; `candidates.kept` and `candidates.evidence` are updated.

    Returns:
        (N,) reason of each crop, empty if it is kept; (N,) details; one report per rule.
    """
    reasons, details = (np.full(candidates.crops.num_rows, "", object) for _ in range(2))
    reports = []
    for number, step in enumerate(steps, start=1):
        reports.append(_apply(step, candidates, reasons, details, progress))
        if progress:
            progress("rules applied", number, len(steps))
    return reasons, details, tuple(reports)


def _apply(step: Rule, candidates: Candidates, reasons: Texts, details: Texts, progress: Progress | None) -> StepReport:
    started = time.monotonic()
    before = int(candidates.kept.sum())
    if before:
        excluded = step.exclude(candidates, progress)
        is_first = candidates.kept[excluded.rows]
        rows = excluded.rows[is_first]
        reasons[rows] = np.array(excluded.reasons, object)[is_first]
        if excluded.details is not None:
            details[rows] = np.array(excluded.details, object)[is_first]
        candidates.kept[rows] = False
    after = int(candidates.kept.sum())
    return StepReport(
        rule=step.rule,
        n_considered=before,
        n_removed=before - after,
        n_kept=after,
        seconds=round(time.monotonic() - started, 3),
    )


def _counts(reasons: Texts) -> dict[str, int]:
    excluded, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    return dict(sorted(zip(excluded.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0])))


def _write(
    catalog: Catalog,
    curation: Curation,
    candidates: Candidates,
    reasons: Texts,
    details: Texts,
    rules: str,
    pinned: str,
) -> None:
    """Write evidence, crops and last the run's row, which makes the curation visible."""
    now = datetime.now(UTC)
    n = len(reasons)
    if candidates.evidence:
        evidence = [{"curation_id": curation.curation_id, **row} for row in candidates.evidence]
        catalog.append(
            "consistency_tests",
            table_contract("consistency_tests").rows(evidence),
            transaction=content_id("consistency_tests", curation.curation_id),
        )
    catalog.append(
        "curations",
        table_contract("curations").conform(
            pa.table(
                {
                    "curation_id": pa.repeat(curation.curation_id, n),
                    "curation": pa.repeat(curation.name, n),
                    "crop_id": candidates.crops.column("crop_id"),
                    "plate_id": candidates.crops.column("plate_id"),
                    "is_kept": candidates.kept,
                    "reason": pa.array(reasons, pa.string()),
                    "detail": pa.array(details, pa.string()),
                    "spec": pa.nulls(n, pa.string()),
                    "table_versions": pa.repeat(pinned, n),
                    "curated_at": pa.repeat(now, n),
                }
            )
        ),
        transaction=content_id("curations", curation.curation_id),
    )
    row = {
        "curation_id": curation.curation_id,
        "curation": curation.name,
        "spec": rules,
        "table_versions": pinned,
        "n_considered": curation.n_considered,
        "n_kept": curation.n_kept,
        "steps": json.dumps([asdict(step) for step in curation.steps]),
        "reasons": json.dumps(curation.reasons),
        "curated_at": now,
    }
    catalog.append(
        "curation_runs",
        table_contract("curation_runs").rows([row]),
        transaction=content_id("curation_runs", curation.curation_id),
    )


def _from_row(row: dict[str, Any]) -> Curation:
    return Curation(
        curation_id=row["curation_id"],
        name=row["curation"],
        n_kept=row["n_kept"],
        n_considered=row["n_considered"],
        reasons=json.loads(row["reasons"]),
        steps=tuple(StepReport(**step) for step in json.loads(row["steps"])),
    )
