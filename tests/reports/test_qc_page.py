from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.metrics import measure_site
from cytolake.qc.verdicts import QcConfig, judge_sites
from cytolake.reports.qc_page import write_qc_page
from cytolake.screens.simulated.screen import SimulatedScreen, simulated_site, simulated_wells

CHANNELS = ("DNA", "RNA")
SIZE = 96
SPOILT = {"A02": "saturated", "B03": "empty"}
ODD = "<gene> & co"


SCREEN = SimulatedScreen(
    n_plates=1, n_batches=1, n_pathways=2, n_negative_controls=12, artefact_share=0.0, site_size_px=SIZE, seed=3
)


class Page(HTMLParser):
    """Pictures and their texts, links, tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open_details: list[bool] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag == "details":
            self.open_details.append("open" in found)

    def handle_data(self, data):
        self.text += data + " "

    def pictures(self, alt: str) -> list[np.ndarray]:
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1]))))
            for image in self.images
            if re.search(alt, image["alt"])
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of two plates of twelve wells (3 x 4, of a plate of 24), one site of two channels each."""
    folder = tmp_path_factory.mktemp("screen")
    catalog = empty_catalog(folder / "catalog")
    controls = [well for well in simulated_wells(SCREEN) if well.row["control"] == "negative"]
    for plate in ("P1", "P2"):
        metrics, sites, wells = [], [], []
        for index in range(12):
            row, column = divmod(index, 4)
            well = f"{chr(65 + row)}{column + 1:02}"
            pixels = simulated_site(SCREEN, controls[index], 1 + (plate == "P2"))[:2]
            if plate == "P1" and well in SPOILT:
                pixels = spoil(pixels, SPOILT[well])
            paths = []
            for channel, image in zip(CHANNELS, pixels, strict=True):
                paths.append(str(folder / f"{plate}_{well}_{channel}.tif"))
                tifffile.imwrite(paths[-1], image)
            site_id, well_id = f"{plate}-{well}-1", f"{plate}-{well}"
            named = {"screen": "S", "plate": plate, "plate_id": f"id of {plate}", "well": well, "well_id": well_id}
            wells.append(
                named | {"row": row, "column": column, "perturbation": ODD if well == "A02" else "none", "control": ""}
            )
            sites.append(
                named
                | {"site_id": site_id, "site": "1", "timepoint": 0, "z": "", "reader": "files"}
                | {"channels": list(CHANNELS), "image_paths": paths, "height": SIZE, "width": SIZE, "dtype": "uint16"}
            )
            metrics += [
                {"site_id": site_id, "plate_id": f"id of {plate}", "channel": channel, "channel_index": c, **measured}
                for c, (channel, measured) in enumerate(zip(CHANNELS, measure_site(pixels), strict=True))
            ]
        for name, rows in (("wells", wells), ("sites", sites), ("qc_metrics", metrics)):
            add_rows(catalog, name, *rows)
        add_rows(catalog, "plates", {"screen": "S", "plate": plate, "plate_id": f"id of {plate}", "batch": "B1"})
    return folder


def spoil(pixels: np.ndarray, kind: str) -> np.ndarray:
    if kind == "empty":
        level = np.percentile(pixels, 1, axis=(1, 2), keepdims=True)
        return np.random.default_rng(0).poisson(np.broadcast_to(level, pixels.shape)).astype(pixels.dtype)
    top = np.percentile(pixels, 66, axis=(1, 2), keepdims=True)
    return np.minimum(pixels * (40_000 / top), 40_000).astype(pixels.dtype)


@pytest.fixture(scope="module")
def judged(folder: Path) -> tuple[Catalog, str]:
    catalog = cytolake.catalog.open(folder / "catalog")
    return catalog, judge_sites(catalog, QcConfig())


