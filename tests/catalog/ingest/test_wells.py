from __future__ import annotations

import json

import pytest

from cytolake.catalog.ingest.wells import well_rows
from cytolake.screens.plate import Plate, SiteImage
from cytolake.screens.well_labels import parse_control


def plate(*wells: dict[str, str], imaged: tuple[str, ...] = ()) -> Plate:
    sites = tuple(
        SiteImage(
            screen="s", plate="p", well=well, site="1", channels=("DNA",), reader="files", image_paths=(f"{well}.tif",)
        )
        for well in imaged
    )
    return Plate(
        screen="s", plate="p", batch="b", source="/p", reader="files", channels=("DNA",), sites=sites, wells=wells
    )


@pytest.mark.parametrize(
    ("said", "treatment", "control"),
    [
        ("negative", "", "negative"),
        ("Negative control", "", "negative"),
        ("negcon", "", "negative"),
        ("DMSO", "", "negative"),
        ("non-targeting", "", "negative"),
        ("poscon", "", "positive"),
        ("poscon_cp", "", "positive"),
        ("POSITIVE", "DMSO", "positive"),
        ("control", "DMSO", "negative"),
        ("true", "untreated", "negative"),
        ("control", "AMG900", None),
        ("", "DMSO", ""),
        ("trt", "DMSO", ""),
        ("False", "", ""),
        ("maybe", "", None),
    ],
)
def test_a_well_is_a_control_only_where_the_plate_map_says_so(said, treatment, control):
    assert parse_control(said, treatment) == control


def test_wells_of_the_map_and_wells_with_images_are_all_there_once():
    rows, problems = well_rows(plate({"well": "B02", "gene": "TP53"}, imaged=("A01", "B02", "A01")), frozenset({"B02"}))
    assert [(row["well"], row["has_images"], row["gene"]) for row in rows] == [
        ("A01", False, ""),
        ("B02", True, "TP53"),
    ]
    assert not problems


def test_rows_and_columns_count_from_zero():
    rows, _ = well_rows(plate({"well": "AB03"}, {"well": "A01"}, {"well": "P24"}), frozenset())
    assert {row["well"]: (row["row"], row["column"]) for row in rows} == {
        "AB03": (27, 2),
        "A01": (0, 0),
        "P24": (15, 23),
    }


def test_columns_that_wells_lacks_are_kept_as_json():
    rows, _ = well_rows(
        plate({"well": "A01", "artefact": "blur", "batch": "b", "Gene": "TP53", "empty": ""}), frozenset()
    )
    assert json.loads(rows[0]["annotations"]) == {"artefact": "blur"}
    assert rows[0]["gene"] == "TP53"


def test_what_cannot_be_understood_is_a_problem_and_an_empty_field():
    rows, problems = well_rows(
        plate({"well": "A01", "dose": "10 uM", "control": "perhaps"}, {"well": "A02", "dose": "0.5"}, {"well": "A03"}),
        frozenset(),
    )
    assert [row["dose"] for row in rows] == [None, 0.5, None]
    assert rows[0]["control"] == ""
    assert [(p.well, p.problem, p.found) for p in problems] == [
        ("A01", "unknown_control", "control perhaps"),
        ("A01", "bad_dose", "dose 10 uM"),
        ("", "no_perturbation", "no well with a perturbation, gene or compound"),
    ]
