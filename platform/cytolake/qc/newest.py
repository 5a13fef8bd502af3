"""Which verdicts count as the newest: of each plate those of the rules that judged it last, whichever these were."""

from __future__ import annotations

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog


def newest_of(where: str = "true") -> str:
    """For a WITH clause of a query on `qc_verdicts`: `newest`, the qc_id of each plate that was judged.

    Args:
        where: SQL condition on the plates, so that no other verdict is read.
    """
    return (
        "newest AS (SELECT plate_id, arg_max(qc_id, judged_at) AS qc_id FROM qc_verdicts "
        f"WHERE {where} GROUP BY plate_id)"
    )


def newest_qc(catalog: Catalog) -> dict[str, str]:
    """QC that each plate was judged by last, by plate id; no plate that was not judged."""
    judged = catalog.sql(f"WITH {newest_of()} SELECT plate_id, qc_id FROM newest")
    return dict(zip(judged["plate_id"].to_pylist(), judged["qc_id"].to_pylist(), strict=True))


def newest_qc_id(catalog: Catalog) -> str:
    """The one of most plates among those of `newest_qc`; of several the one that judged last.

    Raises:
        CatalogError: No plate was judged.
    """
    found = catalog.sql(
        f"WITH {newest_of()}, counted AS (SELECT qc_id, count(*) AS n FROM newest GROUP BY qc_id), "
        "times AS (SELECT qc_id, max(judged_at) AS judged_at FROM qc_verdicts GROUP BY qc_id) "
        "SELECT qc_id FROM counted JOIN times USING (qc_id) ORDER BY n DESC, judged_at DESC, qc_id LIMIT 1"
    )["qc_id"].to_pylist()
    if not found:
        raise CatalogError(f"{catalog.place}: no verdicts. Run `cytolake qc judge` first.")
    return str(found[0])
