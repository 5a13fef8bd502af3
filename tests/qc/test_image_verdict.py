from __future__ import annotations

import math
import re

import numpy as np
import pytest
from tests.catalog.small_plate import CHANNELS
from tests.qc.judged_plate import judged_plate

from cytolake.catalog import ids, table_contract
from cytolake.qc.image_verdict import ImageError, judge_image
from cytolake.qc.metrics import METRICS, measure_site
from cytolake.qc.verdicts import qc_profile
from cytolake.screens.images.pixels import read_site

PROFILE = qc_profile("default")
NEEDS_PLATE = {rule.name for rule in PROFILE.rules if rule.level != "site" or rule.joint or rule.absolute is None}


def cells(n_channels=2, size=160, seed=0) -> np.ndarray:
    """Bright discs on a noisy background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = rng.normal(300, 10, (n_channels, size, size))
    for centre_y, centre_x in rng.uniform(10, size - 10, (18, 2)):
        image += 2000 * (np.hypot(y - centre_y, x - centre_x) < 8)
    return image.clip(0).astype(np.uint16)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return judged_plate(tmp_path_factory.mktemp("judged"))


def test_an_image_has_the_metrics_and_verdicts_that_ingest_stored_for_it(judged):
    catalog, plate = judged
    n_compared = 0
    for site in plate.sites:
        site_id = ids.site_id(site.screen, site.plate, site.well, site.site, site.timepoint, site.z)
        verdict = judge_image(read_site(site, is_corrected=False), CHANNELS, PROFILE)
        rows = catalog.table("qc_metrics", where=f"site_id = '{site_id}'").sort_by("channel_index").to_pylist()
        assert [row["channel"] for row in rows] == [quality.channel for quality in verdict.channels]
        for row, quality in zip(rows, verdict.channels, strict=True):
            assert {metric: row[metric] for metric in METRICS} == quality.metrics
        stored = {
            (row["channel_index"], row["rule"]): (row["value"], row["threshold"], row["is_pass"])
            for row in catalog.table("qc_verdicts", where=f"site_id = '{site_id}'").to_pylist()
            if row["threshold"] is not None
        }
        sent = {
            (each.channel_index, each.rule): (each.value, each.threshold, each.is_pass)
            for quality in verdict.channels
            for each in quality.verdicts
        }
        assert sent == stored
        n_compared += len(sent)
        assert verdict.qc_id == PROFILE.qc_id
    # Three rules need the plate, and `debris` needs sites of more objects than these have.
    assert n_compared == 6 * 2 * (len([rule for rule in PROFILE.rules if rule.level == "site"]) - 4)


def test_what_fails_alone_fails_on_its_plate_too():
    """The stricter limit counts there."""
    sites = {f"s{i}": cells(seed=i) for i in range(9)} | {"dark": np.full((2, 160, 160), 300, np.uint16)}
    sites["dark"][:, 0, 0] = 301
    metrics = table_contract("qc_metrics").rows(
        {"site_id": site, "plate_id": "p", "channel": CHANNELS[index], "channel_index": index, **measured}
        for site, pixels in sites.items()
        for index, measured in enumerate(measure_site(pixels))
    )
    failed = {
        (row["site_id"], row["channel_index"], row["rule"])
        for row in PROFILE.judge(metrics).to_pylist()
        if not row["is_pass"]
    }
    failed_alone = {
        (site, verdict.channel_index, verdict.rule)
        for site, pixels in sites.items()
        for quality in judge_image(pixels, CHANNELS, PROFILE).channels
        for verdict in quality.verdicts
        if not verdict.is_pass
    }
    assert failed_alone
    assert failed_alone <= failed


def test_the_spoilt_channel_is_named_with_the_reason():
    pixels = cells()
    pixels[1, 40:80, 40:80] = 65535
    verdict = judge_image(pixels, ("Hoechst 33342", "ER"), PROFILE)
    sound, spoilt = verdict.channels
    assert (sound.channel, sound.is_pass, sound.reasons) == ("DNA", True, ())
    assert not spoilt.is_pass
    assert not verdict.is_pass
    (saturation,) = [reason for reason in spoilt.reasons if "saturated" in reason]
    assert saturation.startswith("ER: saturated: ")
    assert "(saturated_share 0.0" in saturation
    assert "limit 0.004)" in saturation


def test_a_rule_of_fluorescence_is_named_as_not_judged_in_brightfield():
    verdict = judge_image(cells(), ("DNA", "phase contrast"), PROFILE)
    reasons = {left.rule: left.reason for left in verdict.not_judged}
    assert reasons["noise"] == "not judged in Brightfield: made for fluorescence; Brightfield is brightfield"
    assert "noise" not in {each.rule for each in verdict.channels[1].verdicts}
    assert "noise" in {each.rule for each in verdict.channels[0].verdicts}


def test_a_sound_image_passes():
    assert judge_image(cells(), CHANNELS, PROFILE).is_pass


@pytest.mark.parametrize("pixels", [np.zeros((1, 64, 64), np.uint16), np.ones((1, 1, 1), np.float32)])
def test_an_image_of_nothing_is_judged_empty(pixels):
    verdict = judge_image(pixels, ("DNA",), PROFILE)
    assert any("empty" in reason for reason in verdict.channels[0].reasons)
    assert all(math.isfinite(value) for value in verdict.channels[0].metrics.values())


@pytest.mark.parametrize("profile", ["default", "gross"])
def test_every_rule_is_judged_or_named_as_not_judged(profile):
    rules = qc_profile(profile)
    verdict = judge_image(cells(), CHANNELS, rules)
    judged_rules = {each.rule for quality in verdict.channels for each in quality.verdicts}
    left_out = {each.rule for each in verdict.not_judged if not each.is_partly}
    assert left_out == NEEDS_PLATE
    assert judged_rules | left_out == {rule.name for rule in rules.rules}
    assert not judged_rules & left_out
    reasons = {each.rule: each.reason for each in verdict.not_judged}
    assert reasons["control_separation"] == "not judged: needs the plate"
    assert reasons["soft_focus"] == "not judged: needs the plate's other sites"
    assert reasons["few_cells"] == "not judged: needs the plate's other wells"
    assert reasons["defocus"].startswith("judged by its absolute limit alone")
    assert "saturation" not in reasons


@pytest.mark.parametrize(
    ("pixels", "channels", "message"),
    [
        (np.zeros((2, 8, 8)), ("DNA",), "1 channel names for 2 channels"),
        (np.zeros((8, 8)), ("DNA",), "(channels, height, width)"),
        (np.zeros((1, 0, 8)), ("DNA",), "(channels, height, width)"),
        (np.zeros((1, 8, 8), complex), ("DNA",), "complex128"),
        (np.full((1, 8, 8), np.nan), ("DNA",), "finite"),
    ],
)
def test_what_is_no_image_is_refused(pixels, channels, message):
    with pytest.raises(ImageError, match=re.escape(message)):
        judge_image(pixels, channels, PROFILE)
