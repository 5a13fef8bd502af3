from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import ScreenError

CHANNELS = ("DNA", "ER", "Mito")
HOME = "/home/ubuntu/bucket/projects/screen"


def write_table(file, rows):
    """A CSV of dicts, with the columns of the first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def load_data_row(well, site, *, plate="P1", at=f"{HOME}/images/P1", illumination=False, **others):
    row = {f"FileName_Orig{channel}": f"{plate}_{well}_{site}_{channel}.tif" for channel in CHANNELS}
    row |= {f"PathName_Orig{channel}": at for channel in CHANNELS}
    row |= {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": str(site)}
    if illumination:
        row |= {f"FileName_Illum{channel}": f"{plate}_Illum{channel}.npy" for channel in CHANNELS}
        row |= {f"PathName_Illum{channel}": f"{HOME}/illum/{plate}" for channel in CHANNELS}
    return row | others


def image_paths(rows):
    return [f"images/P1/{row[f'FileName_Orig{channel}']}" for row in rows for channel in CHANNELS]


PLACES = [(well, site) for well in ("A01", "B02") for site in (1, 2)]


@pytest.fixture
def rows():
    return [load_data_row(well, site) for well, site in PLACES]


def test_load_data_rows_become_sites_when_the_old_folder_is_named(tmp_path, write_images, listed, numbers_read, rows):
    numbers = write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "load_data" / "load_data.csv", rows)
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert plate.plate == "P1"
    assert plate.problems == ()
    assert numbers_read(plate) == {
        (well, str(site), 0, "", channel): numbers[f"images/P1/P1_{well}_{site}_{channel}.tif"]
        for well, site in PLACES
        for channel in CHANNELS
    }


@pytest.mark.parametrize(
    ("at", "prefix"),
    [
        ("images/P1", ()),
        (f"{HOME}/images/P1/", (HOME + "/",)),
        (f"file:{HOME}/images/P1", (HOME,)),
        ("D:\\screens\\one\\images\\P1", ("D:\\screens\\one",)),
        ("D:\\pictures", ("D:\\pictures -> images/P1",)),
    ],
)
def test_folders_are_found_however_the_table_spells_them(tmp_path, write_images, listed, at, prefix):
    rows = [load_data_row("A01", 1, at=at)]
    write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "load_data.csv", rows)
    (plate,) = listed(tmp_path, path_prefix=prefix)
    assert plate.sites[0].image_paths == tuple(str(tmp_path / path) for path in image_paths(rows))


def test_paths_next_to_the_table_are_found_too(tmp_path, write_images, listed):
    rows = [load_data_row("A01", 1, at="images/P1")]
    write_images(tmp_path / "batch1", image_paths(rows))
    write_table(tmp_path / "batch1" / "load_data.csv", rows)
    assert listed(tmp_path)[0].sites[0].image_paths[0].startswith(str(tmp_path / "batch1" / "images"))


@pytest.mark.parametrize("at", [f"{HOME}/images/P1", "..", "images/../../other", "https://somewhere.org/x", "C:\\x"])
def test_folders_outside_the_screen_are_not_followed_even_where_they_exist(tmp_path, write_images, listed, at):
    rows = [load_data_row("A01", 1, at=at)]
    screen = tmp_path / "screen"
    write_images(tmp_path, [path.rpartition("/")[2] for path in image_paths(rows)])
    write_images(tmp_path / "other", [path.rpartition("/")[2] for path in image_paths(rows)])
    write_table(screen / "load_data.csv", rows)
    with pytest.raises(ScreenError) as caught:
        listed(screen)
    assert [problem.problem for problem in caught.value.problems] == ["no_images", *["path_outside_screen"] * 3]


def test_an_absolute_path_says_that_a_prefix_would_do(tmp_path, listed, rows):
    write_table(tmp_path / "load_data.csv", rows)
    with pytest.raises(ScreenError, match="path_prefix"):
        listed(tmp_path)


def test_the_table_with_illumination_columns_is_taken_and_counts_are_divided(tmp_path, write_images, listed, rows):
    rows = [load_data_row(well, site, illumination=True) for well, site in PLACES]
    write_images(tmp_path, image_paths(rows), first=100)
    write_table(tmp_path / "load_data" / "load_data.csv", [load_data_row(well, site) for well, site in PLACES])
    write_table(tmp_path / "load_data" / "load_data_with_illum.csv", rows)
    (tmp_path / "illum" / "P1").mkdir(parents=True)
    functions = {channel: np.full((6, 8), 1.0 + i, np.float32) for i, channel in enumerate(CHANNELS)}
    for channel, function in functions.items():
        np.save(tmp_path / "illum" / "P1" / f"P1_Illum{channel}.npy", function)
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert plate.problems == ()
    assert len(plate.sites) == len(PLACES)
    for site in plate.sites:
        raw = read_site(site, is_corrected=False)
        expected = np.stack([np.rint(raw[i] / functions[channel]) for i, channel in enumerate(site.channels)])
        np.testing.assert_array_equal(read_site(site), expected)
    (uncorrected,) = listed(tmp_path, path_prefix=(HOME,), illumination="none")
    assert all(site.illumination_paths == () for site in uncorrected.sites)


def test_a_function_that_is_missing_is_reported_once_and_the_channel_is_read_as_it_is(tmp_path, write_images, listed):
    rows = [load_data_row(well, site, illumination=True) for well, site in PLACES]
    write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "load_data_with_illum.csv", rows)
    for channel in CHANNELS[:2]:
        (tmp_path / "illum" / "P1").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "illum" / "P1" / f"P1_Illum{channel}.npy", np.ones((6, 8)))
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert [(problem.problem, problem.channel) for problem in plate.problems] == [("missing_illumination", "Mito")]
    assert plate.sites[0].illumination_paths[2] == ""
    assert plate.sites[0].illumination_paths[0].endswith("P1_IllumDNA.npy")


def test_urls_below_the_prefix_are_the_screens_own_files(tmp_path, write_images, listed):
    bucket = "https://bucket.s3.amazonaws.com/screen"
    row = {f"URL_Orig{channel}": f"{bucket}/images/A01_{channel}.tif" for channel in CHANNELS}
    write_images(tmp_path, [f"images/A01_{channel}.tif" for channel in CHANNELS])
    write_table(tmp_path / "load_data.csv", [row | {"Metadata_Plate": "P1", "Metadata_Well": "A01"}])
    (plate,) = listed(tmp_path, path_prefix=(bucket,))
    assert plate.channels == CHANNELS
    assert plate.sites[0].image_paths[1] == str(tmp_path / "images" / "A01_ER.tif")


def test_metadata_columns_say_something_about_the_well_where_they_have_one_value_there(tmp_path, write_images, listed):
    rows = [
        load_data_row(well, site, Metadata_compound=f"c-{well}", Metadata_AbsTime=f"{well}{site}")
        for well, site in PLACES
    ]
    write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "load_data.csv", rows)
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert plate.wells == ({"well": "A01", "compound": "c-A01"}, {"well": "B02", "compound": "c-B02"})


def test_rows_and_columns_stand_for_wells_where_the_table_has_no_wells(tmp_path, write_images, listed):
    row = load_data_row("A01", 1) | {"Metadata_Well": "", "Metadata_Row": "2", "Metadata_Col": "11"}
    write_images(tmp_path, image_paths([row]))
    write_table(tmp_path / "load_data.csv", [row])
    assert [site.well for site in listed(tmp_path, path_prefix=(HOME,))[0].sites] == ["B11"]


def test_an_empty_cell_means_that_the_channel_was_not_taken_there(tmp_path, write_images, listed, codes):
    rows = [load_data_row(well, site) for well, site in PLACES]
    write_images(tmp_path, image_paths(rows))
    rows[0]["FileName_OrigER"] = ""
    write_table(tmp_path / "load_data.csv", rows)
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert plate.sites[0].channels == ("DNA", "Mito")
    assert codes(plate) == ["missing_channel", "unlisted_files"]  # its file is there


def test_a_table_of_another_name_is_named_with_its_layout(tmp_path, write_images, listed, rows):
    write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "mine.csv", rows)
    (plate,) = listed(tmp_path, layout="load-data", index="mine.csv", path_prefix=(HOME,))
    assert len(plate.sites) == len(PLACES)


def test_a_table_without_wells_says_which_columns_are_looked_for(tmp_path, listed):
    write_table(
        tmp_path / "load_data.csv", [{"FileName_OrigDNA": "a.tif", "PathName_OrigDNA": "", "Metadata_Plate": "P"}]
    )
    with pytest.raises(ScreenError, match=r"no column for the well \(Metadata_Well"):
        listed(tmp_path, layout="load-data")


def test_the_real_bbbc021_table_places_its_images(real_data, tmp_path, write_images, listed, numbers_read):
    real = real_data / "bbbc021_ljosa_profiles" / "BBBC021_v1_image.csv.gz"
    if not real.is_file():
        pytest.skip("the table of BBBC021 is not among the real screens here")
    with gzip.open(real, "rt", encoding="utf-8") as text:
        of_plate = [row for row in csv.DictReader(text) if row["Image_Metadata_Plate_DAPI"] == "Week1_22123"]
    assert len(of_plate) == 240
    chosen = of_plate[:40]
    places = {}
    for row in chosen:
        site = row["Image_FileName_DAPI"].split("_s")[1][0]
        for channel, stain in (("DAPI", "DNA"), ("Tubulin", "Tubulin"), ("Actin", "Actin")):
            path = f"{row[f'Image_PathName_{channel}'].rpartition('/')[2]}/{row[f'Image_FileName_{channel}']}"
            places[row["Image_Metadata_Well_DAPI"], site, 0, "", stain] = path
    numbers = write_images(tmp_path, places.values())
    with gzip.open(tmp_path / real.name, "wt", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(of_plate[0]))
        writer.writeheader()
        writer.writerows(of_plate)
    (plate,) = listed(tmp_path)
    assert plate.plate == "Week1_22123"
    assert plate.channels == ("DNA", "Tubulin", "Actin")
    assert numbers_read(plate) == {place: numbers[path] for place, path in places.items()}
    compounds = {row["Image_Metadata_Well_DAPI"]: row["Image_Metadata_Compound"] for row in chosen}
    assert {row["well"]: row["Compound"] for row in plate.wells} == compounds
    found = [problem.problem for problem in plate.problems]
    assert found == ["missing_file"] * (3 * 200)  # the rest of the plate


@pytest.mark.parametrize(
    "place", ["BBBC022_v1_images_20585{w}/{file}", "images/20585/{file}", "20585/{file}", "{file}"]
)
def test_bbbc022_images_are_found_where_the_archives_unpack_to(tmp_path, write_images, listed, place):
    channels = {"Hoechst": "w1", "ER": "w2", "Syto": "w3", "Ph_golgi": "w4", "Mito": "w5"}
    rows = []
    for well, site in (("a01", 1), ("a01", 2), ("b02", 1)):
        row = {
            f"Image_FileName_Orig{channel}": f"IXMtest_{well}_s{site}_{w}AB12.tif" for channel, w in channels.items()
        }
        row |= {"Image_Metadata_PlateID": "20585", "Image_Metadata_CPD_WELL_POSITION": well}
        row |= {
            "Image_Metadata_Site": str(site),
            "Image_Metadata_ASSAY_WELL_ROLE": {"a01": "mock", "b02": "compound"}[well],
        }
        rows.append(row)
        write_images(
            tmp_path, [place.format(w=w, file=row[f"Image_FileName_Orig{channel}"]) for channel, w in channels.items()]
        )
    write_table(tmp_path / "BBBC022_v1_image.csv", rows)
    (plate,) = listed(tmp_path)
    assert (plate.plate, plate.channels, plate.problems) == ("20585", ("DNA", "ER", "RNA", "AGP", "Mito"), ())
    assert [(site.well, site.site) for site in plate.sites] == [("A01", "1"), ("A01", "2"), ("B02", "1")]
    assert [row["ASSAY_WELL_ROLE"] for row in plate.wells] == ["mock", "compound"]


def test_a_row_with_too_many_cells_is_reported_and_left_out(tmp_path, write_images, listed, of_screen, rows):
    write_images(tmp_path, image_paths(rows))
    write_table(tmp_path / "load_data.csv", rows)
    lines = (tmp_path / "load_data.csv").read_text().splitlines()
    lines[2] = lines[2].replace(",A01,", ",compound, with comma,A01,")
    (tmp_path / "load_data.csv").write_text("\n".join(lines))
    (plate,) = listed(tmp_path, path_prefix=(HOME,))
    assert [problem.problem for problem in plate.problems] == ["unlisted_files"]
    (problem,) = of_screen(tmp_path, path_prefix=(HOME,))
    assert problem.problem == "ragged_row"
    assert "line 3" in problem.found
    assert [(site.well, site.site) for site in plate.sites] == [("A01", "1"), ("B02", "1"), ("B02", "2")]


def test_tables_of_two_imaging_runs_are_two_runs_of_a_plate(tmp_path, write_images, listed, of_screen):
    header = "FileName_OrigDNA,PathName_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\n"
    for run in ("batch1", "batch2"):
        write_images(tmp_path / run, ["a.tif", "b.tif"])
        (tmp_path / run / "load_data.csv").write_text(f"{header}a.tif,{run},P1,A01,1\nb.tif,{run},P1,A02,1\n")
    (plate,) = listed(tmp_path)
    assert plate.acquisition == "batch1"
    assert all("/batch1/" in path for site in plate.sites for path in site.image_paths)
    assert plate.problems == ()
    assert [(problem.problem, problem.file) for problem in of_screen(tmp_path)] == [("duplicate_plate", "batch2")]
    assert [plate.plate for plate in listed(tmp_path, runs="each")] == ["P1_batch1", "P1_batch2"]


def test_tables_that_share_a_plate_out_make_one_plate(tmp_path, write_images, listed, of_screen):
    header = "FileName_OrigDNA,PathName_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\n"
    for part, well in (("part1", "A01"), ("part2", "A02")):
        write_images(tmp_path / part, ["a.tif"])
        (tmp_path / part / "load_data.csv").write_text(f"{header}a.tif,{part},P1,{well},1\n")
    (plate,) = listed(tmp_path)
    assert [site.well for site in plate.sites] == ["A01", "A02"]
    assert plate.problems == of_screen(tmp_path) == ()
