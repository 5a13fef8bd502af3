"""Listings of many files: one look at each folder, whatever the number of files in it."""

from __future__ import annotations

import csv
import itertools
import os

import pytest

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.sources import ScreenSource, list_plates

WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]


@pytest.fixture
def scans(monkeypatch):
    """Folders that were listed, in order."""
    seen = []
    scan = os.scandir

    def counted(path):
        seen.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", counted)
    return seen


def write_empty(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT))


def listed(folder, **fields):
    return list_plates(
        ScreenSource(screen="s", path=str(folder), **fields), channel_vocabulary().aliases, layout_presets()
    )


@pytest.mark.slow
def test_a_hundred_thousand_names_become_their_sites(tmp_path, scans):
    places = [(p, w, s, c) for p in range(1, 7) for w in WELLS for s in range(1, 10) for c in range(1, 6)]
    assert len(places) > 100_000
    for plate, group in itertools.groupby(places, key=lambda place: place[0]):
        write_empty(tmp_path / "HUVEC-1" / f"Plate{plate}", [f"{w}_s{s}_w{c}.png" for _, w, s, c in group])
    scans.clear()
    plates = listed(tmp_path)
    assert [len(plate.sites) for plate in plates] == [len(WELLS) * 9] * 6
    assert all(plate.problems == () for plate in plates)
    assert sorted(scans) == sorted(set(scans))  # no folder twice
    found = [(f"HUVEC-1_{p}", w, str(s)) for p in range(1, 7) for w in WELLS for s in range(1, 10)]
    assert [(site.plate, site.well, site.site) for plate in plates for site in plate.sites] == found


def test_an_index_of_many_images_looks_at_each_folder_once(tmp_path, scans):
    names = [f"{well}_{site}.tif" for well in WELLS for site in range(1, 10)]
    write_empty(tmp_path / "images", names)
    with (tmp_path / "index.csv").open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "plate", "well", "site", "channel"])
        writer.writerows([f"images/{name}", "P1", *name.removesuffix(".tif").split("_"), "DNA"] for name in names)
    scans.clear()
    (plate,) = listed(tmp_path)
    assert len(plate.sites) == len(names)
    assert len(scans) == len(set(scans)) <= 2


def test_a_plate_map_of_ten_thousand_rows_annotates_every_plate(tmp_path):
    plates = [f"P{n}" for n in range(1, 27)]
    write_empty(tmp_path / "images", [f"{plate}.tif" for plate in plates])
    with (tmp_path / "index.csv").open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "plate", "well", "site", "channel"])
        writer.writerows([f"images/{plate}.tif", plate, "B02", "1", "DNA"] for plate in plates)
    rows = [(plate, well, f"{plate}-{well}") for plate in plates for well in WELLS]
    assert len(rows) > 9_900
    with (tmp_path / "platemap.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("plate", "well", "compound"), *rows])
    found = listed(tmp_path)
    assert [[row["compound"] for row in plate.wells] for plate in found] == [
        [f"{plate}-{well}" for well in WELLS] for plate in plates
    ]
    assert all(len(plate.problems) == len(WELLS) - 1 for plate in found)  # the wells that have no image