@pytest.fixture(scope="module")
def page(judged: tuple[Catalog, str], folder: Path) -> Page:
    return Page(write_qc_page(*judged, folder / "page").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert len([address for address in page.addresses if address.startswith("data:")]) == len(page.images)


def test_its_numbers_are_those_of_the_table(judged, page):
    catalog, qc_id = judged
    for row in catalog.sql(
        "select rule, count(threshold) as n, count(*) filter (not is_pass) as failed from qc_verdicts "
        f"where qc_id = '{qc_id}' group by rule"
    ).to_pylist():
        name = row["rule"].replace("_", " ")
        assert re.search(rf"{name}\s.*?\b{row['n']}\s+{row['failed']}\b", page.text, re.DOTALL), row
    (n,) = catalog.sql(
        "select count(distinct site_id) as n from qc_verdicts "
        f"where qc_id = '{qc_id}' and not is_pass and level = 'site'"
    )["n"].to_pylist()
    assert n == len(SPOILT)
    assert f"{n} of 12 sites failed" in page.text
    assert "0 of 12 sites failed" in page.text


def test_a_rule_that_could_not_judge_is_shown_so_and_not_as_a_pass(judged, page):
    catalog, qc_id = judged
    unable = catalog.sql(
        "select rule, count(*) as n from qc_verdicts "
        f"where qc_id = '{qc_id}' and level = 'plate' group by rule having count(threshold) = 0"
    ).to_pylist()
    assert {"rule": "control_separation", "n": 2} in unable  # two plates without controls
    tally, of_plates = page.text.split("Plate by plate")
    for row in unable:
        name = row["rule"].replace("_", " ")
        assert re.search(rf"{name}\s\D*\b0\s+0\s+{row['n']}\b", tally), row
        assert re.findall(rf"{name}\s[^–]*–\s+–\s+(pass|fail|not judged)\b", of_plates) == ["not judged"] * row["n"]
    assert not re.search(r"–\s+pass\b", of_plates)


def test_only_the_wells_that_failed_are_drawn_as_failed(page):
    first, second = page.pictures("share of each well's sites that failed")
    assert first.shape == (3, 4, 4)  # the smallest plate that holds these wells has 12
    failed = {f"{chr(65 + y)}{x + 1:02}" for y, x in zip(*np.nonzero(drawn_as_failed(first)), strict=True)}
    assert failed == set(SPOILT)
    assert not drawn_as_failed(second).any()
    assert (first[..., 3] == 255).all()  # each is in use


def drawn_as_failed(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 3] == 255) & (picture[..., 0] > picture[..., 2])  # orange to red, not pale to blue


@pytest.mark.parametrize(("rule", "well"), [("saturation", "A02"), ("empty", "B03")])
def test_the_map_of_a_rule_shows_where_and_in_which_channel_it_failed(page, rule, well):
    for channel in CHANNELS:
        first, second = page.pictures(f"^{rule}, {channel}:")
        assert drawn_as_failed(first)[ord(well[0]) - 65, int(well[1:]) - 1]
        assert drawn_as_failed(first).sum() == 1
        assert not drawn_as_failed(second).any()


def test_saturated_and_empty_sites_look_it_next_to_a_usual_site(page):
    (bright,), (dark,) = page.pictures("in A02$"), page.pictures("in B03$")
    usual = [picture.mean() for picture in page.pictures("for comparison")]
    assert len(usual) == 2
    assert dark.mean() < 0.5 * min(usual) < max(usual) < 0.5 * bright.mean()


def test_names_from_the_plate_map_are_text_and_not_markup(page):
    assert ODD in page.text
    assert "gene" not in page.tags


def test_many_plates_are_folded_and_one_is_open(judged, page, folder, tmp_path):
    assert page.open_details == [False, False]
    catalog, qc_id = judged
    alone = empty_catalog(tmp_path / "catalog")
    for name in ("wells", "sites", "qc_metrics", "qc_verdicts", "plates"):
        alone.append(name, catalog.table(name, where="plate_id = 'id of P1'"), transaction=name)
    single = Page(write_qc_page(alone, qc_id, tmp_path / "page").read_text(encoding="utf-8"))
    assert single.open_details == [True]


