"""QC verdicts on sites, wells and plates, by the rules of a profile of catalog/qc.yaml.

A verdict is a row with the value, the limit that applied, and whether it passed. Verdicts exclude nothing: a curation
decides which crops they exclude.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cytolake.catalog.declared import read_declared, table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog
from cytolake.qc import levels as qc_levels
from cytolake.qc.judging import MeasuredPlate, judge_plate_of, judge_sites_of, judge_wells_of
from cytolake.qc.levels import Places
from cytolake.qc.modality import parse_modalities
from cytolake.qc.rules import QcRule
from cytolake.screens.plate import WELLS_ONLY

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the amount done, and the total."""


DEFAULT_PROFILE = "default"
"""Profile of catalog/qc.yaml used unless another one is set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcConfig:
    """Rules that judge the sites."""

    profile: str = DEFAULT_PROFILE
    """Profile of catalog/qc.yaml."""
    modalities: tuple[str, ...] = ()
    """Channels with another modality than catalog/channels.yaml declares, such as `TL20: phase`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcProfile:
    """A set of rules."""

    name: str
    min_sites: int
    """Fewest sites of a plate and channel for limits relative to the plate."""
    rules: tuple[QcRule, ...]
    modalities: tuple[tuple[str, str], ...] = ()
    """Channel and modality; overrides the declared one."""

    @property
    def qc_id(self) -> str:
        """Hash of the rules and their limits, followed by a hash of the modalities if any are set.

        Independent of the profile's name and of the rules' texts.
        """
        rules = [{key: value for key, value in asdict(rule).items() if key != "says"} for rule in self.rules]
        of_rules = content_id("qc", json.dumps([self.min_sites, rules], sort_keys=True))
        return of_rules + (content_id("modalities", json.dumps(sorted(self.modalities))) if self.modalities else "")

    def judge(self, metrics: pa.Table, places: Places | None = None) -> pa.Table:
        """Verdicts on one plate; reads and writes no table.

        Args:
            metrics: Rows of qc_metrics of one plate.
            places: Positions of its sites. Without them only sites are judged, and their well ids are empty.

        Returns:
            Rows of qc_verdicts. Level `site`: one per site, channel and rule that applies to it (joint rules: one per
            site). `well`: one per well with a position. `plate`: one per rule and channel.
            If a rule cannot judge, `threshold` or `value` is null, `is_pass` is true and `reason` says why: the plate
            is too small for the rule's only limit, its wells have too few objects, the rule is made for another
            modality, or the catalog was ingested before the metric existed.
        """
        if not metrics.num_rows:
            return table_contract("qc_verdicts").empty()
        plate = MeasuredPlate(metrics, places, dict(self.modalities))
        blocks: list[pa.Table] = []
        for rule in self.rules:
            if rule.level == "site":
                blocks += judge_sites_of(rule, plate, self.min_sites)
        plate.leave_out_failed(blocks)
        for rule in self.rules:
            if rule.level == "site" or places is None or not places.wells:
                continue
            judge_rule = judge_wells_of if rule.level == "well" else judge_plate_of
            blocks += judge_rule(rule, plate, places)
        if not blocks:
            return table_contract("qc_verdicts").empty()
        rows = pa.concat_tables(blocks)
        n = rows.num_rows
        rows = rows.append_column("qc_id", pa.repeat(self.qc_id, n))
        rows = rows.append_column("plate_id", pa.repeat(plate.plate_id, n))
        rows = rows.append_column("judged_at", pa.repeat(datetime.now(UTC), n))
        return table_contract("qc_verdicts").conform(rows)


def qc_profile(name: str, modalities: Sequence[str] = ()) -> QcProfile:
    """Load a profile of catalog/qc.yaml.

    Args:
        modalities: As `QcConfig.modalities`; added to those of the profile.

    Raises:
        CatalogError: No such profile, an invalid rule, or an unknown modality.
    """
    profiles = _declared_profiles()
    if name not in profiles:
        raise CatalogError(f"QC profile {name}: not in catalog/qc.yaml. There are: {', '.join(sorted(profiles))}.")
    profile = parse_profile(name, profiles[name], profiles)
    added = parse_modalities(modalities, "qc.modalities")
    return replace(profile, modalities=tuple(sorted((dict(profile.modalities) | added).items())))


def profile_of(qc_id: str) -> QcProfile | None:
    """The profile of catalog/qc.yaml with this qc_id, for any modalities of a config; None if there is none."""
    profiles = _declared_profiles()
    parsed = [parse_profile(name, declared, profiles) for name, declared in profiles.items()]
    same = [profile for profile in parsed if profile.qc_id == qc_id]
    alike = [profile for profile in parsed if qc_id.startswith(replace(profile, modalities=()).qc_id)]
    return next(iter(same or alike), None)


