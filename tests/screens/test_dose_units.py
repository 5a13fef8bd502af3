"""Doses in several units are reported: as numbers, 1 nM and 1 uM would be one dose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytolake.screens.dose_units import mixed_dose_units, units_of_plate
from cytolake.screens.plate import Plate
from cytolake.screens.sources import ScreenSource, list_screen


def plate(name: str, *rows: dict[str, str]) -> Plate:
    wells = tuple({"well": f"A{i:02d}", "compound": "aspirin"} | row for i, row in enumerate(rows, 1))
    return Plate(screen="S", plate=name, batch="", source="", reader="files", channels=(), sites=(), wells=wells)


@pytest.mark.parametrize(
    ("rows", "units"),
    [
        ([{"dose": "1"}], []),
        ([{"dose_um": "1"}], ["uM"]),
        ([{"Concentration (nM)": "1"}], ["nM"]),
        ([{"Dose (\u00b5M)": "1"}], ["uM"]),
        ([{"mmoles_per_liter": "1"}], ["mM"]),
        ([{"cpd_mmol_conc": "1"}], ["mM"]),
        ([{"dose": "1", "dose unit": "nM"}, {"dose": "1", "dose unit": "\u03bcM"}], ["nM", "uM"]),
        ([{"dose": "1", "dose unit": "nM"}, {"dose": "", "dose unit": "uM"}], ["nM"]),
        ([{"dose": "1", "dose unit": "% v/v"}], ["% v/v"]),
        ([{"dose_um": "NA"}], []),
    ],
)
def test_the_unit_of_a_dose_is_that_of_its_row_or_else_of_its_column(rows, units):
    assert units_of_plate(plate("P1", *rows)) == units


def test_units_that_differ_between_plates_or_wells_are_one_problem_of_the_screen():
    um, nm, none = plate("P1", {"dose um": "1"}), plate("P2", {"dose nm": "1000"}), plate("P3", {"dose": "3"})
    assert mixed_dose_units("S", [um, um, none]) == []
    (problem,) = mixed_dose_units("S", [um, nm, none])
    assert (problem.problem, problem.plate, problem.found) == ("mixed_dose_units", "", "nM on P2; uM on P1")


def test_a_screen_with_two_units_says_so_when_it_is_listed(tmp_path: Path):
    for well in ("A01", "A02"):
        tifffile.imwrite(tmp_path / f"P1_{well}_1_DNA.tif", np.ones((64, 64), np.uint16))
    rows = "well,compound,concentration,concentration_unit\nA01,a,1,nM\nA02,a,1,uM\n"
    (tmp_path / "platemap.csv").write_text(rows)
    pattern = r"(?P<plate>P1)_(?P<well>[A-Z]\d+)_(?P<site>\d)_(?P<channel>\w+)\.tif"
    source = ScreenSource(screen="S", path=str(tmp_path), layout="regex", pattern=pattern)
    assert "mixed_dose_units" in {problem.problem for problem in list_screen(source).problems}
