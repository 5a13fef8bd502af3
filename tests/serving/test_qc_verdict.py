from __future__ import annotations

import numpy as np
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit
from tests.qc.judged_plate import judged_plate

from cytolake.catalog import Catalog
from cytolake.qc.image_verdict import RuleVerdict
from cytolake.qc.verdicts import QcConfig, judge_sites, qc_profile
from cytolake.serving.problems import ServingError
from cytolake.serving.qc_verdict import judge_pixels, stored_verdicts

PROFILE = qc_profile("default")


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return judged_plate(tmp_path_factory.mktemp("judged"))


def test_an_array_that_is_no_image_is_answered_with_422():
    with pytest.raises(ServingError, match="1 channel names for 2 channels") as error:
        judge_pixels(np.zeros((2, 8, 8)), ("DNA",), PROFILE)
    assert error.value.status == 422


def rows_of(verdicts: tuple[RuleVerdict, ...]) -> list[tuple[object, ...]]:
    return sorted((v.level, v.channel_index, v.rule, v.value or 0, v.threshold or 0, v.is_pass) for v in verdicts)


def test_stored_verdicts_of_sites_and_of_their_crops_are_those_of_the_table(judged):
    catalog, _ = judged
    site_ids = catalog.table("sites")["site_id"].to_pylist()[::-1]
    of_sites = stored_verdicts(catalog, site_ids, of="sites")
    assert [verdict.asked for verdict in of_sites] == site_ids
    for verdict in of_sites:
        where = (
            f"site_id = '{verdict.site_id}' OR (level = 'well' AND well_id = '{verdict.well_id}') OR level = 'plate'"
        )
        rows = catalog.table("qc_verdicts", where=where).to_pylist()
        names = ("level", "channel_index", "rule")
        assert rows_of(verdict.verdicts) == sorted(
            (*(row[name] for name in names), row["value"] or 0, row["threshold"] or 0, row["is_pass"]) for row in rows
        )
        assert verdict.is_pass == all(row["is_pass"] for row in rows if row["level"] == "site")
        assert (verdict.qc_id, verdict.profile) == (PROFILE.qc_id, "default")
        assert verdict.judged_at is not None
    crops = catalog.table("crops").slice(0, 7).to_pylist()
    of_crops = stored_verdicts(catalog, [crop["crop_id"] for crop in crops])
    by_site = {verdict.site_id: verdict for verdict in of_sites}
    for crop, verdict in zip(crops, of_crops, strict=True):
        assert (verdict.asked, verdict.site_id) == (crop["crop_id"], crop["site_id"])
        assert verdict.verdicts == by_site[crop["site_id"]].verdicts


def test_a_duplicate_crop_has_a_duplicate_answer(judged):
    catalog, _ = judged
    crop_id = catalog.table("crops")["crop_id"][0].as_py()
    first, second = stored_verdicts(catalog, [crop_id, crop_id])
    assert first == second


def test_the_rules_that_judged_last_count(judged, tmp_path):
    _, plate = judged
    catalog: Catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, plate)
    crop_id = catalog.table("crops")["crop_id"][0].as_py()
    (nothing,) = stored_verdicts(catalog, [crop_id])
    assert (nothing.is_pass, nothing.qc_id, nothing.verdicts, nothing.reasons) == (None, None, (), ())
    for profile in ("default", "gross"):
        qc_id = judge_sites(catalog, QcConfig(profile=profile))
        (verdict,) = stored_verdicts(catalog, [crop_id])
        assert (verdict.qc_id, verdict.profile) == (qc_id, profile)


def test_unknown_ids_are_refused(judged):
    catalog, _ = judged
    for of in ("crops", "sites"):
        with pytest.raises(ServingError, match="1 of 1") as error:
            stored_verdicts(catalog, ["x' OR true"], of=of)
        assert error.value.status == 404
        assert 'first "x\' OR true"' in error.value.detail