def _declared_profiles() -> dict[str, Any]:
    profiles: dict[str, Any] = read_declared("qc.yaml")["profiles"]
    return profiles


def _with_limits(place: str, declared: dict[str, Any], profiles: Mapping[str, Any]) -> dict[str, Any]:
    """The profile named in `like`, with the limits that this one overrides."""
    base = profiles.get(declared["like"], {})
    limits = declared.get("limits", {})
    unknown = sorted(set(limits) - {rule["name"] for rule in base.get("rules", ())})
    if "rules" not in base or unknown or set(declared) - {"like", "limits", "modalities"}:
        raise CatalogError(
            f"{place}: found {', '.join(declared)}, like {declared['like']}, limits of {', '.join(limits)}; "
            f"expected `like` a profile with rules, and `limits` of rules of it. Unknown there: {unknown or 'none'}."
        )
    changed = {"modalities": declared["modalities"]} if "modalities" in declared else {}
    return {**base, **changed, "rules": [rule | limits.get(rule["name"], {}) for rule in base["rules"]]}


def parse_profile(name: str, declared: dict[str, Any], profiles: Mapping[str, Any] | None = None) -> QcProfile:
    """The profile of one entry of `profiles` in catalog/qc.yaml.

    Args:
        declared: Content of the entry.
        profiles: All entries; `like` names one of them.

    Raises:
        CatalogError: Unknown keys, a repeated rule, or an invalid rule.
    """
    place = f"catalog/qc.yaml, profile {name}"
    if "like" in declared:
        declared = _with_limits(place, declared, profiles or {})
    rules = []
    for entry in declared.get("rules", ()):
        unknown = sorted(set(entry) - set(QcRule.__dataclass_fields__))
        missing = sorted({"name", "metric", "fails", "says"} - set(entry))
        if unknown or missing:
            raise CatalogError(
                f"{place}, rule {entry.get('name', '?')}: unknown keys {unknown or 'none'}, missing keys "
                f"{missing or 'none'}. A rule may have {', '.join(QcRule.__dataclass_fields__)}."
            )
        metric = entry["metric"]
        lists = {
            "metric": metric if isinstance(metric, str) else tuple(metric),
            "except_channels": tuple(entry.get("except_channels", ())),
            "modalities": tuple(entry.get("modalities", ())),
        }
        rules.append(QcRule(**entry | lists))
    names = [rule.name for rule in rules]
    if not rules or len(set(names)) < len(names):
        raise CatalogError(f"{place}: found the rules {', '.join(names) or 'none'}; expected some, each name once.")
    pairs = [f"{channel}: {modality}" for channel, modality in dict(declared.get("modalities", {})).items()]
    modalities = tuple(sorted(parse_modalities(pairs, f"{place}, modalities").items()))
    return QcProfile(name=name, min_sites=int(declared.get("min_sites", 8)), rules=tuple(rules), modalities=modalities)


def judge_sites(catalog: Catalog, config: QcConfig, progress: Progress | None = None) -> str:
    """Write verdicts on every plate without verdicts of the profile; one commit per plate.

    Args:
        catalog: The catalog to read metrics from and write verdicts to.
        progress: Called after each plate.

    Returns:
        The qc_id of the verdicts, equal for equal rules.

    Raises:
        CatalogError: The profile is invalid, or the catalog has no plate with images.
    """
    profile = qc_profile(config.profile, config.modalities)
    with_images = catalog.table(
        "plates", columns=["plate_id"], where="reader is distinct from ?", parameters=[WELLS_ONLY]
    )
    plates = with_images["plate_id"].to_pylist()
    if not plates:
        raise CatalogError(f"{catalog.root}: no plate to judge. Ingest a screen first: `cytolake ingest`.")
    judged = set(
        catalog.sql("SELECT DISTINCT plate_id FROM qc_verdicts WHERE qc_id = ?", parameters=[profile.qc_id])
        .column("plate_id")
        .to_pylist()
    )
    for done, plate in enumerate(sorted(plates), start=1):
        if plate not in judged:
            metrics = catalog.table("qc_metrics", where="plate_id = ?", parameters=[plate])
            places = qc_levels.places(
                catalog.sql(
                    'SELECT s.site_id, s.well_id, w.row, w."column", w.control FROM sites s '
                    "LEFT JOIN wells w USING (well_id) WHERE s.plate_id = $plate",
                    parameters={"plate": plate},
                )
            )
            verdicts = profile.judge(metrics, places)
            catalog.append("qc_verdicts", verdicts, transaction=content_id("qc_verdicts", profile.qc_id, plate))
        if progress:
            progress("plates judged", done, len(plates))
    return profile.qc_id
