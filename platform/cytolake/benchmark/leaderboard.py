"""The leaderboard: for each benchmark, the best representation of every encoder, from the `scores` table.

An encoder's best block is the best of several on the same wells, and so reads a little high; an untrained encoder's is
chosen the same way, so their difference is fair. Scores of different protocols (other settings, wells or labels) never
stand in one ranking: the newest protocol of a benchmark counts. Each expression screen has rankings of its own, so that
it hides none of images or of another screen.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cytolake.benchmark.profiles.tasks import ERRORS, GUARD_RAILS, NUISANCES
from cytolake.catalog import Catalog

TASK_COLUMNS = ("benchmark", "label", "metric", "split", "alignment", "screen_id")
"""What tells one ranking from another. `screen_id` is the `pack_id` of an expression screen, and empty for images."""
EXPRESSION = "expression"
"""`representations.kind` of the embeddings of an expression screen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderboardFilter:
    """Which rankings; an empty text means all."""

    benchmark: str = ""
    label: str = ""
    metric: str = ""
    alignment: str = ""
    pack_id: str = ""
    """Rankings that a representation of this pack is in; others of the same protocol stay beside it."""
    representation_ids: tuple[str, ...] = ()
    """Rankings that one of these is in, where each of them stands though another block of its encoder is better."""
    all_blocks: bool = False
    """Every block and pooling, not the best of each encoder alone."""


def leaderboard(catalog: Catalog, wanted: LeaderboardFilter | None = None) -> pa.Table:
    """Rows of all rankings, each from the best down; of guard rails and errors the least is best.

    Returns:
        Columns: those of `TASK_COLUMNS`, `pack_id`, `kind`, `architecture`, `model_id`, `block`, `pooling`,
        `parent_id` and `alignment_variant` (empty, but for kind `aligned`), `representation_id`, `value`, `ci_low`,
        `ci_high`, `n_test`, `n_classes`, `best_of` (representations of the encoder that were scored), `protocol`,
        `details`, `scored_at`.
    """
    wanted = wanted or LeaderboardFilter()
    conditions = ["s.seed = -1", "s.value is not null"]
    for name in ("benchmark", "label", "metric"):
        if getattr(wanted, name):
            conditions.append(f"s.{name} = {_quoted(getattr(wanted, name))}")
    if wanted.alignment:
        conditions.append(f"coalesce(s.alignment, 'none') = {_quoted(wanted.alignment)}")
    named = ", ".join(map(_quoted, wanted.representation_ids)) or "null"
    of_pack = f"pack_id = {_quoted(wanted.pack_id)}" if wanted.pack_id else "true"
    of_these = f"representation_id in ({named})" if wanted.representation_ids else "true"
    tasks = ", ".join(TASK_COLUMNS)
    guard_rails, nuisances, errors = (", ".join(map(_quoted, names)) for names in (GUARD_RAILS, NUISANCES, ERRORS))
    return catalog.sql(
        f"""
        with scored as (
            select s.benchmark, s.label, s.metric, coalesce(s.split, '') as split,
                   coalesce(s.alignment, 'none') as alignment,
                   case when r.kind = {_quoted(EXPRESSION)} then r.pack_id else '' end as screen_id,
                   coalesce(s.protocol, '') as protocol, r.pack_id, r.kind, r.architecture, r.model_id, r.block,
                   r.pooling, coalesce(r.parent_id, '') as parent_id,
                   coalesce(r.alignment_variant, '') as alignment_variant, s.representation_id, s.value, s.ci_low,
                   s.ci_high, s.n_test, s.n_classes, s.details, s.scored_at,
                   case when s.benchmark in ({guard_rails}) or s.metric in ({errors})
                             or (s.benchmark like 'linear_probe%' and s.label in ({nuisances}))
                        then -s.value else s.value end as merit
            from scores s join representations r using (representation_id)
            where {" and ".join(conditions)}
        ),
        newest as (
            select {tasks}, arg_max(protocol, scored_at) as protocol from scored
            where {of_pack} and {of_these} group by {tasks}
        ),
        ranked as (
            select scored.*,
                   row_number() over (partition by {tasks}, kind, model_id
                                      order by merit desc, block, pooling) as place,
                   count(*) over (partition by {tasks}, kind, model_id) as best_of
            from scored join newest using ({tasks}, protocol)
        )
        select {tasks}, pack_id, kind, architecture, model_id, block, pooling, parent_id, alignment_variant,
               representation_id, value, ci_low, ci_high, n_test, n_classes, best_of, protocol, details, scored_at
        from ranked {"" if wanted.all_blocks else f"where place = 1 or representation_id in ({named})"}
        order by {tasks}, merit desc, kind, model_id, block, pooling
        """
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
