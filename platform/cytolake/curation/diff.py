"""Differences between two curations: crops added, crops removed, and the rules responsible."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cytolake.catalog.ids import whole_id
from cytolake.catalog.tables import Catalog
from cytolake.curation.rules import CurationError

NOT_THERE = "not in the catalog then"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationDiff:
    """Two curations compared crop by crop."""

    first: dict[str, Any]
    """Row of curation_runs."""
    second: dict[str, Any]
    n_both: int
    """Crops that both keep."""
    added: tuple[str, ...]
    """Ids of crops that the second keeps and the first does not, in order."""
    removed: tuple[str, ...]
    """Ids of crops that the first keeps and the second does not, in order."""
    added_by_reason: dict[str, int]
    """Reason of the first curation for excluding the added crops to their number, largest first."""
    removed_by_reason: dict[str, int]
    """Reason of the second curation for excluding the removed crops to their number, largest first."""
    by_plate: dict[str, tuple[int, int]]
    """Plate to numbers of crops added and removed; changed plates only, most changed first."""
    by_perturbation: dict[str, tuple[int, int]]
    """Perturbation to numbers of crops added and removed; changed ones only, most changed first."""
    rules: tuple[str, ...]
    """Rules that differ or exist in one curation only, as `rule.key: first -> second`."""
    tables: tuple[str, ...]
    """Tables read at different versions, as `table: first -> second`."""


def diff_curations(catalog: Catalog, first: str, second: str) -> CurationDiff:
    """Compare two curations.

    Args:
        first: An id, at least its first 6 digits, or a name, which means the newest of that name.
        second: As `first`. The same name twice compares the newest with the one before it.

    Raises:
        CatalogError: No such curation, or several whose ids begin so; lists them.
    """
    runs = (
        catalog.table("curation_runs").sort_by([("curated_at", "descending"), ("curation_id", "ascending")]).to_pylist()
    )
    old, new = _find(runs, first), _find(runs, second)
    if first == second and old["curation"] == first:
        earlier = [run for run in runs if run["curation"] == first]
        if len(earlier) < 2:
            raise CurationError(f"curation {first}: there is only one, {new['curation_id']}. Give another id or name.")
        old = earlier[1]
    both = {"old": old["curation_id"], "new": new["curation_id"]}
    changed = catalog.sql(
        "SELECT crop_id, coalesce(b.is_kept, false) AS is_added, "
        "coalesce(CASE WHEN coalesce(b.is_kept, false) THEN a.reason ELSE b.reason END, $not_there) AS reason "
        "FROM (SELECT * FROM curations WHERE curation_id = $old) a FULL JOIN "
        "(SELECT * FROM curations WHERE curation_id = $new) b USING (crop_id) "
        "WHERE coalesce(a.is_kept, false) <> coalesce(b.is_kept, false) ORDER BY crop_id",
        parameters={**both, "not_there": NOT_THERE},
    )
    n_both = catalog.sql(
        "SELECT count(*) AS n FROM curations a JOIN curations b USING (crop_id) WHERE a.is_kept AND b.is_kept AND "
        "a.curation_id = $old AND b.curation_id = $new",
        parameters=both,
    )
    rows = changed.to_pylist()
    return CurationDiff(
        first=old,
        second=new,
        n_both=n_both.column(0)[0].as_py(),
        added=tuple(row["crop_id"] for row in rows if row["is_added"]),
        removed=tuple(row["crop_id"] for row in rows if not row["is_added"]),
        added_by_reason=_by_reason(rows, is_added=True),
        removed_by_reason=_by_reason(rows, is_added=False),
        by_plate=_by_column(catalog, changed, "c.plate"),
        by_perturbation=_by_column(catalog, changed, "w.perturbation"),
        rules=tuple(_changed_rules(json.loads(old["spec"]), json.loads(new["spec"]))),
        tables=tuple(_changed_values(json.loads(old["table_versions"]), json.loads(new["table_versions"]), "")),
    )


def _find(runs: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The run of an id, or the newest of a name; `runs` are ordered newest first."""
    named = [run for run in runs if wanted in (run["curation_id"], run["curation"])]
    if named:
        return named[0]
    identity = whole_id(wanted, (run["curation_id"] for run in runs), "curation")
    if identity:
        return next(run for run in runs if run["curation_id"] == identity)
    listed = "; ".join(
        f"{run['curation_id']} ({run['curation']}, {run['curated_at']:%Y-%m-%d %H:%M})" for run in runs[:10]
    )
    raise CurationError(
        f"curation {wanted}: 0 with this id or name, expected 1. There are: {listed or 'none'}. "
        "Curate first: `cytolake curate`."
    )


def _by_reason(rows: list[dict[str, Any]], *, is_added: bool) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        if row["is_added"] == is_added:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _by_column(catalog: Catalog, changed: Any, column: str) -> dict[str, tuple[int, int]]:
    counts = catalog.sql(
        f"SELECT coalesce({column}, '') AS label, count(*) FILTER (is_added) AS added, "
        "count(*) FILTER (NOT is_added) AS removed FROM changed_crops JOIN crops c USING (crop_id) "
        "LEFT JOIN wells w ON w.well_id = c.well_id GROUP BY label ORDER BY count(*) DESC, label",
        changed_crops=changed,
    ).to_pylist()
    return {row["label"]: (row["added"], row["removed"]) for row in counts}


def _changed_rules(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    lines = _changed_values({"seed": first["seed"]}, {"seed": second["seed"]}, "")
    old, new = _by_rule(first["steps"]), _by_rule(second["steps"])
    for rule in [*old, *(rule for rule in new if rule not in old)]:
        if rule not in new or rule not in old:
            lines.append(
                f"{rule}: {'not there' if rule not in old else 'there'} -> {'there' if rule in new else 'gone'}"
            )
        else:
            lines += _changed_values(old[rule], new[rule], f"{rule}.")
    common = [rule for rule in old if rule in new]
    if common != [rule for rule in new if rule in old]:
        lines.append(f"order: {', '.join(old)} -> {', '.join(new)}")
    return lines


def _by_rule(steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Steps under their rule's name; the second of a rule is `rule 2`."""
    named: dict[str, dict[str, Any]] = {}
    for step in steps:
        n = 1 + sum(other["rule"] == step["rule"] for other in named.values())
        named[step["rule"] if n == 1 else f"{step['rule']} {n}"] = step
    return named


def _changed_values(first: dict[str, Any], second: dict[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}{key}: {first.get(key, 'none')} -> {second.get(key, 'none')}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]
