from __future__ import annotations

import shutil

import pytest

from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates


def listed(folder, **source):
    return list_plates(ScreenSource(screen="s", path=str(folder), **source))


@pytest.fixture
def screen(tmp_path, write_indexed_screen):
    """One plate P1 with images of B02 and B03."""
    return write_indexed_screen(tmp_path / "screen", [{"well": "B02", "treatment": "x"}, {"well": "B03"}])


def test_a_map_that_fits_is_taken_whole(screen):
    (screen / "platemap.csv").write_text("plate,well,compound,dose\nP1,b3,water,0\nP1,B2,taxol,1.5\n")
    (plate,) = listed(screen)
    assert plate.problems == ()
    assert plate.wells == (
        {"treatment": "x", "well": "B02", "compound": "taxol", "dose": "1.5"},
        {"well": "B03", "compound": "water", "dose": "0"},
    )


def test_a_map_without_plates_holds_for_every_plate(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"plate": "P1"}, {"plate": "P2"}])
    (tmp_path / "layout.csv").write_text("Metadata_Well,gene\nB02,TP53\n")
    plates = listed(tmp_path, plate_map="layout.csv")
    assert [plate.wells[0]["gene"] for plate in plates] == ["TP53", "TP53"]
    assert all(not plate.problems for plate in plates)


