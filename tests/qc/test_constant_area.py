"""Blocks of exactly one value fail quality control; saturated, masked and dark images do not."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.catalog import table_contract
from cytolake.qc.constant_area import constant_area
from cytolake.qc.metrics import measure_site
from cytolake.qc.verdicts import qc_profile

SIZE = 128
Y, X = np.mgrid[:SIZE, :SIZE]
CELLS = np.exp(-(((Y % 43 - 21) ** 2 + (X % 43 - 21) ** 2) / 60.0))


def field(seed=0, offset=100, signal=2000):
    """Cells on the offset of a camera, with noise of shot and reading."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.poisson(offset + signal * CELLS) + rng.normal(0, 3, CELLS.shape), 0, 65535).astype(np.uint16)


def masked(pixels, radius):
    return np.where(radius**2 > (Y - SIZE / 2 + 0.5) ** 2 + (X - SIZE / 2 + 0.5) ** 2, pixels, 0).astype(pixels.dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("value", [0, 1000, 7])
@pytest.mark.parametrize("place", [np.s_[64:], np.s_[:, 96:], np.s_[32:64, 64:96]], ids=["half", "quarter", "tile"])
def test_a_lost_part_is_measured_whatever_value_it_has(dtype, value, place):
    pixels = field().astype(dtype)
    assert constant_area(pixels) == 0
    pixels[place] = value
    assert constant_area(pixels) == pytest.approx((pixels == value).mean(), abs=0.01)


@pytest.mark.parametrize("offset", [0, 3, 20])
def test_a_lost_half_is_found_where_the_camera_has_hardly_an_offset(offset):
    rng = np.random.default_rng(1)
    pixels = rng.poisson(offset + 15 + 900 * CELLS).astype(np.uint8)
    pixels[SIZE // 2 :] = 0
    assert constant_area(pixels) == pytest.approx(0.5)


def test_an_image_of_one_value_is_all_block():
    assert constant_area(np.full((32, 40), 7)) == 1


@pytest.mark.parametrize("photons", [0.001, 0.02, 0.3, 2])
@pytest.mark.parametrize("signal", [3, 40])
def test_a_dark_image_of_few_photons_has_no_block(photons, signal):
    pixels = np.random.default_rng(2).poisson(photons + signal * CELLS).astype(np.uint8)
    assert constant_area(pixels) == 0


def test_a_background_subtracted_to_zero_has_no_block():
    pixels = np.clip(field().astype(int) - 130, 0, None).astype(np.uint16)
    assert (pixels == 0).mean() > 0.3
    assert constant_area(pixels) == 0
    assert constant_area(np.maximum(field() - 130.0, 0).astype(np.float32)) == 0


def test_saturated_and_smooth_images_have_no_block():
    assert constant_area(np.minimum(field(), 600)) == 0
    bright_field = 200 + 10 * np.sin(Y / 40) + 0.3 * np.random.default_rng(3).normal(size=Y.shape)
    assert constant_area(bright_field.round().astype(np.uint8)) == 0


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (9, 200), (1, 1)])
def test_images_smaller_than_a_cell_or_as_small_measure_something_between_0_and_1(size):
    pixels = np.random.default_rng(4).integers(0, 9, size)
    assert 0 <= constant_area(pixels) <= 1


def failed_sites(sites):
    """Sites of one plate, one channel each, that fail the rule of the default profile, with their channels."""
    rows = [
        {"site_id": name, "plate_id": "P", "channel": f"c{i}", "channel_index": i, **measured}
        for name, pixels in sites.items()
        for i, measured in enumerate(measure_site(pixels))
    ]
    verdicts = qc_profile("default").judge(table_contract("qc_metrics").rows(rows)).to_pylist()
    failed = [row for row in verdicts if row["rule"] == "constant_area" and not row["is_pass"]]
    return {(row["site_id"], row["channel"]) for row in failed}


def two_channels(seed, **lost):
    pixels = np.stack([field(seed), field(seed + 50, signal=500)])
    for channel, place in lost.items():
        pixels[int(channel[1:])][place] = 0
    return pixels


def test_a_site_that_lost_a_part_of_one_or_of_all_channels_fails_in_these():
    sites = {str(seed): two_channels(seed) for seed in range(8)}
    sites |= {"one": two_channels(8, c1=np.s_[64:]), "all": two_channels(9, c0=np.s_[:32], c1=np.s_[:32])}
    assert failed_sites(sites) == {("one", "c1"), ("all", "c0"), ("all", "c1")}
    few = {name: sites[name] for name in ("0", "one", "all")}  # too few for what is usual: a quarter and more fails
    assert failed_sites(few) == failed_sites(sites)


@pytest.mark.parametrize("radius", [64, 56, 48])
def test_a_plate_with_a_round_field_of_view_passes_and_a_lost_half_in_it_fails(radius):
    sites = {str(seed): masked(field(seed), radius)[None] for seed in range(9)}
    assert failed_sites(sites) == set()
    half = sites["3"].copy()
    half[:, 64:] = 0
    assert failed_sites({**sites, "3": half}) == {("3", "c0")}
    assert failed_sites({"0": sites["0"]}) == set()


def test_catalogs_from_before_the_metric_are_not_judged_by_it():
    rows = [
        {"site_id": str(seed), "plate_id": "P", "channel": "DNA", "channel_index": 0}
        | measure_site(field(seed)[None])[0]
        | {"constant_area": None}
        for seed in range(9)
    ]
    verdicts = qc_profile("default").judge(table_contract("qc_metrics").rows(rows)).to_pylist()
    of_rule = [row for row in verdicts if row["rule"] == "constant_area"]
    assert len(of_rule) == 9
    assert all(row["is_pass"] and row["value"] is None and row["reason"] for row in of_rule)
