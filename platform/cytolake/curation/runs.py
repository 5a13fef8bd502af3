"""Finds the run of a curation, a row of `curation_runs`, that later stages work on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cytolake.catalog.stale import corrected_since
from cytolake.catalog.tables import Catalog
from cytolake.curation.curate import CurateConfig, curation_spec, with_modalities
from cytolake.curation.rules import QcStep


def newest_run(
    catalog: Catalog, config: CurateConfig, *, modalities: tuple[str, ...] = ()
) -> tuple[dict[str, Any], bool] | None:
    """The run of a curation that later stages work on. Writes nothing.

    Rules or labels that were changed and changed back are those of an earlier run, which `curate` finds again.

    Args:
        catalog: The catalog with the runs.
        config: The spec.
        modalities: As for `curate`.

    Returns:
        The newest run of the spec as it is declared now, of labels and pixels as they are now, and true. Where none has
        these rules, the newest of the name, and false. None where there is none of the name.

    Raises:
        CatalogError: The spec is invalid.
    """
    runs = catalog.table("curation_runs", where="curation = ?", parameters=[config.name])
    ordered = runs.sort_by([("curated_at", "descending"), ("curation_id", "ascending")]).to_pylist()
    if not ordered:
        return None
    rules = with_modalities(curation_spec(config), modalities).resolved(catalog).as_json()
    same = [run for run in ordered if run["spec"] == rules]
    some = same or ordered
    current = (run for run in some if not corrected_since(catalog, json.loads(run["table_versions"])))
    return next(current, some[0]), bool(same)


def qc_of_run(run: Mapping[str, Any]) -> str:
    """The qc_id of the verdicts that a run, a row of `curation_runs`, excluded by; empty for none."""
    steps = json.loads(run["spec"])["steps"]
    return next((step["qc_id"] for step in steps if step["rule"] == QcStep.rule), "")