def test_map_and_images_that_disagree_are_reported_both_ways(screen, of_screen):
    (screen / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP1,C07,KRAS\nP9,B02,MYC\n")
    (plate,) = listed(screen)
    problems = (*plate.problems, *of_screen(screen))
    reported = {(problem.problem, problem.plate, problem.well) for problem in problems}
    assert reported == {
        ("well_without_image", "P1", "C07"),
        ("image_without_well", "P1", "B03"),
        ("plate_without_image", "P9", ""),
    }
    assert all(problem.file == "platemap.csv" and problem.next_step for problem in problems)
    assert [site.well for site in plate.sites] == ["B02", "B03"]


def test_a_well_that_is_there_twice_and_differs_loses_its_annotation(screen):
    (screen / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP1,B03,KRAS\nP1,b02,MYC\n")
    (plate,) = listed(screen)
    (problem,) = plate.problems
    assert (problem.problem, problem.well) == ("duplicate_well", "B02")
    assert "lines 2 and 4" in problem.found
    assert "gene" in problem.found
    assert "gene" not in plate.wells[0]
    assert plate.wells[1]["gene"] == "KRAS"


def test_a_well_that_is_there_twice_and_says_the_same_keeps_it(screen, codes):
    (screen / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP1,B03,KRAS\nP1,B02,TP53\n")
    (plate,) = listed(screen)
    assert codes(plate) == ["duplicate_well"]
    assert plate.wells[0]["gene"] == "TP53"


def test_rows_that_name_no_well_or_plate_are_reported_with_their_line(screen, of_screen):
    (screen / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP1,B03,KRAS\nP1,Z99,x\n,B02,x\n")
    assert [(problem.problem, "line" in problem.found) for problem in of_screen(screen)] == [
        ("bad_well_name", True),
        ("missing_plate", True),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"plate,position\nP1,B02\n", "missing_column"),
        (b"", "missing_column"),
        (b"plate,well,gene\nP1,B02,\xff\xfe\n", "unreadable_file"),
        (b"plate,well,gene,gene\nP1,B02,a,b\n", "duplicate_column"),
        (None, "missing_file"),
    ],
)
def test_a_map_that_cannot_be_used_stops_the_screen(screen, content, problem):
    if content is not None:
        (screen / "map.csv").write_bytes(content)
    with pytest.raises(ScreenError) as caught:
        listed(screen, plate_map="map.csv")
    assert caught.value.problems[0].problem == problem
    assert "map.csv" in str(caught.value)


def test_a_map_next_to_a_lone_zarr_plate_is_found_and_other_plates_are_no_problem(tmp_path, write_zarr_plate):
    write_zarr_plate(tmp_path / "P1.zarr", "0.5", wells=("B/02",), sites=("0",))
    (tmp_path / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP2,B02,MYC\n")
    (plate,) = listed(tmp_path / "P1.zarr")
    assert plate.wells == ({"well": "B02", "gene": "TP53"},)
    assert plate.problems == ()


LIST = "Assay_Plate_Barcode,Plate_Map_Name,Batch_Number\nP1,C-1,7\nP2,C-2,8\n"


@pytest.fixture
def two_plates(tmp_path, write_indexed_screen):
    """Plates P1 and P2 with images of B02, a list of their maps, and the maps next to it."""
    folder = write_indexed_screen(tmp_path / "screen", [{"plate": "P1"}, {"plate": "P2"}])
    (folder / "meta" / "platemap").mkdir(parents=True)
    (folder / "meta" / "barcode_platemap.csv").write_text(LIST)
    for name, gene in (("C-1", "TP53"), ("C-2", "MYC")):
        map_file = folder / "meta" / "platemap" / f"{name}.txt"
        map_file.write_text(f"plate_map_name\twell_position\tgene\n{name}\tB02\t{gene}\n")
    return folder


def test_a_list_of_plates_gives_each_plate_the_map_that_it_names(two_plates):
    one, two = listed(two_plates, plate_map="meta/barcode_platemap.csv")
    assert one.problems == two.problems == ()
    assert (one.wells[0]["gene"], one.wells[0]["Batch_Number"]) == ("TP53", "7")
    assert (two.wells[0]["gene"], two.wells[0]["Batch_Number"]) == ("MYC", "8")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (LIST.replace("C-2", "C-3"), "missing_file"),
        (LIST.replace("C-2", "../C-2"), "path_outside_screen"),
        (LIST.replace("C-2", "barcode_platemap"), "missing_column"),  # a list of lists
    ],
)
def test_a_list_that_names_no_usable_map_stops_the_screen(two_plates, content, problem):
    (two_plates / "meta" / "barcode_platemap.csv").write_text(content)
    with pytest.raises(ScreenError) as caught:
        listed(two_plates, plate_map="meta/barcode_platemap.csv")
    assert caught.value.problems[0].problem == problem


def test_a_plate_without_a_map_in_the_list_is_reported_by_its_line(two_plates, of_screen):
    (two_plates / "meta" / "barcode_platemap.csv").write_text(LIST.replace("P2,C-2", "P2,"))
    _, two = listed(two_plates, plate_map="meta/barcode_platemap.csv")
    problems = of_screen(two_plates, plate_map="meta/barcode_platemap.csv")
    assert ("missing_plate_map", "P2") in {(problem.problem, problem.plate) for problem in problems}
    assert [problem.problem for problem in two.problems] == ["image_without_well"]
    assert [site.well for site in two.sites] == ["B02"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_map_in_any_letters_and_with_a_byte_order_mark_is_read(screen, encoding):
    text = "plate;well;化合物\nP1;B02;紫杉醇 µM\nP1;B03;Ünïcode 🧪\n"
    (screen / "platemap.csv").write_bytes(text.encode(encoding))
    (plate,) = listed(screen)
    assert plate.problems == ()
    assert [row["化合物"] for row in plate.wells] == ["紫杉醇 µM", "Ünïcode 🧪"]


def test_the_real_lincs_maps_cover_every_well_of_every_plate(real_data, tmp_path, write_indexed_screen):
    real = real_data / "lincs_plates_metadata" / "platemaps" / "2016_04_01_a549_48hr_batch1"
    if not real.is_dir():
        pytest.skip("the LINCS plate maps are not among the real data here")
    barcodes = [line.split(",")[0] for line in (real / "barcode_platemap.csv").read_text().splitlines()[1:]]
    wells = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    first = [{"plate": barcodes[0], "well": well} for well in wells]
    others = [{"plate": barcode, "well": "P24"} for barcode in barcodes[1:]]
    folder = write_indexed_screen(tmp_path / "screen", [*first, *others])
    shutil.copytree(real, folder / "maps")
    plates = listed(folder, plate_map="maps/barcode_platemap.csv")
    assert [plate.plate for plate in plates] == barcodes
    assert plates[0].problems == ()
    assert [row["well"] for row in plates[0].wells] == wells
    assert sum(1 for row in plates[0].wells if row["broad_sample"]) > 300
    for plate in plates:
        assert {row["plate_map_name"] for row in plate.wells} == {plate.wells[0]["Plate_Map_Name"]}
        assert {problem.problem for problem in plate.problems} <= {"well_without_image"}


def test_rows_in_letters_and_columns_stand_for_wells_and_rows_in_numbers_do_not(screen):
    (screen / "platemap.csv").write_text("plate,Row,Column,gene\nP1,B,2,TP53\n")
    (plate,) = listed(screen)
    assert {row["well"]: row.get("gene") for row in plate.wells}["B02"] == "TP53"
    (screen / "platemap.csv").write_text("plate,Row,Column,gene\nP1,1,1,TP53\n")
    with pytest.raises(ScreenError, match="B03"):  # from 0 or from 1?
        listed(screen)


def test_a_map_of_tabs_is_found_by_its_name(screen):
    (screen / "platemap.tsv").write_text("plate\twell\tgene\nP1\tB02\tTP53\n")
    (plate,) = listed(screen)
    assert {row["well"]: row.get("gene") for row in plate.wells}["B02"] == "TP53"
