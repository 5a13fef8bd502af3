"""ER is the endoplasmic reticulum in Cell Painting and the oestrogen receptor in a tissue panel."""

from __future__ import annotations

import pytest

from cytolake.catalog.declared import channel_vocabulary
from cytolake.screens.channel_assays import names_otherwise, parse_ambiguous
from cytolake.screens.sources import ScreenSource, list_plates

OTHERWISE = "ER (not Cell Painting)"


@pytest.mark.parametrize(
    ("panel", "is_other"),
    [
        (("DNA", "ER", "RNA", "AGP", "Mito"), False),
        (("w1 Hoechst", "OrigER"), False),
        (("DNA", "ER"), False),
        (("DNA", "ER", "RNA", "Mito", "my reporter"), False),
        (("DAPI", "ER", "PR", "HER2", "Ki67"), True),
        (("DAPI", "ER", "p53"), True),
        (("DAPI", "endoplasmic reticulum", "PR", "HER2"), False),
        (("DAPI", "concanavalin A", "PR", "HER2"), False),
    ],
)
def test_a_short_name_has_the_meaning_of_its_assay_where_the_panel_looks_like_it(panel, is_other):
    assert bool(names_otherwise(panel, channel_vocabulary().aliases)) is is_other


def listed(root, write_images, panel, **settings):
    write_images(root, [f"P1/A01_s1_{channel}.tif" for channel in panel])
    pattern = r"(?P<plate>[^/]+)/(?P<well>[A-H][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif"
    source = ScreenSource(screen="s", path=str(root), layout="regex", pattern=pattern, **settings)
    (plate,) = list_plates(source, channel_vocabulary().aliases)
    return plate


def test_on_another_panel_it_is_an_unknown_stain_and_reported(tmp_path, write_images):
    plate = listed(tmp_path, write_images, ("DAPI", "ER", "HER2", "PR"))
    assert set(plate.channels) == {"DNA", OTHERWISE, "HER2", "PR"}
    assert channel_vocabulary().index(OTHERWISE) == 0
    (problem,) = plate.problems
    assert (problem.problem, problem.channel) == ("ambiguous_channel", OTHERWISE)
    assert "channel_names" in problem.next_step


@pytest.mark.parametrize("name", ["ER", "Oestrogen receptor"])
def test_what_the_user_says_it_is_it_is(tmp_path, write_images, name):
    plate = listed(tmp_path, write_images, ("DAPI", "ER", "HER2", "PR"), channel_names=(f"ER -> {name}",))
    assert name in plate.channels
    assert plate.problems == ()


def test_an_assay_that_is_not_declared_is_refused():
    with pytest.raises(ValueError, match="IHC"):
        parse_ambiguous({"assays": [], "ambiguous": [{"alias": "ER", "assay": "IHC", "otherwise": "x"}]})
