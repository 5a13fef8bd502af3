"""What `inspect` says of the columns of a plate map is what an ingest makes of them."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.catalog.ingest.wells import well_rows
from cytolake.cli.print_inspection import print_inspection
from cytolake.pipeline.overrides import apply_overrides
from cytolake.recipes import RECIPES
from cytolake.screens.sources import ScreenSource, list_plates


@pytest.fixture
def screen(tmp_path, write_indexed_screen):
    folder = write_indexed_screen(tmp_path / "screen", [{"well": "B02"}, {"well": "B03"}])
    (folder / "platemap.csv").write_text(
        "plate,well,gene,Genotype,cell_line,notes\nP1,B02,TP53,wt,U2OS,\nP1,B03,1-Mar,ko,U2OS,\n"
    )
    return folder


def test_every_column_is_listed_with_what_it_becomes(screen):
    found = inspect_screen(ScreenSource(screen="s", path=str(screen)))
    assert {each.column: each.becomes for each in found.columns} == {
        "gene": "label gene", "Genotype": "annotation", "cell_line": "annotation", "notes": "nothing",
    }  # fmt: skip
    page = io.StringIO()
    print_inspection(found, Console(file=page, width=200, no_color=True))
    assert "label gene" in page.getvalue()


def test_a_declared_column_is_listed_as_its_label_and_survives_the_recipe(screen):
    source = ScreenSource(screen="s", path=str(screen), label_columns={"perturbation": "Genotype"})
    found = inspect_screen(source)
    assert {each.column: each.becomes for each in found.columns}["Genotype"] == "label perturbation"
    assert "perturbation" not in {each.column for each in found.columns}
    config = apply_overrides(RECIPES["real_screens"](), [found.assignment])
    assert config.screens.sources[0].label_columns == {"perturbation": "Genotype"}
    (plate,) = list_plates(config.screens.sources[0])
    assert [row["perturbation"] for row in well_rows(plate, frozenset())[0]] == ["wt", "ko"]


def test_problems_of_labels_are_the_same_in_inspect_and_ingest(screen):
    source = ScreenSource(screen="s", path=str(screen))
    (plate,) = list_plates(source)
    of_ingest = [each.problem for each in (*plate.problems, *well_rows(plate, frozenset())[1])]
    of_inspect = [each.problem for each in inspect_screen(source, crop_size=4).problems for _ in range(each.n)]
    assert sorted(of_inspect) == sorted(of_ingest)
    assert "spreadsheet_damage" in of_ingest


def test_a_label_that_wells_lack_is_refused():
    with pytest.raises(ValueError, match="label_columns for colour"):
        dataclasses.replace(ScreenSource(screen="s", path="/p"), label_columns={"colour": "x"})
