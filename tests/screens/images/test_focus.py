"""The sharpest plane of simulated focus series whose plane of focus is known, and of a real one."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.images.focus import MEASURES, FocusChoice, PlaneFocus, focus_of, measure_focus, sharpest_plane
from cytolake.screens.sources import ScreenSource

SIZE, N_PLANES = 160, 9
BEST = 3


def series(
    seed: int,
    *,
    n_cells: int = 20,
    signal: float = 1000.0,
    photons_per_count: float = 0.2,
    debris_at: int | None = None,
    bleaching: float = 0.0,
    best: int = BEST,
) -> list[np.ndarray]:
    """Planes of cells that blur with the distance from the best one, and perhaps of a bright speck sharp in another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    stain, speck = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for middle in rng.uniform(8, SIZE - 8, (n_cells, 2)):
        inside = np.hypot(y - middle[0], x - middle[1]) < rng.uniform(5, 9)
        stain += inside * (1 + 2 * gaussian_filter(rng.standard_normal(inside.shape), 1.5))
    speck[SIZE // 3, SIZE // 4] = 1
    planes = []
    for z in range(N_PLANES):
        light = gaussian_filter(stain, np.hypot(1.2, 1.2 * abs(z - best))) * signal * (1 - bleaching * z / N_PLANES)
        if debris_at is not None:  # 30 times as bright as a cell where it is sharp
            light += gaussian_filter(speck, np.hypot(1.5, 1.2 * abs(z - debris_at))) * 30 * signal * 2 * np.pi * 1.5**2
        noisy = rng.poisson(np.maximum(light + 200, 0) * photons_per_count) / photons_per_count
        noisy += 100 + 10 * rng.standard_normal(noisy.shape)
        planes.append(np.clip(np.rint(noisy), 0, 65_535).astype(np.uint16))
    return planes


def chosen(*channels: list[np.ndarray]) -> FocusChoice:
    return sharpest_plane([[measure_focus(plane) for plane in planes] for planes in channels])


def by_brenner(planes: list[np.ndarray]) -> int:
    return int(np.argmax([focus_of(plane) for plane in planes]))


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("changes", [{}, {"n_cells": 3}, {"best": 0}, {"best": 8}, {"bleaching": 0.5, "best": 6}])
def test_the_best_plane_is_found_where_one_measure_finds_it_too(seed, changes):
    planes = series(seed, **changes)
    assert chosen(planes).plane == by_brenner(planes) == changes.get("best", BEST)


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("n_cells", [5, 20])
def test_a_bright_speck_that_is_sharp_in_another_plane_decides_nothing(seed, n_cells):
    planes = series(seed, n_cells=n_cells, debris_at=7)
    assert by_brenner(planes) == 7
    choice = chosen(planes)
    assert choice.plane == BEST
    assert not choice.is_unanimous
    assert choice.of_measures[MEASURES.index("brenner")] == 7


def test_in_noise_as_large_as_the_signal_the_plane_is_missed_by_less_than_by_one_measure():
    """Sd of the noise about a cell's brightness: Brenner is off by 2 of 9 planes in the mean, at random by 2.3."""
    missed, by_one = [], []
    for seed in range(8):
        planes = series(seed, n_cells=25, signal=60.0, photons_per_count=0.05)
        missed.append(abs(chosen(planes).plane - BEST))
        by_one.append(abs(by_brenner(planes) - BEST))
    assert np.mean(missed) < 1
    assert np.mean(missed) < 0.5 * np.mean(by_one)


def test_noise_and_debris_together_leave_the_plane_within_one_step():
    for seed in range(4):
        planes = series(seed, n_cells=25, signal=80.0, photons_per_count=0.05, debris_at=7)
        assert by_brenner(planes) == 7
        assert abs(chosen(planes).plane - BEST) <= 1


@pytest.mark.slow
def test_where_all_measures_agree_the_plane_is_that_of_the_largest_sum_of_brenners_shares():
    """As it was decided before there were five measures."""
    n_unanimous = 0
    for seed in range(8):
        channels = [series(seed), series(100 + seed, n_cells=10)]
        choice = chosen(*channels)
        focus_CP = np.array([[focus_of(plane) for plane in planes] for planes in channels])
        before = int((focus_CP / focus_CP.sum(axis=1, keepdims=True)).sum(axis=0).argmax())
        if choice.is_unanimous:
            n_unanimous += 1
            assert choice.plane == before
    assert n_unanimous >= 4


def test_gain_and_offset_of_the_camera_change_nothing():
    planes = series(0, debris_at=7)
    assert chosen([2 * plane.astype(np.float32) + 50 for plane in planes]) == chosen(planes)


def test_what_is_kept_of_a_plane_does_not_grow_with_it():
    for shape in ((1, 1), (24, 32), (160, 160), (700, 900)):
        focus = measure_focus(np.random.default_rng(0).integers(0, 9, shape).astype(np.uint16))
        assert focus.energies.shape[0] == 5
        assert 1 <= focus.energies.shape[1] <= 64


def test_planes_that_are_not_finite_or_flat_win_against_none():
    planes: list[np.ndarray] = [plane.astype(np.float32) for plane in series(0)]
    planes[5] = np.full_like(planes[5], np.nan)
    planes[6] = np.full_like(planes[6], np.inf)
    planes[7] = np.full_like(planes[7], 9)
    assert chosen(planes).plane == BEST


def test_channels_of_different_numbers_of_planes_are_refused():
    plane = PlaneFocus(1.0, 1.0, np.ones((5, 1), np.float32))
    with pytest.raises(ValueError, match=r"channels of \[1, 2\] planes"):
        sharpest_plane([[plane], [plane] * 2])
    with pytest.raises(ValueError, match=r"channels of \[\] planes"):
        sharpest_plane([])


@pytest.mark.parametrize(("debris_at", "said"), [(7, "disagree on 1 of 1 sampled site"), (None, "all measures")])
def test_an_inspection_says_on_how_many_sites_the_measures_disagree(tmp_path, write_indexed_screen, debris_at, said):
    write_indexed_screen(tmp_path, [{"z": str(z)} for z in range(N_PLANES)])
    paths = sorted((tmp_path / "images").glob("*.tif"))
    for path, plane in zip(paths, series(0, debris_at=debris_at), strict=True):
        tifffile.imwrite(path, plane, photometric="minisblack")
    advice = " ".join(inspect_screen(ScreenSource(screen="s", path=str(tmp_path), z="sharpest"), {}, ()).advice)
    assert said in advice
    assert ("brenner 7, " in advice and "3 is taken" in advice) == (debris_at is not None)


@pytest.mark.real_data
def test_of_two_real_planes_the_one_in_focus_is_sharpest_by_every_measure(real_data):
    folder = real_data / "bbbc006_focus"
    if not folder.is_dir():
        pytest.skip("BBBC006's focus planes are not among the real data here")
    with (folder / "index.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if "a01_s1" in row["path"].replace("__", "_").lower()]
    out, inside = sorted(paths)
    assert ("out_of_focus" in out, "in_focus" in inside) == (True, True)
    planes = [np.asarray(Image.open(folder / path)) for path in (out, inside)]
    assert chosen(planes).of_measures == (1, 1, 1, 1, 1)
