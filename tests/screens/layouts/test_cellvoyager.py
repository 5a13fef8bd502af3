from __future__ import annotations

import pytest

MLF = """<?xml version="1.0" encoding="utf-8"?>
<bts:MeasurementData xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0" bts:Version="1.0">
{records}</bts:MeasurementData>"""
IMAGE = """  <bts:MeasurementRecord bts:Time="2024-05-02T10:00:00" bts:Column="{column}" bts:Row="{row}"
 bts:TimePoint="{time}" bts:FieldIndex="{site}" bts:ZIndex="{z}" bts:TimelineIndex="1" bts:ActionIndex="1"
 bts:Action="2D" bts:Type="IMG" bts:Ch="{channel}" bts:X="0" bts:Y="0" bts:Z="0">{file}</bts:MeasurementRecord>
"""
ERROR = """  <bts:MeasurementRecord bts:Time="2024-05-02T10:00:01" bts:Column="3" bts:Row="2" bts:TimePoint="1"
 bts:FieldIndex="2" bts:Type="ERR" bts:Ch="1">Autofocus failed</bts:MeasurementRecord>
"""
MRF = """<?xml version="1.0" encoding="utf-8"?>
<bts:MeasurementDetail xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0" bts:RowCount="16" bts:ColumnCount="24">
  <bts:MeasurementChannel bts:Ch="1" bts:HorizontalPixelDimension="0.65" bts:VerticalPixelDimension="0.65"/>
  <bts:MeasurementChannel bts:Ch="2" bts:HorizontalPixelDimension="0.65" bts:VerticalPixelDimension="0.65"/>
</bts:MeasurementDetail>"""
MES = """<?xml version="1.0" encoding="utf-8"?>
<bts:MeasurementSetting xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"><bts:ChannelList>
  <bts:Channel bts:Ch="2" bts:Target="MitoTracker" bts:Acquisition="BP600/37"/>
  <bts:Channel bts:Ch="1" bts:Acquisition="BP445/45"/>
</bts:ChannelList></bts:MeasurementSetting>"""


def records(places):
    """(records of a .mlf, file names) for (row, column, site, time, z, channel)."""
    names = {
        place: "P_{:02d}{:02d}_T{:04d}F{:03d}L01A01Z{:02d}C{:02d}.tif".format(
            *place[:2], place[3], place[2], *place[4:]
        )
        for place in places
    }
    text = "".join(
        IMAGE.format(row=row, column=column, site=site, time=time, z=z, channel=channel, file=names[place])
        for place in places
        for row, column, site, time, z, channel in [place]
    )
    return text, names


@pytest.fixture
def write_measurement(write_images):
    def write(folder, places, extra=""):
        text, names = records(places)
        numbers = write_images(folder, names.values())
        (folder / "MeasurementData.mlf").write_text(MLF.format(records=text + extra))
        return {place: numbers[name] for place, name in names.items()}

    return write


def test_records_say_where_each_image_belongs(tmp_path, write_measurement, listed, numbers_read):
    places = [(2, 3, 1, 1, z, c) for z in (1, 2) for c in (1, 2)] + [(16, 24, 12, 5, 1, 1), (16, 24, 12, 5, 1, 2)]
    numbers = write_measurement(tmp_path / "plate7", places)
    (tmp_path / "plate7" / "MeasurementDetail.mrf").write_text(MRF)
    (tmp_path / "plate7" / "assay.mes").write_text(MES)
    (plate,) = listed(tmp_path)
    assert plate.plate == "plate7"
    assert plate.channels == ("DNA", "Mito")
    assert plate.pixel_size_um == pytest.approx(0.65)
    assert plate.problems == ()
    wells = {(2, 3): "B03", (16, 24): "P24"}
    assert numbers_read(plate) == {
        (wells[row, column], str(site), time - 1, str(z), ("DNA", "Mito")[channel - 1]): number
        for (row, column, site, time, z, channel), number in numbers.items()
    }


def test_an_error_record_is_a_problem_of_its_place_and_the_rest_is_read(tmp_path, write_measurement, listed, of_screen):
    write_measurement(tmp_path, [(2, 3, 1, 1, 1, 1)], extra=ERROR)
    (plate,) = listed(tmp_path)
    (problem,) = of_screen(tmp_path)
    assert (problem.problem, problem.well, problem.site) == ("acquisition_error", "B03", "2")
    assert problem.found == "Autofocus failed"
    assert len(plate.sites) == 1


@pytest.mark.parametrize(
    "file", ["/etc/hostname", "..\\other.tif", "../other.tif", "C:\\data\\x.tif", "\\\\server\\x.tif"]
)
def test_a_record_that_leaves_the_folder_is_refused(tmp_path, write_measurement, write_images, listed, file):
    write_images(tmp_path, ["other.tif"])
    outside = IMAGE.format(row=4, column=4, site=1, time=1, z=1, channel=1, file=file)
    write_measurement(tmp_path / "screen" / "plate7", [(2, 3, 1, 1, 1, 1)], extra=outside)
    (plate,) = listed(tmp_path / "screen")
    assert [(problem.problem, problem.well) for problem in plate.problems] == [("path_outside_screen", "D04")]
    assert [site.well for site in plate.sites] == ["B03"]


def test_without_settings_channels_have_numbers(tmp_path, write_measurement, listed):
    write_measurement(tmp_path, [(1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 4)])
    (plate,) = listed(tmp_path)
    assert (plate.channels, plate.pixel_size_um) == (("ch1", "ch4"), None)


def test_a_file_that_is_cut_gives_what_it_holds_and_says_so(tmp_path, write_measurement, listed, of_screen):
    write_measurement(tmp_path, [(1, column, 1, 1, 1, 1) for column in range(1, 9)])
    file = tmp_path / "MeasurementData.mlf"
    text = file.read_text()
    file.write_text(text[: text.index('bts:Column="8"')])
    (plate,) = listed(tmp_path)
    assert [(problem.problem, problem.file) for problem in plate.problems] == [
        ("unlisted_files", "P_0108_T0001F001L01A01Z01C01.tif")  # listed behind the cut
    ]
    assert [(problem.problem, problem.file) for problem in of_screen(tmp_path)] == [
        ("unreadable_file", "MeasurementData.mlf")
    ]
    assert len(plate.sites) == 7


def test_folders_of_one_name_are_runs_of_one_plate(tmp_path, write_measurement, listed, of_screen):
    for day in ("monday", "tuesday"):
        write_measurement(tmp_path / day / "plate7", [(1, 1, 1, 1, 1, 1)])
    assert [(plate.plate, plate.acquisition) for plate in listed(tmp_path)] == [("plate7", "monday/plate7")]
    assert [(problem.problem, problem.file) for problem in of_screen(tmp_path)] == [
        ("duplicate_plate", "tuesday/plate7")
    ]
    assert [plate.plate for plate in listed(tmp_path, runs="each")] == ["monday_plate7", "tuesday_plate7"]
