from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cytolake.qc.labels import LABELS, LabelSheet
from cytolake.reports.label_sheet import _KEYS, write_label_page

CHANNELS = ("DNA", "ER", "<b>")


class Page(HTMLParser):
    """Elements of a page by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))


@pytest.fixture
def page(tmp_path: Path) -> str:
    images = [{"channel": name, "shown": ["AAAA", "BBBB"]} for name in CHANNELS]
    cards = tuple({"site_id": f"s{n}", "plate": "P", "well": "A01", "site": "1", "images": images} for n in range(3))
    path = write_label_page(LabelSheet(sheet_id="abc", table=tmp_path / "labels.csv", cards=cards))
    assert path == tmp_path / "labels.html"
    return path.read_text(encoding="utf-8")


def test_a_page_shows_every_site_with_all_labels_and_loads_nothing(page):
    found = Page(page).found
    assert [card["data-site-id"] for card in found["article"]] == ["s0", "s1", "s2"]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert len(found["img"]) == 3 * len(CHANNELS) * 2
    radios = [each["value"] for each in found["input"] if each["type"] == "radio"]
    assert Counter(radios) == dict.fromkeys(LABELS, 3)
    boxes = [each["value"] for each in found["input"] if each["type"] == "checkbox"]
    assert Counter(boxes) == dict.fromkeys(CHANNELS, 3)


def test_the_page_says_how_many_images_a_channel_has(page, tmp_path):
    whole_and_centre, whole = "the second its centre at full resolution", "each channel has one image"
    assert whole_and_centre in page
    assert whole not in page
    card = {"site_id": "s", "plate": "P", "well": "A01", "site": "1", "images": [{"channel": "DNA", "shown": ["AAAA"]}]}
    path = write_label_page(LabelSheet(sheet_id="abc", table=tmp_path / "labels.csv", cards=(card,)))
    assert whole in path.read_text(encoding="utf-8")
    assert "second" not in path.read_text(encoding="utf-8")


def test_every_label_has_a_key_of_its_own():
    assert len(LABELS) <= len(_KEYS) == len(set(_KEYS))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to check the script with")
def test_the_script_of_the_page_parses(page, tmp_path):
    script = tmp_path / "page.js"
    script.write_text(re.search(r"<script>(.*)</script>", page, re.S)[1])
    assert subprocess.run(["node", "--check", script], capture_output=True).returncode == 0
