"""Curation: a named, versioned choice of crops. Every crop considered gets a row: kept, or the reason why not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from cytolake.catalog.declared import declared_path, table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.qc import Progress, QcConfig, judge_sites, qc_profile
from cytolake.catalog.tables import Catalog

TABLES_READ = ("crops", "plates", "qc_verdicts", "sites", "wells")


class CurationError(CatalogError):
    """A spec that is not sound, or one that keeps no crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Which curation to run."""

    name: str = "default"
    """A file of the folder, without `.yaml`."""
    folder: str = ""
    """Where specs lie; empty means catalog/curation/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationSpec:
    """One file of catalog/curation/; keys are explained in default.yaml there."""

    name: str
    qc_profile: str | None = "default"
    """None: quality control excludes nothing."""
    qc_rules: tuple[str, ...] = ()
    """Names of rules; empty means all of the profile."""
    max_failed_channels: int = 0
    min_foreground_share: float = 0.0
    where: str = ""
    max_crops_per_perturbation: int | None = None
    max_crops_per_control: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise CurationError(f"curation {self.name}: {name} is {getattr(self, name)!r}; expected {expected}.")

        check("max_failed_channels", self.max_failed_channels >= 0, "0 or more")
        check("min_foreground_share", 0 <= self.min_foreground_share <= 1, "0 to 1")
        for name in ("max_crops_per_perturbation", "max_crops_per_control"):
            limit = getattr(self, name)
            check(name, limit is None or limit >= 1, "1 or more, or nothing for no limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curation:
    """What a curation kept."""

    curation_id: str
    name: str
    n_kept: int
    n_considered: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason to number of crops excluded by it, largest first."""


def curation_spec(config: CurateConfig) -> CurationSpec:
    """Load a spec.

    Raises:
        CatalogError: No such file, unknown keys, values out of range.
    """
    path = (
        Path(config.folder) / f"{config.name}.yaml" if config.folder else declared_path(f"curation/{config.name}.yaml")
    )
    if not path.is_file():
        raise CurationError(f"{path}: no such file. Add it, or name one that is there in curate.name.")
    declared: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    qc = declared.get("qc") or {}
    simple = ("min_foreground_share", "where", "max_crops_per_perturbation", "max_crops_per_control", "seed")
    unknown = sorted(set(declared) - {"about", "qc", *simple}) + sorted(
        f"qc.{key}" for key in set(qc) - {"profile", "rules", "max_failed_channels"}
    )
    if unknown:
        raise CurationError(
            f"{path}: unknown keys {', '.join(unknown)}. There are: about, qc (profile, rules, max_failed_channels), "
            f"{', '.join(simple)}."
        )
    rules = qc.get("rules", "all")
    return CurationSpec(
        name=config.name,
        qc_profile=qc.get("profile", "default") if qc else None,
        qc_rules=() if rules == "all" else tuple(rules),
        max_failed_channels=int(qc.get("max_failed_channels", 0)),
        **{key: declared[key] for key in simple if declared.get(key) is not None},
    )


def curate(catalog: Catalog, config: CurateConfig, progress: Progress | None = None) -> Curation:
    """Choose crops of all ingested plates, and write each with the reason why it was excluded, if it was.

    Sites that the QC profile has not judged yet are judged first. The curation's id is the hash of its rules and of the
    Delta version of every table read, so the same again finds its rows there and writes nothing.

    Args:
        catalog: Where crops are read and choices written.
        config: Which spec.
        progress: Called as plates are judged.

    Raises:
        CatalogError: The spec is not sound, or nothing was ingested.
        CurationError: No crop would be kept; says how many each rule excluded. Nothing is written.
    """
    spec = curation_spec(config)
    qc_id = ""
    if spec.qc_profile is not None:
        known = {rule.name for rule in qc_profile(spec.qc_profile).rules}
        if set(spec.qc_rules) - known:
            raise CurationError(
                f"curation {spec.name}: QC rules {', '.join(sorted(set(spec.qc_rules) - known))} are not in profile "
                f"{spec.qc_profile}. There are: {', '.join(sorted(known))}."
            )
        qc_id = judge_sites(catalog, QcConfig(profile=spec.qc_profile), progress)
    versions = {name: version for name, version in catalog.versions().items() if name in TABLES_READ}
    rules = json.dumps(asdict(spec) | {"qc_id": qc_id}, sort_keys=True)
    pinned = json.dumps(versions, sort_keys=True)
    curation_id = content_id("curation", rules, pinned)
    there = catalog.table("curations", columns=["reason", "is_kept"], where=f"curation_id = '{curation_id}'")
    if there.num_rows:
        return _summary(curation_id, spec.name, there.column("reason").to_pylist())
    crops = _considered(catalog.at(versions), spec, qc_id)
    reasons = _reasons(crops, spec)
    curation = _summary(curation_id, spec.name, reasons)
    if curation.n_kept == 0:
        listed = "; ".join(f"{reason}: {n}" for reason, n in curation.reasons.items())
        raise CurationError(
            f"curation {spec.name}: keeps none of {curation.n_considered} crops. Excluded by {listed or 'nothing'}. "
            "Loosen that rule in the curation's file (catalog/curation/) or in catalog/qc.yaml, or look at the sites: "
            "the table qc_verdicts has value and threshold of each."
        )
    n = crops.num_rows
    catalog.append(
        "curations",
        table_contract("curations").conform(
            pa.table(
                {
                    "curation_id": pa.repeat(curation_id, n),
                    "curation": pa.repeat(spec.name, n),
                    "crop_id": crops.column("crop_id"),
                    "plate_id": crops.column("plate_id"),
                    "is_kept": [not reason for reason in reasons],
                    "reason": reasons,
                    "spec": pa.repeat(rules, n),
                    "table_versions": pa.repeat(pinned, n),
                    "curated_at": pa.repeat(datetime.now(UTC), n),
                }
            )
        ),
        transaction=content_id("curations", curation_id),
    )
    return curation


def _summary(curation_id: str, name: str, reasons: list[str]) -> Curation:
    excluded, counts = np.unique(np.array([reason for reason in reasons if reason], dtype=object), return_counts=True)
    by_number = sorted(zip(excluded.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    return Curation(
        curation_id=curation_id,
        name=name,
        n_kept=sum(not reason for reason in reasons),
        n_considered=len(reasons),
        reasons=dict(by_number),
    )


def _considered(catalog: Catalog, spec: CurationSpec, qc_id: str) -> pa.Table:
    """All crops with what the rules look at, in the order of their ids."""
    columns = "crops.*, wells.* EXCLUDE (well_id, plate_id, screen, plate, batch, well)"
    rules = ", ".join(f"'{rule}'" for rule in spec.qc_rules)
    failed = (
        f"SELECT site_id, string_agg(DISTINCT rule, ', ' ORDER BY rule) AS failed_rules FROM qc_verdicts "
        f"WHERE qc_id = '{qc_id}' AND NOT is_pass {f'AND rule IN ({rules})' if rules else ''} "
        f"GROUP BY site_id HAVING count(DISTINCT channel_index) > {spec.max_failed_channels}"
    )
    crops = catalog.sql(f"SELECT {columns} FROM crops LEFT JOIN wells ON wells.well_id = crops.well_id")
    matches = f"coalesce(({spec.where}), false)" if spec.where.strip() else "true"
    try:
        return catalog.sql(
            f"SELECT crop_id, plate_id, screen, foreground_share, coalesce(perturbation, '') AS perturbation, "
            f"coalesce(control, '') AS control, coalesce(failed_rules, '') AS failed_rules, matches "
            f"FROM (SELECT *, {matches} AS matches FROM considered) LEFT JOIN ({failed}) failed USING (site_id) "
            "ORDER BY crop_id",
            considered=crops,
        )
    except CatalogError as error:
        raise CurationError(
            f"curation {spec.name}: where {spec.where!r} cannot be used. {error} "
            f"Columns: {', '.join(crops.column_names)}."
        ) from error


def _reasons(crops: pa.Table, spec: CurationSpec) -> list[str]:
    """For each crop the first rule that excludes it; empty where none does."""
    reasons = []
    for failed_rules, share, matches in zip(
        *(crops.column(name).to_pylist() for name in ("failed_rules", "foreground_share", "matches")), strict=True
    ):
        if failed_rules:
            reasons.append(f"qc: {failed_rules}")
        elif share is None or share < spec.min_foreground_share:
            reasons.append(f"foreground_share below {spec.min_foreground_share:g}")
        elif not matches:
            reasons.append(f"not where {spec.where.strip()}")
        else:
            reasons.append("")
    return _cap(crops, spec, reasons)


def _cap(crops: pa.Table, spec: CurationSpec, reasons: list[str]) -> list[str]:
    """Exclude the crops beyond the limit of their perturbation or control, by the order of a hash."""
    if spec.max_crops_per_perturbation is None and spec.max_crops_per_control is None:
        return reasons
    names = [crops.column(name).to_pylist() for name in ("screen", "control", "perturbation", "crop_id")]
    candidates = [
        (screen, control, perturbation, _lot(crop_id, spec.seed), position)
        for position, (screen, control, perturbation, crop_id) in enumerate(zip(*names, strict=True))
        if not reasons[position]
    ]
    capped = list(reasons)
    taken: dict[tuple[str, str, str], int] = {}
    for screen, control, perturbation, _, position in sorted(candidates):
        limit = spec.max_crops_per_control if control else spec.max_crops_per_perturbation
        taken[screen, control, perturbation] = taken.get((screen, control, perturbation), 0) + 1
        if limit is not None and taken[screen, control, perturbation] > limit:
            capped[position] = f"beyond {limit} crops of {'control' if control else 'perturbation'}"
    return capped


def _lot(crop_id: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{crop_id}".encode(), digest_size=8).digest()
