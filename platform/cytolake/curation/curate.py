"""Curation: a named, versioned choice of crops. Every crop considered gets a row: kept, or the reason why not.

A curation is an ordered list of rules (`curation_rules`). Each sees what the rules before it kept, and a crop keeps the
reason of the first one that excludes it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from cytolake.catalog.content import content_of
from cytolake.catalog.declared import declared_path, table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog
from cytolake.curation.rules import RULES, CapStep, Considered, CurationError, ForegroundStep, QcStep, Rule, WhereStep
from cytolake.qc.verdicts import Progress, QcConfig

TABLES_READ = ("crops", "plates", "qc_metrics", "sites", "wells")
"""By every curation; rules may read more. The metrics distinguish pixels in files of the same names and sizes."""

GROW_ONLY = frozenset({"embeddings", "representations"})
"""Rows of a representation never change once it is there, so its id stands for them in the curation's id. The tables
themselves do not count: otherwise the embeddings of what a curation kept would make it another curation."""

_TYPES: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
    "tuple[str, ...]": (str, "a name or a list of names"),
}
"""How a rule's field is annotated, to what YAML must hold there."""

_SIMPLE_KEYS = ("min_foreground_share", "where", "max_crops_per_perturbation", "max_crops_per_control")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Which curation to run."""

    name: str = "default"
    """A file of the folder, without `.yaml`."""
    folder: str = ""
    """Where specs lie; empty means catalog/curation/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationSpec:
    """One file of catalog/curation/; keys are explained in default.yaml and phenoprints.yaml there."""

    name: str
    steps: tuple[Rule, ...]
    """In the order in which they exclude."""
    seed: int = 0
    """Of every choice by lot."""

    def as_json(self) -> str:
        """The rules with every value, defaults too."""
        steps = [{"rule": step.rule, **asdict(step)} for step in self.steps]  # type: ignore[call-overload]
        for step in steps:
            if not step.get("modalities", True):  # curations of before keep their ids
                del step["modalities"]
        return json.dumps({"name": self.name, "seed": self.seed, "steps": steps}, sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one rule did."""

    rule: str
    n_considered: int
    """Crops that the rules before it had kept."""
    n_removed: int
    n_kept: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curation:
    """What a curation kept."""

    curation_id: str
    name: str
    n_kept: int
    n_considered: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason to number of crops excluded by it, largest first."""
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
        raise CurationError(f"{path}: no such file. Add it, or name one that is there in curate.name.")
    declared: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    unknown = sorted(set(declared) - {"about", "seed", "steps", "qc", *_SIMPLE_KEYS})
    if unknown:
        raise CurationError(
            f"{path}: unknown keys {', '.join(unknown)}. There are: about, seed, steps; or instead of steps: qc, "
            f"{', '.join(_SIMPLE_KEYS)}."
        )
    if "steps" in declared and set(declared) & {"qc", *_SIMPLE_KEYS}:
        mixed = ", ".join(sorted(set(declared) & {"qc", *_SIMPLE_KEYS}))
        raise CurationError(f"{path}: found steps and {mixed}. Write those as steps, too: their order matters.")
    steps = _declared_steps(declared["steps"], path) if "steps" in declared else _simple_steps(declared, path)
    return CurationSpec(name=config.name, seed=int(declared.get("seed") or 0), steps=steps)


def qc_of_curation(config: CurateConfig, qc: QcConfig) -> QcConfig | str:
    """What decides which sites a curation excludes, so that pages show these verdicts and no others.

    Args:
        config: Which spec.
        qc: Whose modalities count; and which is taken whole where the spec has no rule `qc`.

    Returns:
        What judges the sites, or the `qc_id` of verdicts that are in the table already; of several rules `qc` the
        first.

    Raises:
        CatalogError: The spec is not sound.
        CurationError: The spec and `qc` name two profiles.
    """
    steps = [step for step in _with_modalities(curation_spec(config), qc.modalities).steps if isinstance(step, QcStep)]
    if not steps:
        return qc
    if qc.profile not in (QcConfig().profile, steps[0].profile):
        raise CurationError(
            f"curation {config.name}: its rule qc excludes by the profile {steps[0].profile}, and qc.profile is "
            f"{qc.profile}. Set the profile in the curation's file (catalog/curation/), and leave qc.profile out."
        )
    return steps[0].qc_id or steps[0].qc


def _with_modalities(spec: CurationSpec, modalities: tuple[str, ...]) -> CurationSpec:
    steps = (
        dataclasses.replace(step, modalities=modalities) if isinstance(step, QcStep) and not step.modalities else step
        for step in spec.steps
    )
    return dataclasses.replace(spec, steps=tuple(steps))


def curate(
    catalog: Catalog, config: CurateConfig, progress: Progress | None = None, *, modalities: tuple[str, ...] = ()
) -> Curation:
    """Choose crops of all ingested plates, and write each with the reason why it was excluded, if it was.

    Sites that the QC profile has not judged yet are judged first. The curation's id is the hash of its rules and of the
    rows of every table read (of embeddings: the ids of the representations), so the same again finds its rows there and
    writes nothing, and the same rules on another screen have another id. Rules that take long run as Ray tasks where
    Ray runs; that changes no result.

    Args:
        catalog: Where crops are read and choices written.
        config: Which spec.
        progress: Called as plates are judged, experiments tested and rules done.
        modalities: As `QcConfig.modalities`, for rules `qc` that name none.

    Raises:
        CatalogError: The spec is not sound, nothing was ingested, or a rule needs embeddings that are not there.
        CurationError: No crop would be kept; says how many each rule excluded. Nothing is written.
    """
    spec = _with_modalities(curation_spec(config), modalities)
    spec = dataclasses.replace(spec, steps=tuple(step.prepared(catalog, spec.name, progress) for step in spec.steps))
    tables = {*TABLES_READ, *(table for step in spec.steps for table in step.tables)}
    versions = {name: version for name, version in catalog.versions().items() if name in tables}
    rules = spec.as_json()
    runs = [run for run in catalog.table("curation_runs").to_pylist() if run["curation"] == spec.name]
    if same := [run for run in runs if run["spec"] == rules and _is_of(run, versions)]:
        return _from_row(same[0])  # without reading the tables; also a run of before ids were hashed from rows
    pinned = catalog.at(versions)
    curation_id = content_id("curation", 2, rules, content_of(pinned, tables - GROW_ONLY))
    if same := [run for run in runs if run["curation_id"] == curation_id]:
        return _from_row(same[0])
    considered = _considered(pinned, spec)
    reasons = np.full(considered.crops.num_rows, "", object)
    details = np.full(considered.crops.num_rows, "", object)
    steps = []
    for number, step in enumerate(spec.steps, start=1):
        steps.append(_apply(step, considered, reasons, details, progress))
        if progress:
            progress("rules applied", number, len(spec.steps))
    curation = Curation(
        curation_id=curation_id,
        name=spec.name,
        n_kept=int(considered.kept.sum()),
        n_considered=len(reasons),
        reasons=_counts(reasons),
        steps=tuple(steps),
    )
    if curation.n_kept == 0:
        listed = "; ".join(f"{reason}: {n}" for reason, n in curation.reasons.items())
        raise CurationError(
            f"curation {spec.name}: keeps none of {curation.n_considered} crops. Excluded by {listed or 'nothing'}. "
            "Loosen that rule in the curation's file (catalog/curation/) or in catalog/qc.yaml, or look at the sites: "
            "the table qc_verdicts has value and threshold of each."
        )
    _write(catalog, curation, considered, reasons, details, rules, json.dumps(versions, sort_keys=True))
    return curation


def _is_of(run: dict[str, Any], versions: dict[str, int]) -> bool:
    """Whether a run in this catalog read its tables at the versions that they have now."""
    then = {name: version for name, version in json.loads(run["table_versions"]).items() if name not in GROW_ONLY}
    return then == {name: versions.get(name) for name in then}


def _declared_steps(declared: Any, path: Path) -> tuple[Rule, ...]:
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
    """Build a rule from its keys; a key without a value counts as not given."""
    fields = {f.name: f for f in dataclasses.fields(RULES[rule])}  # type: ignore[arg-type]
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
    """The steps that a file without `steps` stands for."""
    steps: list[Rule] = []
    qc = declared.get("qc") or {}
    if not isinstance(qc, dict):
        raise CurationError(f"{path}: qc is {qc!r}; expected keys, such as profile: default.")
    if qc:
        steps.append(_step(QcStep.rule, qc, f"{path}, qc"))
    # Also with a share of 0: a crop without a share excludes itself.
    share = {"min_share": declared.get("min_foreground_share") or 0.0}
    steps.append(_step(ForegroundStep.rule, share, f"{path}, min_foreground_share"))
    if str(declared.get("where") or "").strip():
        steps.append(_step(WhereStep.rule, {"where": declared["where"]}, str(path)))
    caps = {key: declared.get(key) for key in ("max_crops_per_perturbation", "max_crops_per_control")}
    if any(limit is not None for limit in caps.values()):
        steps.append(_step(CapStep.rule, caps, str(path)))
    return tuple(steps)


def _considered(catalog: Catalog, spec: CurationSpec) -> Considered:
    """All crops with what is known of their wells, in the order of their ids."""
    crops = catalog.sql(
        "SELECT crops.*, wells.* EXCLUDE (well_id, plate_id, screen, plate, batch, well) "
        "FROM crops LEFT JOIN wells ON wells.well_id = crops.well_id ORDER BY crop_id"
    )
    return Considered(
        name=spec.name, catalog=catalog, crops=crops, kept=np.ones(crops.num_rows, np.bool_), seed=spec.seed
    )


def _apply(
    step: Rule, considered: Considered, reasons: np.ndarray, details: np.ndarray, progress: Progress | None
) -> StepReport:
    started = time.monotonic()
    before = int(considered.kept.sum())
    if before:
        excluded = step.exclude(considered, progress)
        is_first = considered.kept[excluded.rows]
        rows = excluded.rows[is_first]
        reasons[rows] = np.array(excluded.reasons, object)[is_first]
        if excluded.details is not None:
            details[rows] = np.array(excluded.details, object)[is_first]
        considered.kept[rows] = False
    after = int(considered.kept.sum())
    return StepReport(
        rule=step.rule,
        n_considered=before,
        n_removed=before - after,
        n_kept=after,
        seconds=round(time.monotonic() - started, 3),
    )


def _counts(reasons: np.ndarray) -> dict[str, int]:
    excluded, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    return dict(sorted(zip(excluded.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0])))


def _write(
    catalog: Catalog,
    curation: Curation,
    considered: Considered,
    reasons: np.ndarray,
    details: np.ndarray,
    rules: str,
    pinned: str,
) -> None:
    """The run's own row last: with it the curation is whole."""
    now = datetime.now(UTC)
    n = len(reasons)
    if considered.evidence:
        evidence = [{"curation_id": curation.curation_id, **row} for row in considered.evidence]
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
                    "crop_id": considered.crops.column("crop_id"),
                    "plate_id": considered.crops.column("plate_id"),
                    "is_kept": considered.kept,
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
