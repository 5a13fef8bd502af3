from __future__ import annotations

import pytest

from cytolake.catalog.declared import layout_presets
from cytolake.screens.layouts import PathRule, TableRule, parse_preset

PATHS = {"name": "p", "about": "x", "looks_like": "x", "order": 1, "paths": {"pattern": r"(?P<well>.+)\.tif"}}
TABLE = {
    **{key: value for key, value in PATHS.items() if key != "paths"},
    "table": {"files": ["a.csv"], "file_name": "F_(?P<channel>.+)", "columns": {"well": ["Well"]}},
}


def test_the_declared_presets_are_those_that_the_readme_promises():
    assert {preset.name for preset in layout_presets()} == {
        *("index-csv", "ome-zarr", "imagexpress", "cellvoyager", "phenix", "load-data", "rxrx", "class-folders"),
        *("bbbc006", "bbbc021", "bbbc022"),
    }


def test_the_examples_of_the_declared_presets_are_of_their_own_layout():
    for preset in layout_presets():
        if isinstance(preset.read, PathRule):
            assert preset.read.pattern.fullmatch(preset.looks_like), preset.name
        elif isinstance(preset.read, TableRule):
            assert any(pattern.fullmatch(preset.looks_like) for pattern in preset.read.files), preset.name


def test_no_name_is_of_two_declared_layouts():
    examples = [preset.looks_like for preset in layout_presets()]
    for preset in layout_presets():
        if isinstance(preset.read, PathRule):
            assert [each for each in examples if preset.read.pattern.fullmatch(each)] == [preset.looks_like]


def test_presets_are_tried_from_low_to_high_with_lists_before_names():
    orders = [preset.order for preset in layout_presets()]
    assert orders == sorted(set(orders))
    kinds = [preset.name for preset in layout_presets()]
    assert kinds[0] == "index-csv"  # a person wrote it to say how the folder is to be read
    assert kinds.index("load-data") < kinds.index("phenix")  # and may list any images


def changed(preset, **values):
    kind = "paths" if "paths" in preset else "table"
    return {**preset, kind: {**preset[kind], **values}}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({**PATHS, "order": "first"}, "order"),
        ({**PATHS, "name": ""}, "name"),
        ({**PATHS, "colour": 1}, "colour"),
        ({**PATHS, "reader": "index-csv"}, "one of reader, paths, table"),
        ({key: value for key, value in PATHS.items() if key != "paths"}, "one of reader, paths, table"),
        ({**{key: value for key, value in PATHS.items() if key != "paths"}, "reader": "czi"}, "reader 'czi'"),
        (changed(PATHS, pattern="("), "regular expression"),
        (changed(PATHS, pattern=None), "regular expression"),
        (changed(PATHS, pattern="(?P<plate>.)"), "expected well, or row and column"),
        (changed(PATHS, plate="{barcode}"), "barcode"),
        (changed(PATHS, companion="index"), "companion"),
        (changed(PATHS, first_well=1), "first_well"),
        (changed(PATHS, wells={"files": "m.csv", "columns": {"plate": ["p"]}, "well": "{well}"}), "well"),
        (changed(TABLE, file_name="F_.+"), "no group channel"),
        (changed(TABLE, folder_name="{lead}P"), "lead"),
        (changed(TABLE, columns={"well": "Well"}), "column"),
        (changed(TABLE, places=["{disk}/{file}"]), "disk"),
    ],
)
def test_a_preset_that_cannot_be_used_is_refused_by_what_is_wrong(declared, message):
    with pytest.raises(ValueError, match="layout") as caught:
        parse_preset(declared)
    assert message in str(caught.value)


def test_what_is_right_is_taken():
    assert isinstance(parse_preset(PATHS).read, PathRule)
    assert isinstance(parse_preset(TABLE).read, TableRule)
