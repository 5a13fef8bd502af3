"""QC verdicts of the service: on images of a request, and on stored sites.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.qc.image_verdict import ImageError, ImageVerdict, RuleVerdict, judge_image, verdict_of_row
from cytolake.qc.newest import newest_of
from cytolake.qc.verdicts import QcProfile, profile_of
from cytolake.serving.problems import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVerdict:
    """Verdicts of the table qc_verdicts on a site."""

    asked: str
    """The crop id or site id of the request."""
    site_id: str
    well_id: str
    plate_id: str
    qc_id: str | None
    """Hash of the rules that judged the plate last; None where it was not judged."""
    profile: str | None
    """Name of these rules in catalog/qc.yaml; None where they are not in the file."""
    judged_at: datetime | None
    is_pass: bool | None
    """The site failed no rule of level site; None where it was not judged. Rules of well and plate do not count."""
    reasons: tuple[str, ...]
    """A sentence for each rule of level site that failed."""
    verdicts: tuple[RuleVerdict, ...]
    """Verdicts on the site, then on its well and its plate."""


def judge_pixels(pixels_CHW: NDArray[Any], channels: Sequence[str], profile: QcProfile) -> ImageVerdict:
    """`qc.image_verdict.judge_image` on an image of a request.

    Raises:
        ServingError: 422, the array is no image with named channels.
    """
    try:
        return judge_image(pixels_CHW, channels, profile)
    except ImageError as error:
        raise ServingError(status=422, detail=str(error)) from error


def stored_verdicts(
    catalog: Catalog, ids: Sequence[str], *, of: Literal["crops", "sites"] = "crops"
) -> list[StoredVerdict]:
    """The newest verdicts on sites, or on the sites of crops, in the order of the ids.

    The newest verdicts are those of the rules that judged the plate last.

    Args:
        ids: crops.crop_id or sites.site_id.
        of: Kind of the ids.

    Raises:
        ServingError: 404, ids that are not in the catalog; the message names the first.
    """
    key = "crop_id" if of == "crops" else "site_id"
    wanted = pa.table(
        {"requested_id": pa.array(list(ids), pa.string()), "position": pa.array(range(len(ids)), pa.int64())}
    )
    places = catalog.sql(
        f"SELECT requested_id, site_id, well_id, plate_id FROM wanted JOIN {of} ON {key} = requested_id "
        "ORDER BY position",
        wanted=wanted,
    )
    known = set(places["requested_id"].to_pylist())
    missing = [each for each in ids if each not in known]
    if missing:
        raise ServingError(
            status=404,
            detail=f"{len(missing)} of {len(ids)} {key}s are not in the catalog, first {missing[0]!r}. Take ids from "
            f"the table {of}.",
        )
    rows = catalog.sql(
        f"""
        WITH {newest_of("plate_id IN (SELECT plate_id FROM places)")}
        SELECT coalesce(v.level, 'site') AS level, v.site_id, v.well_id, v.plate_id, qc_id, v.channel, v.channel_index,
            v.rule, v.metric, v.value, v.threshold, v.is_pass, v.judged_at
        FROM qc_verdicts v JOIN newest USING (plate_id, qc_id)
        WHERE coalesce(v.level, 'site') = 'plate'
            OR (coalesce(v.level, 'site') = 'site' AND v.site_id IN (SELECT site_id FROM places))
            OR (v.level = 'well' AND v.well_id IN (SELECT well_id FROM places))
        ORDER BY v.channel_index, v.rule
        """,
        places=places,
    ).to_pylist()
    of_place: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        of_place.setdefault((row["level"], row[f"{row['level']}_id"]), []).append(row)
    profiles = {qc_id: profile_of(qc_id) for qc_id in {row["qc_id"] for row in rows}}
    return [_stored(place, of_place, profiles) for place in places.to_pylist()]


def _stored(
    place: Mapping[str, str],
    of_place: Mapping[tuple[str, str], list[dict[str, Any]]],
    profiles: Mapping[str, QcProfile | None],
) -> StoredVerdict:
    rows = [row for level in ("site", "well", "plate") for row in of_place.get((level, place[f"{level}_id"]), ())]
    qc_id = rows[0]["qc_id"] if rows else None
    profile = profiles[qc_id] if qc_id is not None else None
    says = {rule.name: rule.says for rule in profile.rules} if profile is not None else {}
    verdicts = tuple(verdict_of_row(row, says) for row in rows)
    of_site = [verdict for verdict in verdicts if verdict.level == "site"]
    failed = [verdict for verdict in of_site if not verdict.is_pass]
    return StoredVerdict(
        asked=place["requested_id"],
        site_id=place["site_id"],
        well_id=place["well_id"],
        plate_id=place["plate_id"],
        qc_id=qc_id,
        profile=None if profile is None else profile.name,
        judged_at=max((row["judged_at"].astimezone(UTC) for row in rows), default=None),
        is_pass=not failed if of_site else None,
        reasons=tuple(verdict.reason for verdict in failed),
        verdicts=verdicts,
    )
