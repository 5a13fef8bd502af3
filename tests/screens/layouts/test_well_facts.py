"""Tables with several rows for each well: one cell that differs costs its own well, in every reader."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.sources import ScreenSource, list_plates
from cytolake.screens.well_facts import facts_of_wells

GENES = {"A01": "TP53", "A02": "MYC", "A03": "KRAS"}


def rows_of(column, wrong="Myc", sites=("1", "2")):
    """Rows of three wells; the last row of A02 has another value."""
    return [
        {"well": well, "site": site, column: wrong if (well, site) == ("A02", sites[-1]) else gene}
        for well, gene in GENES.items()
        for site in sites
    ]


def listed(root, **settings):
    source = ScreenSource(screen="s", path=str(root), **settings)
    (plate,) = list_plates(source, channel_vocabulary().aliases, layout_presets())
    return plate


def write(path, rows):
    path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(row.values()) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("column", ["gene", "Metadata_Gene_Symbol", "clinic", "Treatment"])
def test_one_cell_that_differs_costs_its_own_well(column):
    facts, conflicts = facts_of_wells((("P", row["well"]), {column: row[column]}) for row in rows_of(column))
    assert {well: of_well.get(column) for (_, well), of_well in facts.items()} == {**GENES, "A02": None}
    assert [(each.well, each.column, each.values) for each in conflicts] == [("A02", column, ("MYC", "Myc"))]


def test_a_column_that_differs_within_most_wells_is_about_sites():
    facts, conflicts = facts_of_wells((("P", row["well"]), {"site": row["site"]}) for row in rows_of("gene"))
    assert set(facts) == {("P", well) for well in GENES}
    assert not any(facts.values())
    assert conflicts == []


def test_a_label_that_differs_within_all_wells_is_reported_for_each():
    rows = [(("P", "A01"), {"gene": "TP53"}), (("P", "A01"), {"gene": "MYC"})]
    facts, conflicts = facts_of_wells(rows)
    assert facts == {("P", "A01"): {}}
    assert len(conflicts) == 1


def test_cells_that_say_nothing_and_other_unicode_forms_disagree_with_none():
    forms = [unicodedata.normalize(form, "Naïve") for form in ("NFC", "NFD")]
    rows = [(("P", "A01"), {"gene": gene}) for gene in ("NA", *forms, "", "#N/A")]
    assert facts_of_wells(rows) == ({("P", "A01"): {"gene": forms[0]}}, [])


def test_a_plate_does_not_depend_on_the_other_plates_of_its_table():
    one = [(("P1", row["well"]), {"lot": row["gene"]}) for row in rows_of("gene", wrong="MYC")]
    other = [(("P2", row["well"]), {"lot": row["site"]}) for row in rows_of("gene")]
    alone, _ = facts_of_wells(one)
    together, _ = facts_of_wells(one + other)
    assert {place: facts for place, facts in together.items() if place[0] == "P1"} == alone


@pytest.fixture(params=["load-data", "index-csv", "rxrx", "plate map"])
def reader(request, tmp_path, write_images):
    """The folder of a screen whose table says MYC and Myc of A02, read in one of the ways that there are."""
    table = rows_of("gene")
    if request.param == "load-data":
        names = [f"images/{row['well']}_{row['site']}.tif" for row in table]
        write(tmp_path / "load_data.csv", [
            {"FileName_OrigDNA": name.removeprefix("images/"), "PathName_OrigDNA": "images", "Metadata_Plate": "P1",
             "Metadata_Well": row["well"], "Metadata_Site": row["site"], "Metadata_gene": row["gene"]}
            for row, name in zip(table, names, strict=True)
        ])  # fmt: skip
    elif request.param == "rxrx":
        names = [f"HUVEC-1/Plate1/{row['well']}_s{row['site']}_w1.png" for row in table]
        write(tmp_path / "metadata.csv", [
            {"experiment": "HUVEC-1", "plate": "1", "well": row["well"], "site": row["site"], "gene": row["gene"]}
            for row in table
        ])  # fmt: skip
    else:
        names = [f"{row['well']}_{row['site']}.tif" for row in table]
        in_map = request.param == "plate map"
        write(tmp_path / "index.csv", [
            {"path": name, "plate": "P1", "well": row["well"], "site": row["site"], "channel": "DNA"}
            | ({} if in_map else {"gene": row["gene"]})
            for row, name in zip(table, names, strict=True)
        ])  # fmt: skip
        if in_map:
            write(
                tmp_path / "platemap.csv", [{"plate": "P1", "well": row["well"], "gene": row["gene"]} for row in table]
            )
    write_images(tmp_path, names)
    return tmp_path


def test_every_reader_keeps_the_other_wells_and_names_well_column_and_both_values(reader):
    plate = listed(reader)
    assert {row["well"]: row["gene"] for row in plate.wells if row.get("gene")} == {"A01": "TP53", "A03": "KRAS"}
    (problem,) = [each for each in plate.problems if "Myc" in each.found]
    assert (problem.plate, problem.well) == (plate.plate, "A02")
    assert "gene" in problem.found
    assert "MYC" in problem.found


def test_a_load_data_table_is_read_as_parquet_as_it_is_as_csv(tmp_path, write_images):
    rows = [
        {"FileName_OrigDNA": f"{well}_{site}.tif", "PathName_OrigDNA": "images", "Metadata_Plate": "20115",
         "Metadata_Well": well, "Metadata_Site": str(site), "Metadata_dose": "0.5", "Metadata_compound": "taxol"}
        for well in ("A01", "A02") for site in (1, 2)
    ]  # fmt: skip
    write_images(tmp_path, [f"images/{row['FileName_OrigDNA']}" for row in rows])
    write(tmp_path / "load_data.csv", rows)
    as_csv = listed(tmp_path)
    table = pyarrow.csv.read_csv(tmp_path / "load_data.csv")
    missing = pa.array([None] * table.num_rows, pa.float64())
    pq.write_table(table.append_column("Metadata_Empty", missing), tmp_path / "load_data_with_illum.parquet")
    (tmp_path / "load_data.csv").unlink()
    as_parquet = listed(tmp_path)
    assert as_parquet.plate == as_csv.plate == "20115"
    assert as_parquet.sites == as_csv.sites
    assert as_parquet.wells == as_csv.wells
    assert as_parquet.problems == as_csv.problems == ()


@pytest.mark.parametrize("in_map", ["NFC", "NFD"])
def test_names_are_compared_in_one_unicode_form(tmp_path, write_images, in_map):
    of_folder, of_map = [
        unicodedata.normalize(form, "Plaque é") for form in ({"NFC": "NFD"}.get(in_map, "NFC"), in_map)
    ]
    write_images(tmp_path, [f"{of_folder}/A01_s1_DAPI.tif"])
    (tmp_path / "platemap.csv").write_text(f"plate,well,gene\n{of_map},A01,TP53\n", encoding="utf-8")
    pattern = r"(?P<plate>[^/]+)/(?P<well>[A-H][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif"
    plate = listed(tmp_path, layout="regex", pattern=pattern)
    assert (plate.plate, plate.problems) == (of_folder, ())
    assert plate.wells[0]["gene"] == "TP53"


def test_groups_of_an_alternative_that_took_no_part_name_their_column(tmp_path, write_images):
    write_images(tmp_path, ["Week1_22123/B02_s1_w1.tif", "Week1_22123/B02_s1_w2.tif"])
    (tmp_path / "BBBC021_v1_image.csv").write_text(
        "Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Actin,Image_PathName_Actin,Image_Metadata_Plate_DAPI,"
        "Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,Image_Metadata_Concentration\n"
        "B02_s1_w1.tif,Week1/Week1_22123,B02_s1_w2.tif,Week1/Week1_22123,Week1_22123,B02,1,taxol,0.3\n"
    )
    (row,) = listed(tmp_path).wells
    assert row == {"well": "B02", "Replicate": "1", "Compound": "taxol", "Concentration": "0.3"}


def test_a_plate_without_a_named_batch_is_a_batch_of_its_own_in_its_screen(tmp_path, write_images):
    write_images(tmp_path, ["P1/A01_s1_DAPI.tif"])
    pattern = r"(?P<plate>[^/]+)/(?P<well>[A-H][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif"
    source = {"path": str(tmp_path), "layout": "regex", "pattern": pattern}
    batches = {list_plates(ScreenSource(screen=name, **source))[0].batch for name in ("one", "two")}
    assert batches == {"one/P1", "two/P1"}
    (tmp_path / "platemap.csv").write_text("plate,well,Metadata_Batch\nP1,A01,week 1\n")
    assert list_plates(ScreenSource(screen="one", **source))[0].batch == "week 1"
