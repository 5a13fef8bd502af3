"""What a listing names and is absent is a problem of its own; images that no site uses are counted once a plate."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_screen

PIXELS = np.random.default_rng(0).integers(100, 4000, (16, 16), dtype=np.uint16)
STAINS = {"1": "HOECHST 33342", "2": "Alexa 488"}


def listed(folder, **fields):
    """Plates of a screen; the first has the problems of the whole screen too."""
    source = ScreenSource(screen="s", path=str(folder), **fields)
    listing = list_screen(source, channel_vocabulary().aliases, layout_presets())
    first, *others = listing.plates
    return [replace(first, problems=(*first.problems, *listing.problems)), *others]


def problems(plates, code):
    return [problem for plate in plates for problem in plate.problems if problem.problem == code]


def places(plates, code):
    return {(problem.well, problem.site, problem.channel) for problem in problems(plates, code)}


def write(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, PIXELS)


def write_phenix(folder, lost=lambda name: False, is_harmony_6=False, n_columns=2, index="Index.idx.xml"):
    """Wells A01, A02, ... of three fields of two channels."""
    images = []
    for column in range(1, n_columns + 1):
        for field in (1, 2, 3):
            for number, stain in STAINS.items():
                name = f"r01c{column:02d}f{field:02d}p01-ch{number}sk1fk1fl1.tiff"
                stained = "" if is_harmony_6 else f"<ChannelName>{stain}</ChannelName>"
                images.append(
                    f"<Image><URL>{name}</URL><Row>1</Row><Col>{column}</Col><FieldID>{field}</FieldID>"
                    f"<PlaneID>1</PlaneID><ChannelID>{number}</ChannelID>{stained}</Image>"
                )
                if not lost(name):
                    write(folder / "Images" / name)
    entries = "".join(
        f'<Entry ChannelID="{number}"><ChannelName>{stain}</ChannelName></Entry>' for number, stain in STAINS.items()
    )
    maps = f"<Maps><Map>{entries}</Map></Maps>" if is_harmony_6 else ""
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    (folder / "Images" / index).write_text(
        f'<EvaluationInputData xmlns="h" Version="1">{maps}<Images>{"".join(images)}</Images></EvaluationInputData>'
    )


@pytest.mark.parametrize("is_harmony_6", [False, True])
def test_every_image_of_a_harmony_index_that_is_absent_is_reported(tmp_path, is_harmony_6):
    write_phenix(tmp_path / "P1__1", lambda name: "c02" in name or "f03" in name, is_harmony_6)
    plates = listed(tmp_path)
    lost = [("A01", "3"), ("A02", "1"), ("A02", "2"), ("A02", "3")]
    assert places(plates, "missing_file") == {(*place, stain) for place in lost for stain in ("DNA", "Green")}
    assert [problem.well for problem in problems(plates, "well_without_image")] == ["A02"]
    assert not problems(plates, "missing_channel")


def test_a_whole_harmony_plate_has_no_problem(tmp_path):
    write_phenix(tmp_path / "P1__1")
    write_phenix(tmp_path / "P2__1", index="Index.xml")
    assert [plate.problems for plate in listed(tmp_path)] == [(), ()]


def test_images_that_a_harmony_index_does_not_list_are_read_and_counted(tmp_path):
    write_phenix(tmp_path / "P1__1")
    extra = [f"r01c07f01p01-ch{number}sk1fk1fl1.tiff" for number in STAINS]
    write(*(tmp_path / "P1__1/Images" / name for name in extra))
    (plate,) = listed(tmp_path)
    (problem,) = plate.problems
    assert (problem.problem, problem.file) == ("not_in_listing", "P1__1/Images/Index.idx.xml")
    assert problem.found.startswith("2 images or fields that it does not list: ")
    assert extra[0] in problem.found
    assert "A07" in {site.well for site in plate.sites}


def test_an_index_that_is_cut_short_says_nothing_of_the_images_after_the_cut(tmp_path):
    write_phenix(tmp_path / "P1__1")
    index = tmp_path / "P1__1/Images/Index.idx.xml"
    index.write_bytes(index.read_bytes()[:-900])
    assert {problem.problem for plate in listed(tmp_path) for problem in plate.problems} == {"unreadable_file"}


def test_images_that_an_htd_file_did_not_select_are_read_and_counted(tmp_path):
    """Selected are well A01, one site, one wavelength and one timepoint."""
    names = [f"P1_{well}_s{site}_w{wave}.tif" for well in ("A01", "A02") for site in (1, 2) for wave in (1, 2)]
    write(*(tmp_path / "P1/TimePoint_1" / name for name in names))
    write(tmp_path / "P1/TimePoint_2/P1_A01_s1_w1.tif")
    rows = (
        '"XWells", 2\n"YWells", 1\n"WellsSelection1", TRUE, FALSE\n"Sites", TRUE\n"XSites", 1\n"YSites", 1\n'
        '"SiteSelection1", TRUE\n"NWavelengths", 1\n"WaveName1", "DAPI"\n"TimePoints", 1\n'
    )
    (tmp_path / "P1/P1.HTD").write_text(rows)
    plates = listed(tmp_path)
    (problem,) = problems(plates, "not_in_listing")
    assert problem.file == "P1/P1.HTD"
    assert problem.found.startswith("8 images or fields that it does not list: A01, site 1, w1, timepoint 2, ")
    assert len({site.well for site in plates[0].sites}) == 2


def test_fields_that_a_table_of_wells_has_no_row_of_are_read_and_counted(tmp_path):
    write(*(tmp_path / f"images/E/Plate1/{well}_s{site}_w1.png" for well in ("A01", "B02") for site in (1, 2)))
    (tmp_path / "metadata.csv").write_text("experiment,plate,well,site\nE,1,A01,1\n")
    (problem,) = problems(listed(tmp_path), "not_in_listing")
    assert problem.found == "3 images or fields that it does not list: A01, site 2, B02, site 1, B02, site 2"


def test_a_harmony_plate_of_which_nothing_was_copied_is_one_problem(tmp_path):
    write_phenix(tmp_path / "P1__1")
    write_phenix(tmp_path / "P2__1", lambda name: True)
    plates = listed(tmp_path)
    assert [plate.plate for plate in plates] == ["P1"]
    assert [(p.problem, p.plate) for plate in plates for p in plate.problems] == [("plate_without_image", "P2")]


def test_an_index_that_names_files_elsewhere_or_is_cut_lists_what_stands_before(tmp_path):
    write_phenix(tmp_path / "P1__1", lambda name: "c02" in name)
    index = tmp_path / "P1__1/Images/Index.idx.xml"
    text = index.read_text()
    index.write_text(text.replace("r01c02f01p01-ch1sk1fk1fl1.tiff", "../../etc/a.tiff")[: text.index("r01c02f03")])
    plates = listed(tmp_path)
    assert len(problems(plates, "missing_file")) == 3
    assert problems(plates, "unreadable_file")


def write_rxrx(folder, lines, images, columns="site_id,experiment,plate,well,site,sirna"):
    (folder / "metadata.csv").write_text("\n".join([columns, *lines]) + "\n")
    write(*(folder / f"images/{place}_w{channel}.tif" for place in images for channel in range(1, 7)))


def test_sites_wells_and_plates_of_a_metadata_table_that_are_absent_are_reported(tmp_path):
    lines = [f"x,H-1,{n},{well},{site},s1" for n in (1, 2, 3) for well in ("B02", "B03") for site in (1, 2)]
    write_rxrx(tmp_path, lines, ["H-1/Plate1/B02_s1", "H-1/Plate2/B02_s1", "H-1/Plate2/B02_s2"])
    plates = listed(tmp_path)
    assert {(p.plate, p.well, p.site) for p in problems(plates, "missing_file")} == {
        *(("H-1_1", *place) for place in (("B02", "2"), ("B03", "1"), ("B03", "2"))),
        *(("H-1_2", "B03", site) for site in ("1", "2")),
    }
    assert [(p.plate, p.well) for p in problems(plates, "well_without_image")] == [("H-1_1", "B03"), ("H-1_2", "B03")]
    assert [p.plate for p in problems(plates, "plate_without_image")] == ["H-1_3"]


def test_a_metadata_table_of_wells_reports_wells(tmp_path):
    lines = ["H-1,1,B02,s1", "H-1,1,B03,s1"]
    write_rxrx(tmp_path, lines, ["H-1/Plate1/B02_s1"], "experiment_name,plate,address,treatment")
    plates = listed(tmp_path)
    assert [(p.problem, p.well) for p in plates[0].problems] == [("well_without_image", "B03")]


HTD = """"HTSInfoFile", Version 1.0
"TimePoints", {timepoints}
"XWells", 4
"YWells", 2
"WellsSelection1", TRUE, TRUE, FALSE, FALSE
"WellsSelection2", FALSE, FALSE, FALSE, TRUE
"Sites", TRUE
"XSites", 2
"YSites", 2
"SiteSelection1", FALSE, TRUE
"SiteSelection2", TRUE, FALSE
"Waves", TRUE
"NWavelengths", 3
"WaveName1", "DAPI"
"WaveName2", "FITC"
"WaveName3", "Cy5"
"WaveCollect1", 1
"WaveCollect2", 1
"WaveCollect3", 0
"EndFile"
"""


def write_imagexpress(folder, sites=("1", "2"), lost=(), timepoints=1, name="P1"):
    for well in ("A01", "A02", "B04"):
        for site in sites:
            for wave in ("1", "2"):
                place = f"{name}_{well}_s{site}_w{wave}"
                if not any(place.endswith(each) or f"_{each}_" in place for each in lost):
                    write(folder / "TimePoint_1" / f"{place}.tif")
    (folder / f"{name}.HTD").write_text(HTD.format(timepoints=timepoints))


@pytest.mark.parametrize("sites", [("1", "2"), ("2", "3")], ids=["numbered in turn", "numbered by place"])
def test_a_whole_imagexpress_plate_has_no_problem(tmp_path, sites):
    write_imagexpress(tmp_path / "P1", sites)
    assert listed(tmp_path)[0].problems == ()


def test_what_an_htd_file_selects_and_is_absent_is_reported(tmp_path):
    write_imagexpress(tmp_path / "P1", lost=("B04", "A01_s2_w1", "A02_s1"))
    plates = listed(tmp_path)
    assert places(plates, "missing_file") == {
        ("A01", "2", "w1"), ("A02", "1", ""), ("B04", "1", ""), ("B04", "2", ""),
    }  # fmt: skip
    assert [problem.well for problem in problems(plates, "well_without_image")] == ["B04"]


def test_a_wavelength_or_timepoint_that_no_well_has_is_reported(tmp_path):
    write_imagexpress(tmp_path / "P1", lost=("w2",), timepoints=3)
    found = problems(listed(tmp_path), "missing_file")
    assert Counter(problem.channel for problem in found) == {"FITC": 6, "": 2}
    assert [problem.found for problem in found if not problem.well] == [
        "no image of timepoint 2", "no image of timepoint 3",
    ]  # fmt: skip


def test_two_plates_of_one_folder_are_held_against_their_own_htd_files(tmp_path):
    write_imagexpress(tmp_path, name="P1")
    write_imagexpress(tmp_path, name="P2", lost=("B04",))
    assert {p.plate for plate in listed(tmp_path) for p in plate.problems} == {"P2"}
    (tmp_path / "P1.HTD").rename(tmp_path / "other.HTD")
    assert {p.plate for plate in listed(tmp_path) for p in plate.problems} == {"P2"}


def test_a_damaged_htd_file_lists_nothing(tmp_path):
    write_imagexpress(tmp_path / "P1")
    (tmp_path / "P1/P1.HTD").write_bytes(b"\xff\xfe\x00" * 40)
    assert listed(tmp_path)[0].problems == ()


def test_tables_with_a_row_for_each_image_report_each(tmp_path, write_indexed_screen):
    rows = [{"well": well, "channel": channel} for well in ("B02", "B03") for channel in ("DAPI", "ER")]
    absent = ["images/P1_B03_1_DAPI.tif", "images/P1_B03_1_ER.tif"]
    (plate,) = listed(write_indexed_screen(tmp_path / "s", rows, absent=absent))
    assert [(p.problem, p.well, p.file) for p in plate.problems] == [("missing_file", "B03", path) for path in absent]


def test_wells_and_images_of_zarr_metadata_that_are_absent_or_not_listed_are_reported(tmp_path, write_zarr_plate):
    plate = write_zarr_plate(tmp_path / "P1.zarr", "0.4", wells=("B/03", "B/04", "C/01"))
    assert listed(tmp_path)[0].problems == ()
    shutil.rmtree(plate / "B/04")
    shutil.rmtree(plate / "C/01/0")
    shutil.rmtree(plate / "C/01/1")
    shutil.copytree(plate / "B/03", plate / "D/07")
    shutil.copytree(plate / "B/03/0", plate / "B/03/9")
    found = listed(tmp_path)
    assert [problem.well for problem in problems(found, "well_without_image")] == ["B04", "C01"]
    assert [(p.well, p.site) for p in problems(found, "missing_file")] == [("C01", "0"), ("C01", "1")]
    (unlisted,) = problems(found, "unlisted_files")
    assert unlisted.found.startswith("2 images that no site uses: P1.zarr/B/03/9, P1.zarr/D/07")


def test_images_that_no_site_uses_are_counted_once_for_each_plate(tmp_path):
    write_phenix(tmp_path / "P1__1")
    write_phenix(tmp_path / "P2__1")
    write(*(tmp_path / f"P2__1/Images/extra {n}.tif" for n in range(5)), tmp_path / "P2__1/AssayLayout/map.png")
    write(tmp_path / "elsewhere/scan.tif")
    (tmp_path / "P1__1/notes.txt").write_text("no image")
    one, two = listed(tmp_path)
    assert [(p.plate, p.found[:28]) for p in one.problems] == [("", "1 image that no site uses: e")]
    (problem,) = two.problems
    assert (problem.problem, problem.plate) == ("unlisted_files", "P2")
    assert problem.found.startswith("6 images that no site uses: ")
    assert problem.found.count(".") == 3 + 3  # three names and an ellipsis


def test_files_that_are_used_or_reported_otherwise_are_not_unlisted(tmp_path, write_indexed_screen):
    rows = [{"well": well} for well in ("B02", "bad")]
    folder = write_indexed_screen(tmp_path / "s", rows)
    tifffile.imwrite(folder / "illum_DNA.tif", np.ones((24, 32), np.float32))
    write(folder / "images/P1_B02_s1_w1_thumb.tif")
    (plate,) = listed(folder, illumination="illum_{channel}.tif")
    assert [problem.problem for problem in plate.problems] == ["bad_well_name"]


@pytest.mark.parametrize("layout", ["phenix", "index", "rxrx"])
def test_inspect_reports_the_same_problems(tmp_path, layout, write_indexed_screen):
    if layout == "phenix":
        write_phenix(tmp_path / "P1__1", lambda name: "f03" in name)
        write(tmp_path / "P1__1/Images/extra.tif")
    elif layout == "rxrx":
        write_rxrx(tmp_path, [f"x,H-1,1,{w},1,s" for w in ("B02", "B03")], ["H-1/Plate1/B02_s1"])
    else:
        rows = [{"well": well} for well in ("B02", "B03")]
        write(write_indexed_screen(tmp_path, rows, absent=["images/P1_B03_1_DNA.tif"]) / "x.tif")
    plates = listed(tmp_path)
    found = inspect_screen(
        ScreenSource(screen="s", path=str(tmp_path)), channel_vocabulary().aliases, layout_presets(), 8
    )
    n_of_labels = {} if layout == "rxrx" else {"no_perturbation": 1}
    assert {each.problem: each.n for each in found.problems} == Counter(
        p.problem for p in plates[0].problems
    ) | Counter(n_of_labels)


@pytest.mark.slow
def test_ten_thousand_absent_files_are_as_many_rows_and_one_line_of_an_inspection(tmp_path):
    lines = [f"x,H-1,1,{chr(65 + r)}{c + 1:02d},{s},s" for r in range(16) for c in range(24) for s in range(1, 27)]
    write_rxrx(tmp_path, lines, ["H-1/Plate1/A01_s1"])
    assert len(problems(listed(tmp_path), "missing_file")) == len(lines) - 1
    found = inspect_screen(
        ScreenSource(screen="s", path=str(tmp_path)), channel_vocabulary().aliases, layout_presets(), 8
    )
    assert {each.problem: each.n for each in found.problems}["missing_file"] == len(lines) - 1
    assert len(found.problems) == 2


def test_a_screen_without_images_says_what_its_listing_misses(tmp_path):
    write_phenix(tmp_path / "P1__1", lambda name: True)
    with pytest.raises(ScreenError, match=r"no plate with images|unknown layout"):
        listed(tmp_path)
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "plate", "well", "site", "channel"], ["a.tif", "P1", "A01", "1", "DNA"]])
    with pytest.raises(ScreenError, match="missing file"):
        listed(tmp_path)
