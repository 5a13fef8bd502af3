from __future__ import annotations

import pytest

from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource

PHENIX = "r{row:02d}c{column:02d}f{site:02d}p{z:02d}-ch{channel}sk{time}fk1fl1.tiff"


def phenix_names(rows=(2,), columns=(3,), sites=(1,), planes=(1,), channels=(1, 2), times=(1,)):
    return {
        (row, column, site, time, z, channel): PHENIX.format(
            row=row, column=column, site=site, z=z, channel=channel, time=time
        )
        for row in rows
        for column in columns
        for site in sites
        for z in planes
        for channel in channels
        for time in times
    }


def test_phenix_names_say_row_column_field_plane_channel_and_time(tmp_path, write_images, listed, numbers_read):
    names = phenix_names(rows=(1, 16), columns=(2, 24), sites=(1, 12), planes=(1, 2), channels=(1, 4), times=(1, 3))
    folder = "BR00117006__2020-11-08T18_57_47-Measurement1/Images/"
    numbers = write_images(tmp_path, [folder + name for name in names.values()])
    (plate,) = listed(tmp_path)
    assert plate.plate == "BR00117006"
    assert plate.problems == ()
    wells = {(1, 2): "A02", (1, 24): "A24", (16, 2): "P02", (16, 24): "P24"}
    assert numbers_read(plate) == {
        (wells[row, column], str(site), time - 1, str(z), f"ch{channel}"): numbers[folder + name]
        for (row, column, site, time, z, channel), name in names.items()
    }


def test_one_plane_is_no_plane(tmp_path, write_images, listed):
    write_images(tmp_path, [f"P1/Images/{name}" for name in phenix_names(planes=(4,)).values()])
    (plate,) = listed(tmp_path)
    assert [site.z for site in plate.sites] == [""]


def test_a_plate_has_its_name_whichever_of_its_folders_is_given_as_the_screen(tmp_path, write_images, listed):
    folder = tmp_path / "P1__2024-01-01T10_00_00-Measurement 1"
    write_images(folder / "Images", phenix_names().values())
    for given in (tmp_path, folder, folder / "Images"):
        assert [plate.plate for plate in listed(given)] == ["P1"]


def test_two_runs_of_one_plate_are_one_plate_unless_each_is_wanted(tmp_path, write_images, listed, of_screen):
    for run in ("P1__2024-01-01-Measurement1", "P1__2024-02-02-Measurement2", "P2__2024-01-01-Measurement1"):
        write_images(tmp_path / run / "Images", phenix_names().values())
    assert [(plate.plate, plate.acquisition) for plate in listed(tmp_path)] == [
        ("P1", "P1__2024-01-01-Measurement1"),
        ("P2", "P2__2024-01-01-Measurement1"),
    ]
    (problem,) = of_screen(tmp_path)
    assert (problem.problem, problem.plate, problem.file) == ("duplicate_plate", "P1", "P1__2024-02-02-Measurement2")
    assert "P1__2024-01-01-Measurement1" in problem.found
    assert [plate.plate for plate in listed(tmp_path, runs="each")] == [
        *("P1__2024-01-01-Measurement1", "P1__2024-02-02-Measurement2", "P2__2024-01-01-Measurement1")
    ]


INDEX_5 = """<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5" Version="1">
<Images>{images}</Images></EvaluationInputData>"""
IMAGE_5 = """<Image Version="1"><id>0203K1F1P1R{channel}</id><Row>2</Row><Col>3</Col><ChannelID>{channel}</ChannelID>
<ChannelName>{name}</ChannelName><ImageResolutionX Unit="m">{size}</ImageResolutionX></Image>"""
INDEX_6 = """<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV6"><Maps><Map>{entries}</Map></Maps>
<Images><Image><URL>r02c03f01p01-ch1sk1fk1fl1.tiff</URL><ChannelID>1</ChannelID></Image></Images></EvaluationInputData>"""
ENTRY_6 = """<Entry ChannelID="{channel}"><ChannelName>{name}</ChannelName>
<ImageResolutionX Unit="m">{size}</ImageResolutionX></Entry>"""


