"""What quality control said last: of each plate, and of each crop's site as columns beside the crops."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import Catalog
from cytolake.qc.newest import newest_of

QC_COLUMNS = ("qc_pass", "qc_reasons")

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


def failed_verdicts(catalog: Catalog, at_most: int) -> pa.Table:
    """Rows of qc_verdicts that failed, of each plate's `newest_qc`: those of sites first, then by level and rule."""
    return catalog.sql(
        f"""
        WITH {newest_of()}
        SELECT qc_verdicts.* REPLACE (coalesce(level, 'site') AS level)
        FROM qc_verdicts JOIN newest USING (plate_id, qc_id) WHERE NOT is_pass
        ORDER BY coalesce(level, 'site') <> 'site', level, rule, plate_id, well_id, site_id, channel LIMIT {at_most}
        """
    )


def rule_counts(catalog: Catalog) -> pa.Table:
    """What `newest_qc` judged: level, rule, qc_ids, n_judged, n_failed, in the order of level and rule."""
    return catalog.sql(
        f"""
        WITH {newest_of()}
        SELECT coalesce(level, 'site') AS level, rule, list(DISTINCT qc_id ORDER BY qc_id) AS qc_ids,
            count(is_pass) AS n_judged, count_if(NOT is_pass) AS n_failed
        FROM qc_verdicts JOIN newest USING (plate_id, qc_id) GROUP BY ALL ORDER BY ALL
        """
    )


def add_quality(catalog: Catalog, crops: pa.Table) -> pa.Table:
    """The crops with two columns more: `qc_pass` and `qc_reasons`.

    They are told by each plate's `newest_qc`, of the sites. Those of level well and plate do not count, as in
    `Catalog.find_crops`.

    Args:
        catalog: Where the verdicts are, at the version it is pinned to.
        crops: Any rows, with a column site_id.

    Returns:
        `qc_pass` is true where the site failed no rule in any channel and null where it was not judged. `qc_reasons`
        is the failed rules, such as `defocus (DNA, ER); soft_focus`; empty where none failed, null where not judged.
    """
    sites = catalog.sql(_OF_SITES)
    rows = pc.index_in(crops["site_id"], sites["site_id"].combine_chunks()).combine_chunks()
    for name in QC_COLUMNS:
        crops = crops.append_column(name, sites[name].combine_chunks().take(rows))
    return crops
