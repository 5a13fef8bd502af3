"""The newest verdicts: for each plate those of the rules that judged it last, whichever rules these are."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import whole_id
from cytolake.catalog.tables import Catalog

QC_COLUMNS = ("qc_pass", "qc_reasons")
"""Columns that `add_quality` adds."""


def newest_of(where: str = "true") -> str:
    """SQL of a common table `newest`: the newest qc_id of each judged plate, for a WITH clause over `qc_verdicts`.

    Args:
        where: SQL condition on the plates, so that no other verdict is read.
    """
    return (
        "newest AS (SELECT plate_id, arg_max(qc_id, judged_at) AS qc_id FROM qc_verdicts "
        f"WHERE {where} GROUP BY plate_id)"
    )


def newest_qc(catalog: Catalog) -> dict[str, str]:
    """Plate id to the qc_id that judged the plate last; plates without verdicts are left out."""
    judged = catalog.sql(f"WITH {newest_of()} SELECT plate_id, qc_id FROM newest")
    return dict(zip(judged["plate_id"].to_pylist(), judged["qc_id"].to_pylist(), strict=True))


def newest_qc_id(catalog: Catalog) -> str:
    """The most frequent qc_id of `newest_qc`; of equally frequent ones the one that judged last.

    Raises:
        CatalogError: No plate has verdicts.
    """
    found = catalog.sql(
        f"WITH {newest_of()}, counted AS (SELECT qc_id, count(*) AS n FROM newest GROUP BY qc_id), "
        "times AS (SELECT qc_id, max(judged_at) AS judged_at FROM qc_verdicts GROUP BY qc_id) "
        "SELECT qc_id FROM counted JOIN times USING (qc_id) ORDER BY n DESC, judged_at DESC, qc_id LIMIT 1"
    )["qc_id"].to_pylist()
    if not found:
        raise CatalogError(f"{catalog.place}: no verdicts. Run `cytolake qc judge` first.")
    return str(found[0])


def stored_qc_id(catalog: Catalog, given: str) -> str:
    """The qc_id of the verdicts table that a person gives in full or by its beginning.

    Raises:
        CatalogError: None, or several. Lists those that there are.
    """
    known = catalog.sql("SELECT DISTINCT qc_id FROM qc_verdicts ORDER BY qc_id")["qc_id"].to_pylist()
    found = whole_id(given, known, "qc_id")
    if not found:
        raise CatalogError(f"qc_id {given} has no verdicts. There are: {', '.join(known) or 'none'}.")
    return found


_OF_SITES = f"""
WITH {newest_of()},
of_rule AS (
    SELECT site_id, rule, bool_and(is_pass) AS is_pass,
        string_agg(DISTINCT channel, ', ' ORDER BY channel) FILTER (WHERE NOT is_pass AND channel <> '') AS channels
    FROM qc_verdicts JOIN newest USING (plate_id, qc_id)
    WHERE coalesce(level, 'site') = 'site' GROUP BY site_id, rule
)
SELECT site_id, bool_and(is_pass) AS qc_pass, coalesce(string_agg(
    rule || CASE WHEN channels IS NULL THEN '' ELSE ' (' || channels || ')' END, '; ' ORDER BY rule
) FILTER (WHERE NOT is_pass), '') AS qc_reasons
FROM of_rule GROUP BY site_id
"""


def add_quality(catalog: Catalog, crops: pa.Table) -> pa.Table:
    """The crops with two more columns, `qc_pass` and `qc_reasons`, from the newest verdicts of their sites.

    Verdicts of level well and plate do not count, as in `Catalog.find_crops`.

    Args:
        catalog: The catalog with the verdicts, at its pinned version.
        crops: Any rows, with a column site_id.

    Returns:
        `qc_pass` is true where the site failed no rule in any channel and null where it was not judged. `qc_reasons`
        lists the failed rules, such as `defocus (DNA, ER); soft_focus`; empty without failures, null where not judged.
    """
    sites = catalog.sql(_OF_SITES)
    rows = pc.index_in(crops["site_id"], sites["site_id"].combine_chunks()).combine_chunks()
    for name in QC_COLUMNS:
        crops = crops.append_column(name, sites[name].combine_chunks().take(rows))
    return crops


def failed_verdicts(catalog: Catalog, at_most: int) -> pa.Table:
    """Failed rows of the newest verdicts: first those of sites, then by level and rule."""
    return catalog.sql(
        f"""
        WITH {newest_of()}
        SELECT qc_verdicts.* REPLACE (coalesce(level, 'site') AS level)
        FROM qc_verdicts JOIN newest USING (plate_id, qc_id) WHERE NOT is_pass
        ORDER BY coalesce(level, 'site') <> 'site', level, rule, plate_id, well_id, site_id, channel LIMIT {at_most}
        """
    )


def rule_counts(catalog: Catalog) -> pa.Table:
    """Counts of the newest verdicts: level, rule, qc_ids, n_judged, n_failed, ordered by level and rule."""
    return catalog.sql(
        f"""
        WITH {newest_of()}
        SELECT coalesce(level, 'site') AS level, rule, list(DISTINCT qc_id ORDER BY qc_id) AS qc_ids,
            count(is_pass) AS n_judged, count_if(NOT is_pass) AS n_failed
        FROM qc_verdicts JOIN newest USING (plate_id, qc_id) GROUP BY ALL ORDER BY ALL
        """
    )
