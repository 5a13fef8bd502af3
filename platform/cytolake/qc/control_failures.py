"""Rules that fail most negative controls of a plate: more likely the rule is wrong there than the controls.

Such verdicts stay in the table and are shown, but exclude nothing unless a curation says so.
"""

from __future__ import annotations

MOST = 0.5
MIN_WELLS = 2


def failing_controls(verdicts: str) -> str:
    """SQL of the rules that fail more than half of a plate's judged negative controls, by plate, level and channel.

    Of rules of level site the sites of control wells are counted, of rules of level well the wells. Plates with fewer
    than two control wells that were judged have none.

    Args:
        verdicts: Relation with the columns of qc_verdicts, of one qc_id.

    Returns:
        A query, next to the tables `sites` and `wells`, for plate_id, level, rule, channel, n_judged and n_failed.
    """
    return f"""
        SELECT v.plate_id, coalesce(v.level, 'site') AS level, v.rule, coalesce(v.channel, '') AS channel,
               count(*) AS n_judged, count(*) FILTER (NOT v.is_pass) AS n_failed
        FROM {verdicts} v
        LEFT JOIN sites s ON s.site_id = v.site_id
        JOIN wells w ON w.well_id = coalesce(nullif(v.well_id, ''), s.well_id)
        WHERE w.control = 'negative' AND coalesce(v.level, 'site') <> 'plate'
              AND (NOT v.is_pass OR (v.threshold IS NOT NULL AND v.value IS NOT NULL))
        GROUP BY ALL
        HAVING count(DISTINCT w.well_id) >= {MIN_WELLS} AND count(*) FILTER (NOT v.is_pass) > {MOST} * count(*)
    """
