"""Finds results that were computed from labels or pixels that were corrected since.

A curation, a pack and a registered model pin the version of `plates` that they read, and are held against its rows.
Representations are as stale as their pack; scores, and profiles aligned on controls, are stale where a plate of theirs
was corrected after they were written. What a newer one has taken the place of is not listed: an older curation or pack
of the same name, a representation of such a pack where the newer pack has one of the same kind, architecture, block and
pooling, and its scores.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import Visibility

Kind: TypeAlias = Literal["curation", "pack", "representation", "score", "model"]
Why: TypeAlias = Literal["labels", "pixels"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stale:
    """A result that is older than a correction of its input."""

    kind: Kind
    identity: str
    """curation_id, pack_id, representation_id, score_id, or name and version of a model."""
    name: str
    """For people: the curation's name, what was embedded, or what was scored."""
    why: Why
    """`pixels` where a plate of it was replaced, retracted or purged; else `labels`."""
    plates: tuple[str, ...]
    """Names, as screen/plate, of the plates that were corrected."""
    benchmark: str = ""
    """Of a score: `linear_probe` and so on."""
    label: str = ""
    """Of a score: what was predicted or grouped by."""
    representation_id: str = ""
    """Of a score: what was scored. Of an aligned representation: what was aligned."""
    alignment_variant: str = ""
    """Of an aligned representation."""


def stale_artefacts(catalog: Catalog) -> list[Stale]:
    """Everything in a catalog that is stale, curations first. Empty where nothing was ever corrected."""
    now = catalog.visibility().plates
    if not _was_corrected(now):
        return []
    curations = _stale_curations(catalog)
    described = _described_packs(catalog)
    packs = _stale_packs(catalog, described)
    rows = _without_replaced(catalog.table("representations").to_pylist(), described)
    representations, of_plates = _stale_representations(catalog, rows, packs, described, now)
    newest = {each["pack_id"] for each in _newest_packs(described).values()}
    packs = [each for each in packs if each.identity in newest]
    scores = _stale_scores(catalog, {each.identity: each for each in representations}, of_plates, now)
    return [*curations, *packs, *representations, *scores, *_stale_models(catalog)]


def corrected_since(catalog: Catalog, table_versions: Mapping[str, int]) -> dict[str, tuple[Why, str]]:
    """Plates that were visible at a version of `plates` and have other labels or pixels now.

    Args:
        catalog: Not pinned.
        table_versions: Delta version of each table, as curations, packs and model cards pin them.

    Returns:
        plate_id to what changed, and the plate's name. A rename changes neither.
    """
    if "plates" not in table_versions:
        return {}
    try:
        pinned = catalog.at({"plates": table_versions["plates"]}).visibility()
    except CatalogError:  # pinned in another catalog
        return {}
    then = Visibility(pinned.plates).visible  # plates that were purged since, too
    now = {row["plate_id"]: row for row in catalog.visibility().visible.to_pylist()}
    found: dict[str, tuple[Why, str]] = {}
    for row in then.to_pylist():
        newest = now.get(row["plate_id"])
        name = f"{row['screen']}/{row['plate']}"
        if newest is None:
            found[row["plate_id"]] = ("pixels", name)
        elif any(newest[name] != row[name] for name in ("labels_hash", "objects_edition")):
            found[row["plate_id"]] = ("labels", name)
    return found


def check_curation(catalog: Catalog, curation_id: str) -> None:
    """Raise where a plate of a curation was corrected since.

    Raises:
        CatalogError: One was; says which, and what to run.
    """
    runs = catalog.table("curation_runs", where="curation_id = ?", parameters=[curation_id]).to_pylist()
    changed = corrected_since(catalog, json.loads(runs[0]["table_versions"])) if runs else {}
    if changed:
        why, name = next(iter(changed.values()))
        raise CatalogError(
            f"curation {runs[0]['curation']} ({curation_id[:12]}): {len(changed)} of its plates were corrected since, "
            f"the first {name}: other {why}. Run `cytolake curate` with the same recipe and root, then this again."
        )


