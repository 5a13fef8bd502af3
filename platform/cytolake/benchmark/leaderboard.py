"""Leaderboard: for each benchmark, a ranking of one representation of every encoder and baseline.

The block of an encoder in a ranking is chosen on other data where possible; `chosen_by` names the method:

    other plates          probes: on every plate (batch, ...) the block that the other plates choose, also for baselines
    linear_probe of ...   the best block of the newest linear probe of wells, the same in all rankings
    the best of these     neither exists: the best of `best_of` on the scored wells, which is biased upwards

Scores of different protocols (other settings, wells or labels) are never in one ranking. The newest protocol of every
encoder is shown, so an import of other wells adds a ranking and hides none. Each expression screen has its own
rankings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cytolake.benchmark.linear_probe import WELL_METRIC
from cytolake.benchmark.merit import ERRORS, GUARD_RAILS, NUISANCES
from cytolake.benchmark.unit_scores import Candidate, chosen_score, units_in_words
from cytolake.catalog import Catalog

TASK_COLUMNS = ("benchmark", "label", "metric", "split", "alignment", "screen_id")
"""Columns that define a ranking. `screen_id` is the `pack_id` of an expression screen, and empty for images."""
EXPRESSION = "expression"
"""`representations.kind` of the embeddings of an expression screen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderboardFilter:
    """Selection of rankings; an empty text selects all."""

    benchmark: str = ""
    label: str = ""
    metric: str = ""
    alignment: str = ""
    pack_id: str = ""
    """Rankings with a representation of this pack, together with all others of the same protocol."""
    representation_ids: tuple[str, ...] = ()
    """Rankings with one of these; each is listed, also where another block represents its encoder."""
    all_blocks: bool = False
    """Every block and pooling instead of one of each encoder."""


BEST_OF_THESE = "the best of these"


def leaderboard(catalog: Catalog, wanted: LeaderboardFilter | None = None) -> pa.Table:
    """Rows of all rankings, each from the best down; for guard rails and errors the lowest value is the best.

    Returns:
        Columns: those of `TASK_COLUMNS`, `protocol` (one ranking for each, the newest first), `pack_id`, `kind`,
        `architecture`, `model_id`, `block`, `pooling`, `parent_id` and `alignment_variant` (empty except for the kind
        `aligned`), `representation_id`, `value`, `ci_low`, `ci_high`, `n_test`, `n_classes`, `best_of` (number of
        scored representations of the encoder), `chosen_by` (empty without a choice), `details`, `scored_at`.
    """
    wanted = wanted or LeaderboardFilter()
    rows = _scored(catalog, wanted)
    rankings: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        task = tuple(row[name] for name in TASK_COLUMNS)
        rankings.setdefault(task, {}).setdefault(row["protocol"], []).append(row)
    by_probe = {} if wanted.all_blocks else _chosen_by_probe(catalog)
    shown: list[dict[str, Any]] = []
    for task in sorted(rankings):
        protocols = rankings[task]
        for protocol in _newest_of_each_encoder(protocols, wanted):
            shown += _ranking(protocols[protocol], wanted, by_probe)
    columns = (
        *TASK_COLUMNS, "protocol", "pack_id", "kind", "architecture", "model_id", "block", "pooling", "parent_id",
        "alignment_variant", "representation_id", "value", "ci_low", "ci_high", "n_test", "n_classes", "best_of",
        "chosen_by", "details", "scored_at",
    )  # fmt: skip
    schema = catalog.table("scores", where="false").schema
    types = {"block": pa.int32(), "best_of": pa.int64(), **{name: schema.field(name).type for name in schema.names}}
    return pa.Table.from_pylist(
        [{name: row[name] for name in columns} for row in shown],
        schema=pa.schema([(name, types.get(name, pa.string())) for name in columns]),
    )


def _scored(catalog: Catalog, wanted: LeaderboardFilter) -> list[dict[str, Any]]:
    """Summary scores of the selected rankings, with their representations."""
    conditions = ["s.seed = -1", "s.value is not null"]
    filters = {name: getattr(wanted, name) for name in ("benchmark", "label", "metric", "alignment")}
    filters = {name: value for name, value in filters.items() if value}
    for name in filters:
        column = f"s.{name}" if name != "alignment" else "coalesce(s.alignment, 'none')"
        conditions.append(f"{column} = ${name}")
    found: list[dict[str, Any]] = catalog.sql(
        f"""
        select s.benchmark, s.label, s.metric, coalesce(s.split, '') as split,
               coalesce(s.alignment, 'none') as alignment,
               case when r.kind = $expression then r.pack_id else '' end as screen_id,
               coalesce(s.protocol, '') as protocol, r.pack_id, r.kind, r.architecture, r.model_id, r.block,
               r.pooling, coalesce(r.parent_id, '') as parent_id,
               coalesce(r.alignment_variant, '') as alignment_variant, s.representation_id, s.value, s.ci_low,
               s.ci_high, s.n_test, s.n_classes, s.details, s.scored_at,
               case when s.benchmark in $guard_rails or s.metric in $errors
                         or (s.benchmark like 'linear_probe%' and s.label in $nuisances)
                    then -1 else 1 end as sign
        from scores s join representations r using (representation_id)
        where {" and ".join(conditions)}
        """,
        parameters={
            **filters,
            "expression": EXPRESSION,
            "guard_rails": list(GUARD_RAILS),
            "errors": list(ERRORS),
            "nuisances": list(NUISANCES),
        },
    ).to_pylist()
    return found


