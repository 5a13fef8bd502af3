from __future__ import annotations

import pytest

from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.sources import ScreenSource


@pytest.fixture
def advice(tmp_path, write_indexed_screen):
    """Function: what an inspection of plate P1 with wells A01 and A02 advises, by the text of its plate map."""
    write_indexed_screen(tmp_path, [{"well": "A01"}, {"well": "A02"}])

    def of(plate_map):
        (tmp_path / "platemap.csv").write_text(plate_map)
        found = inspect_screen(ScreenSource(screen="S", path=str(tmp_path)))
        return found, " ".join(found.advice)

    return of


def test_a_map_of_other_plates_is_not_reported_as_missing(advice):
    found, said = advice("plate,well,gene\n2024-P1,A01,TP53\n")
    assert "names P1" in said
    (none,) = [each for each in found.problems if each.problem == "no_perturbation"]
    assert "platemap.csv" in none.example
    assert "Write a platemap.csv" not in said + none.example


def test_a_screen_without_negative_controls_names_the_wells_that_may_be_some(advice):
    assert "DMSO" in advice("well,compound\nA01,DMSO\nA02,X\n")[1]
    assert "negative control" not in advice("well,compound,control\nA01,DMSO,negative\nA02,X,\n")[1]