def _was_corrected(plates: pa.Table) -> bool:
    return bool(plates.num_rows) and plates.column("changed_at").null_count < plates.num_rows


def _stale_curations(catalog: Catalog) -> list[Stale]:
    """The newest curation of each name, where it is stale and no older one of its rules is current again: labels that
    were corrected and restored are those of before."""
    runs = sorted(catalog.table("curation_runs").to_pylist(), key=lambda run: run["curated_at"])
    newest = {run["curation"]: run for run in runs}

    def changed_since(run: Mapping[str, Any]) -> dict[str, tuple[Why, str]]:
        return corrected_since(catalog, json.loads(run["table_versions"]))

    found = []
    for name, run in newest.items():
        changed = changed_since(run)
        alike = (each for each in runs if (each["curation"], each["spec"]) == (name, run["spec"]))
        if changed and all(changed_since(each) for each in alike):
            found += _stale("curation", run["curation_id"], name, changed.values())
    return found


def _newest_packs(packs: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The newest pack of each curation name."""
    in_order = sorted(packs, key=lambda each: (str(each.get("built_at", "")), str(each["pack_id"])))
    return {str(each.get("curation", "")): each for each in in_order}


def _without_replaced(
    representations: Sequence[Mapping[str, Any]], packs: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Representations, without those of older packs that the newest pack of the same curation has too."""
    newest = {name: str(pack["pack_id"]) for name, pack in _newest_packs(packs).items()}
    newest_of = {str(pack["pack_id"]): newest[str(pack.get("curation", ""))] for pack in packs}

    def like(row: Mapping[str, Any], pack_id: str) -> tuple[Any, ...]:
        return (pack_id, *(row[column] for column in ("kind", "architecture", "block", "pooling", "alignment_variant")))

    there = {like(row, row["pack_id"]) for row in representations}
    return [
        row
        for row in representations
        if (newer := newest_of.get(row["pack_id"], row["pack_id"])) == row["pack_id"] or like(row, newer) not in there
    ]


def _stale_packs(catalog: Catalog, packs: Iterable[Mapping[str, Any]]) -> list[Stale]:
    """Packs that hold crops of plates whose pixels changed. Labels are not in a pack."""
    found = []
    for described in packs:
        changed = corrected_since(catalog, described.get("table_versions", {}))
        plates = described.get("source_dtypes")
        of_pack = {each: change for each, change in changed.items() if plates is None or each in plates}
        pixels = [change for change in of_pack.values() if change[0] == "pixels"]
        found += _stale("pack", described["pack_id"], described.get("curation", ""), pixels)
    return found


def _stale_representations(
    catalog: Catalog,
    representations: Iterable[Mapping[str, Any]],
    stale_packs: Iterable[Stale],
    described: Iterable[Mapping[str, Any]],
    plates: pa.Table,
) -> tuple[list[Stale], dict[str, frozenset[str]]]:
    """Stale representations, and the plates of every one of them that is known to have any."""
    packs = {each.identity: each for each in stale_packs}
    of_pack = {each["pack_id"]: frozenset(each.get("source_dtypes") or ()) for each in described}
    of_profiles: dict[str, set[str]] = {}
    for row in catalog.sql("select distinct representation_id, plate_id from profiles").to_pylist():
        of_profiles.setdefault(row["representation_id"], set()).add(row["plate_id"])
    rows = {row["plate_id"]: row for row in plates.to_pylist()}
    found: list[Stale] = []
    of_plates: dict[str, frozenset[str]] = {}
    for row in representations:
        identity = row["representation_id"]
        mine = of_pack.get(row["pack_id"]) or frozenset(of_profiles.get(identity, ()))
        of_plates[identity] = mine
        name = f"{row['kind']} {row['architecture']}, block {row['block']}, {row['pooling']}"
        if row["pack_id"] in packs:
            changes: Sequence[tuple[Why, str]] = [("pixels", plate) for plate in packs[row["pack_id"]].plates]
        elif row["kind"] == "aligned":
            changes = _changes_after(rows, mine, row["created_at"])
        else:
            continue
        aligned = {"representation_id": row["parent_id"] or "", "alignment_variant": row["alignment_variant"] or ""}
        found += _stale("representation", identity, name, changes, **aligned)
    return found, of_plates


def _stale_scores(
    catalog: Catalog, representations: Mapping[str, Stale], of_plates: Mapping[str, frozenset[str]], plates: pa.Table
) -> list[Stale]:
    """The newest summary score of each representation and task, where it is stale."""
    scores = catalog.sql(
        "select score_id, representation_id, benchmark, label, metric, scored_at from scores where seed = -1 "
        "qualify row_number() over (partition by representation_id, benchmark, label, metric, split, "
        "coalesce(alignment, 'none') order by scored_at desc) = 1 order by score_id"
    ).to_pylist()
    rows = {row["plate_id"]: row for row in plates.to_pylist()}
    found: list[Stale] = []
    for score in scores:
        name = f"{score['benchmark']} of {score['label']}, {score['metric']}"
        whole = representations.get(score["representation_id"])
        if whole is not None:
            changes = [(whole.why, plate) for plate in whole.plates]
        else:
            mine = of_plates.get(score["representation_id"], frozenset())
            changes = _changes_after(rows, mine, score["scored_at"])
        scored = {each: score[each] for each in ("benchmark", "label", "representation_id")}
        found += _stale("score", score["score_id"], name, changes, **scored)
    return found


def _stale_models(catalog: Catalog) -> list[Stale]:
    """The promoted model, where what it was chosen on is stale."""
    try:
        root = catalog.root
    except CatalogError:
        return []
    from cytolake.tracking import AliasNotFoundError, resolve_promoted, tracking_of
    from cytolake.tracking.store import sqlite_file

    database = sqlite_file(tracking_of(root))
    if database is not None and not database.is_file():  # before mlflow is imported, which takes seconds
        return []
    try:
        card = resolve_promoted(root)
    except AliasNotFoundError:
        return []
    except ConnectionError as error:  # what else is stale is known all the same
        logging.getLogger(__name__).warning("whether the promoted model is stale is not known: %s", error)
        return []
    changed = corrected_since(catalog, card.table_versions)
    return _stale("model", f"{card.name} version {card.version}", card.alias, changed.values())


def _changes_after(rows: Mapping[str, Mapping[str, Any]], plate_ids: Iterable[str], when: Any) -> list[tuple[Why, str]]:
    """Corrections of some plates after a moment, or at it: a clock may stand still between the two."""
    found: list[tuple[Why, str]] = []
    for plate_id in sorted(plate_ids):
        row = rows.get(plate_id)
        if row is None or row["changed_at"] is None or row["changed_at"] < when:
            continue
        name = f"{row['screen']}/{row['plate']}"
        if row["state"] not in (None, "visible"):
            found.append(("pixels", name))
        elif row["labelled_at"] is not None and row["labelled_at"] >= when:
            found.append(("labels", name))
    return found


def _stale(kind: Kind, identity: str, name: str, changes: Iterable[tuple[Why, str]], **of: str) -> list[Stale]:
    """One entry, or none where nothing changed."""
    listed = list(changes)
    if not listed:
        return []
    why: Why = "pixels" if any(each == "pixels" for each, _ in listed) else "labels"
    return [Stale(kind=kind, identity=identity, name=name, why=why, plates=tuple(sorted({n for _, n in listed})), **of)]


def _described_packs(catalog: Catalog) -> list[dict[str, Any]]:
    try:
        folder = catalog.root / "packs"
    except CatalogError:
        return []
    found = []
    for file in sorted(Path(folder).glob("[!.]*/pack.json")):
        try:
            found.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError:
            continue  # damaged: `Pack.open` says so
    return found