def _newest_of_each_encoder(
    protocols: Mapping[str, Sequence[Mapping[str, Any]]], wanted: LeaderboardFilter
) -> list[str]:
    """Protocols that are the newest of some selected encoder, the newest first."""
    newest: dict[tuple[str, str], tuple[Any, str]] = {}
    for protocol, rows in protocols.items():
        for row in rows:
            is_named = (not wanted.pack_id or row["pack_id"] == wanted.pack_id) and (
                not wanted.representation_ids or row["representation_id"] in wanted.representation_ids
            )
            if is_named:
                encoder = (row["kind"], row["model_id"])
                newest[encoder] = max(newest.get(encoder, (row["scored_at"], "")), (row["scored_at"], protocol))
    dates = {protocol: max(row["scored_at"] for row in protocols[protocol]) for _, protocol in newest.values()}
    return sorted(dates, key=lambda protocol: (dates[protocol], protocol), reverse=True)


def _ranking(
    rows: Sequence[dict[str, Any]], wanted: LeaderboardFilter, by_probe: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Visible rows of one ranking, from the best down."""
    of_encoder: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        of_encoder.setdefault((row["kind"], row["model_id"]), []).append(row)
    shown: list[dict[str, Any]] = []
    for of in of_encoder.values():
        of.sort(key=_merit)
        for row in of:
            row |= {"best_of": len(of), "chosen_by": ""}
        if wanted.all_blocks:
            shown += of
            continue
        first = _stands_for(of, by_probe)
        shown.append(first)
        shown += [
            row
            for row in of
            if row["representation_id"] in wanted.representation_ids
            and row["representation_id"] != first["representation_id"]
        ]
    return sorted(shown, key=_merit)


def _stands_for(rows: Sequence[dict[str, Any]], by_probe: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The representation of an encoder in a ranking, with a score that its choice does not bias where there is one."""
    if len(rows) == 1:
        return rows[0]
    if rows[0]["sign"] > 0:
        candidates = [Candidate.of_details(json.loads(row["details"] or "{}")) for row in rows]
        known = [each for each in candidates if each is not None]
        if len(known) == len(rows) and len({each.scores.names for each in known}) == 1:
            found = chosen_score(known)
            low, high = (value if math.isfinite(value) else None for value in (found.low, found.high))
            by = f"other {units_in_words(known[0].scores.unit)}"
            return {**rows[0], "value": found.value, "ci_low": low, "ci_high": high, "chosen_by": by}
    chosen, label = by_probe.get(rows[0]["model_id"], ("", ""))
    for row in rows:
        if row["representation_id"] == chosen:
            return {**row, "chosen_by": f"linear_probe of {label}"}
    return {**rows[0], "chosen_by": BEST_OF_THESE}


def _chosen_by_probe(catalog: Catalog) -> dict[str, tuple[str, str]]:
    """By model, the best representation of its newest linear probe of wells, and the label of that probe."""
    rows = catalog.sql(
        """
        select r.model_id, s.representation_id, s.label, s.value, s.scored_at, s.protocol
        from scores s join representations r using (representation_id)
        where s.seed = -1 and s.benchmark like 'linear_probe%' and s.metric = $metric
              and s.label not in $nuisances and s.value is not null
        """,
        parameters={"metric": WELL_METRIC, "nuisances": list(NUISANCES)},
    ).to_pylist()
    newest: dict[str, tuple[Any, str]] = {}
    for row in rows:
        newest[row["model_id"]] = max(
            newest.get(row["model_id"], (row["scored_at"], "")), (row["scored_at"], row["protocol"])
        )
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        model = row["model_id"]
        if row["protocol"] == newest[model][1] and (model not in best or row["value"] > best[model]["value"]):
            best[model] = row
    return {model: (row["representation_id"], row["label"]) for model, row in best.items()}


def _merit(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (-row["sign"] * row["value"], row["kind"], row["model_id"], row["block"], row["pooling"])