@pytest.mark.slow
def test_as_many_sites_are_shown_as_requested_for_each_rule_in_turn(judged, tmp_path):
    for n in (0, 1):
        shown = Page(write_qc_page(*judged, tmp_path, n_worst=n).read_text(encoding="utf-8"))
        assert len(shown.pictures(r" in [A-H]\d\d$")) == min(n, len(SPOILT))


def test_a_site_whose_image_is_gone_is_reported_and_the_page_is_written(judged, folder, tmp_path):
    path = folder / "P1_B03_DNA.tif"
    content = path.read_bytes()
    path.unlink()
    try:
        shown = Page(write_qc_page(*judged, tmp_path).read_text(encoding="utf-8"))
    finally:
        path.write_bytes(content)
    assert "B03" in shown.text
    assert "missing" in shown.text or "not found" in shown.text or "no such" in shown.text.lower()
    assert shown.pictures("in A02")


def test_verdicts_of_a_detector_that_no_profile_declares_are_shown_on_their_own_side(judged, tmp_path):
    """`is_normal` fails below its limit, though nobody says so."""
    catalog, _ = judged
    alone = empty_catalog(tmp_path / "catalog")
    for name in ("wells", "sites", "qc_metrics", "plates"):
        alone.append(name, catalog.table(name), transaction=name)
    sites = catalog.table("sites", where="plate = 'P1'").to_pylist()
    values = np.linspace(0.1, 0.9, len(sites))
    verdicts = [
        {key: site[key] for key in ("site_id", "well_id", "plate_id")}
        | {"value": float(value), "is_pass": bool(value >= 0.3)}
        for site, value in zip(sites, values, strict=True)
    ]
    rule = {"rule": "is_normal", "metric": "probability", "threshold": 0.3, "judged_at": datetime.now(UTC)}
    add_rows(alone, "qc_verdicts", *verdicts, **rule, qc_id="detector", level="site", channel="", channel_index=-1)
    shown = Page(write_qc_page(alone, "detector", tmp_path).read_text(encoding="utf-8"))
    (drawn,) = shown.pictures("^is_normal, all channels")
    worst = next(site for site, value in zip(sites, values, strict=True) if value == values.min())
    assert drawn_as_failed(drawn).sum() == (values < 0.3).sum()
    place = ord(worst["well"][0]) - 65, int(worst["well"][1:]) - 1
    reddest = np.unravel_index(np.argmin(np.where(drawn_as_failed(drawn), drawn[..., 1], 255)), drawn.shape[:2])
    assert place == reddest
    assert "profile" not in shown.text.split("verdicts")[0]


def test_an_unknown_id_is_refused_with_those_that_are_there(judged, tmp_path):
    catalog, qc_id = judged
    with pytest.raises(CatalogError, match=f"no verdicts of qc_id 'none'.*{qc_id}"):
        write_qc_page(catalog, "none", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_site_brighter_than_the_plates_white_is_seen_in_a_contrast_of_its_own(page):
    """All of A02 is above the white of plate P1: without its own contrast the picture is a white square."""
    (picture,) = page.pictures("in A02$")
    assert 20 < picture.mean() < 250
    assert picture.std() > 5
    assert "in a contrast of its own" in page.text


def test_a_plate_counts_the_sites_that_a_rule_failed_and_not_their_channels(judged, page):
    """Both channels of A02 fail: one site."""
    catalog, qc_id = judged
    rows = catalog.sql(
        "select rule, count(distinct site_id) as sites, count(*) as verdicts from qc_verdicts "
        f"where qc_id = '{qc_id}' and not is_pass and level = 'site' group by plate_id, rule"
    ).to_pylist()
    assert max(row["verdicts"] for row in rows) > max(row["sites"] for row in rows)
    of_plates = page.text.split("most often, sites")[1].split("Failed sites")[0]
    shown = re.findall(r"([a-z]+(?: [a-z]+)*) (\d+)(?:, |\s)", of_plates)
    assert shown
    assert set(shown) <= {(row["rule"].replace("_", " "), str(row["sites"])) for row in rows}