@pytest.mark.parametrize(("index", "item", "field"), [(INDEX_5, IMAGE_5, "images"), (INDEX_6, ENTRY_6, "entries")])
def test_the_harmony_index_names_channels_and_pixel_size(tmp_path, write_images, listed, index, item, field):
    write_images(tmp_path / "P1" / "Images", phenix_names(channels=(1, 2, 3)).values())
    stains = {1: "HOECHST 33342", 2: "Alexa &amp; 488", 3: "HOECHST 33342"}
    items = "".join(item.format(channel=n, name=name, size="5.97e-07") for n, name in stains.items())
    (tmp_path / "P1" / "Images" / "Index.idx.xml").write_text(index.format(**{field: items}))
    (plate,) = listed(tmp_path)
    assert plate.channels == ("DNA", "Alexa & 488", "HOECHST 33342 ch3")
    assert plate.pixel_size_um == pytest.approx(0.597)
    assert plate.problems == ()


ENTITIES = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY file SYSTEM "file:///etc/passwd">]><x><Image><ChannelID>1</ChannelID><ChannelName>&b;&file;</ChannelName></Image></x>"""


@pytest.mark.parametrize(
    "content", [ENTITIES, "<EvaluationInputData><Image>", "", "\0\0\0", '<?xml version="1.0" encoding="x"?><a/>']
)
def test_an_index_that_is_no_plain_xml_costs_the_channels_their_names_only(
    tmp_path, write_images, listed, of_screen, content
):
    write_images(tmp_path / "P1" / "Images", phenix_names().values())
    (tmp_path / "P1" / "Images" / "Index.idx.xml").write_text(content)
    (plate,) = listed(tmp_path)
    assert plate.channels == ("ch1", "ch2")
    assert [(problem.problem, problem.file) for problem in of_screen(tmp_path)] == [
        ("unreadable_file", "P1/Images/Index.idx.xml")
    ]


RXRX_WELLS = """well_id,experiment,plate,well,cell_type,well_type,sirna
HUVEC-1_1_B02,HUVEC-1,1,B02,HUVEC,negative_control,EMPTY
HUVEC-1_1_B03,HUVEC-1,1,B03,HUVEC,treatment,s1
HUVEC-1_2_B02,HUVEC-1,2,B02,HUVEC,treatment,s2
"""


@pytest.mark.parametrize("suffix", ["png", "jp2"])
def test_rxrx_plates_are_named_as_their_well_ids_begin(tmp_path, write_images, listed, numbers_read, suffix):
    places = [(plate, well, site) for plate, well in ((1, "B02"), (1, "B03"), (2, "B02")) for site in (1, 2)]
    names = {
        (plate, well, site, channel): f"images/HUVEC-1/Plate{plate}/{well}_s{site}_w{channel}.{suffix}"
        for plate, well, site in places
        for channel in range(1, 7)
    }
    numbers = write_images(tmp_path, names.values())
    (tmp_path / "metadata.csv").write_text(RXRX_WELLS)
    one, two = listed(tmp_path)
    assert (one.plate, two.plate) == ("HUVEC-1_1", "HUVEC-1_2")
    assert one.batch == two.batch == "HUVEC-1"
    stains = ("DNA", "ER", "Actin", "RNA", "Mito", "Golgi")
    assert one.channels == two.channels == stains
    assert numbers_read(one) | {(f"2{well}", *rest): n for (well, *rest), n in numbers_read(two).items()} == {
        ("2" * (plate == 2) + well, str(site), 0, "", stains[channel - 1]): numbers[name]
        for (plate, well, site, channel), name in names.items()
    }
    said = {(plate.plate, row["well"]): row["sirna"] for plate in (one, two) for row in plate.wells}
    assert said == {("HUVEC-1_1", "B02"): "EMPTY", ("HUVEC-1_1", "B03"): "s1", ("HUVEC-1_2", "B02"): "s2"}


def test_what_differs_between_the_sites_of_a_well_is_not_said_about_the_well(tmp_path, write_images, listed):
    write_images(tmp_path, ["HUVEC-1/Plate1/B02_s1_w1.png", "HUVEC-1/Plate1/B02_s2_w1.png"])
    (tmp_path / "metadata.csv").write_text(
        "site_id,experiment,plate,well,site,gene\nx_1,HUVEC-1,1,B02,1,TP53\nx_2,HUVEC-1,1,B02,2,TP53\n"
    )
    assert listed(tmp_path)[0].wells == ({"well": "B02", "batch": "HUVEC-1", "gene": "TP53"},)


def test_bbbc006_folders_are_focal_planes(tmp_path, write_images, listed, numbers_read):
    guid = "d6a3b8c4-1d5e-4c52-8ae2-6b4c3c0a3b1e"
    names = {
        (z, channel): f"BBBC006_v1_images_z_{z:02d}/mcf-z-stacks-03212011_a01_s1_w{channel}{guid}.tif"
        for z in (0, 16)
        for channel in (1, 2)
    }
    numbers = write_images(tmp_path, names.values())
    (plate,) = listed(tmp_path)
    assert plate.plate == "mcf-z-stacks-03212011"
    assert numbers_read(plate) == {
        ("A01", "1", 0, str(z), {1: "DNA", 2: "Actin"}[channel]): numbers[name] for (z, channel), name in names.items()
    }


def test_a_pattern_of_your_own_places_images_and_says_the_rest_about_the_well(
    tmp_path, write_images, listed, numbers_read
):
    numbers = write_images(tmp_path, ["p7/taxol_B-3_t05_mystery.tif", "p7/taxol_B-3_t05_blue.tif", "p7/notes.txt.tif"])
    pattern = r"(?P<plate>p\d+)/(?P<compound>[a-z]+)_(?P<well>[^_]+)_t(?P<timepoint>\d+)_(?P<channel>[a-z]+)\.tif"
    (plate,) = listed(tmp_path, layout="regex", pattern=pattern, channel_names=("blue -> DAPI",))
    assert plate.plate == "p7"
    assert plate.wells == ({"well": "B03", "compound": "taxol"},)
    assert numbers_read(plate) == {
        ("B03", "1", 5, "", "mystery"): numbers["p7/taxol_B-3_t05_mystery.tif"],
        ("B03", "1", 5, "", "DNA"): numbers["p7/taxol_B-3_t05_blue.tif"],
    }


def test_a_pattern_without_a_channel_reads_one_channel_and_without_a_plate_the_folder(tmp_path, write_images, listed):
    write_images(tmp_path / "week3", ["B02.tif", "B03.tif"])
    (plate,) = listed(tmp_path / "week3", layout="regex", pattern=r"(?P<well>[A-H]\d\d)\.tif")
    assert (plate.plate, plate.channels, len(plate.sites)) == ("week3", ("ch1",), 2)


def test_a_pattern_that_matches_nothing_is_reported(tmp_path, write_images, listed):
    write_images(tmp_path, ["B02.tif"])
    with pytest.raises(ScreenError, match=r"no plate with images, read as regex"):
        listed(tmp_path, layout="regex", pattern=r"(?P<well>[A-H]\d\d)\.png")


def test_a_well_that_the_pattern_takes_and_no_plate_has_is_a_problem_of_its_file(tmp_path, write_images, listed):
    write_images(tmp_path, ["B02.tif", "Z99.tif"])
    (plate,) = listed(tmp_path, layout="regex", pattern=r"(?P<well>[A-Z]\d\d)\.tif")
    assert [(problem.problem, problem.file) for problem in plate.problems] == [("bad_well_name", "Z99.tif")]


@pytest.mark.parametrize("pattern", ["(?P<well>.+", "(?P<plate>.+)", "(?P<row>.)", ""])
def test_a_pattern_that_cannot_place_an_image_is_refused_before_anything_is_read(pattern):
    with pytest.raises(ValueError, match="expected"):
        ScreenSource(screen="s", path="p", layout="regex", pattern=pattern)
