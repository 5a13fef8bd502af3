"""Faults of real folders and tables, each as a small input: does one pass in silence?

An input is read right, or what is wrong with it is reported: as a row of `quarantine`, a refusal, a hint of `inspect`.
A label that is lost or invented, a site that counts twice, a well that no plate has, without a word about it, counts
as one silent wrong result, and so does a Python traceback. The figure is their number; the bar is 0.

The kinds of faults are from public bug reports on vendor exports, LoadData tables, plate maps and OME-Zarr plates. It
is one file because the cases are a few lines each and share their small screens.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import tifffile
from inputs.small_screens import (
    counts,
    imagexpress,
    indexed,
    load_data,
    phenix,
    write_csv,
    write_tiff,
    zarr_plate,
)
from PIL import Image
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import Inspection, inspect_screen
from cytolake.catalog.ingest.plates import IngestConfig, IngestReport, ingest_screens
from cytolake.cli.main import app
from cytolake.pipeline.session import RayConfig, ray_session
from cytolake.qc.verdicts import QcConfig, judge_sites
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource

BAR = 0
WELL_SITE_CHANNEL = r"(?P<well>[A-P][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif"


@dataclass
class Lab:
    """A folder for one screen, the catalog it goes into, and what was found wrong in silence."""

    folder: Path
    silent: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def screen(self) -> Path:
        path = self.folder / "screen"
        path.mkdir(exist_ok=True)
        return path

    @property
    def root(self) -> Path:
        return self.folder / "lake"

    @property
    def catalog(self) -> cytolake.catalog.Catalog:
        return cytolake.catalog.open(self.root, create=True)

    def source(self, **fields: Any) -> ScreenSource:
        return ScreenSource(**{"screen": "s", "path": str(self.screen)} | fields)

    def ingest(self, **fields: Any) -> IngestReport | None:
        """None where the screen was refused, with its reason."""
        try:
            report = ingest_screens(self.catalog, [self.source(**fields)], IngestConfig(crop_size=32))
        except ScreenError as error:
            self.refused.append(str(error))
            return None
        self.refused += map(str, report.refused)
        return report

    def inspect(self, **fields: Any) -> Inspection:
        return inspect_screen(self.source(**fields), channel_vocabulary().aliases, layout_presets(), 32)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.catalog.sql(query).to_pylist()]

    def reported(self, *words: str) -> bool:
        """Whether one row of quarantine, or a refusal, has all of these words."""
        rows = self.rows(
            "select concat_ws(' ', plate, well, site, channel, file, problem, found, expected) from quarantine"
        )
        return any(all(word in text for word in words) for text in (*(row[0] for row in rows), *self.refused))

    def expect(self, is_right: bool, otherwise: str) -> None:
        if not is_right:
            self.silent.append(otherwise)

    def cytolake(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--root", str(self.root)])
        is_reported = done.exit_code == 0 or (isinstance(done.exception, SystemExit) and done.output.strip())
        self.expect(bool(is_reported), f"cytolake {' '.join(arguments)}: {done.exception!r}")
        return done.output


CASES: list[Callable[[Lab], None]] = []


def case(function: Callable[[Lab], None]) -> Callable[[Lab], None]:
    CASES.append(function)
    return function


@case
def a_replicate_column_of_a_wide_table(lab: Lab) -> None:
    """BBBC021's table, which has a column Replicate, another plate and wells that differ."""
    stains = ("DAPI", "Tubulin", "Actin")
    header = "TableNumber,ImageNumber,"
    header += ",".join(f"Image_FileName_{stain},Image_PathName_{stain}" for stain in stains)
    header += ",Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Replicate"
    header += ",Image_Metadata_Compound,Image_Metadata_Concentration"
    rows = []
    for number, (well, compound, dose) in enumerate((("B02", "DMSO", "0"), ("B03", "taxol", "0.3")), 1):
        files = []
        for stain in stains:
            name = f"{well}_{stain}.tif"
            write_tiff(lab.screen / "Week1/Week1_22123" / name, counts(name))
            files += [name, "Week1/Week1_22123"]
        rows.append(",".join(["0", str(number), *files, "Week1_22123", well, "1", compound, dose]))
    (lab.screen / "BBBC021_v1_image.csv").write_text("\n".join([header, *rows]) + "\n")
    lab.ingest()
    found = lab.rows("select well, compound, replicate from wells where has_images order by well")
    right = [("B02", "DMSO", "1"), ("B03", "taxol", "1")]
    lab.expect(found == right or bool(lab.refused), f"wells {found}")


@case
def two_digits_of_sites_and_wavelengths(lab: Lab) -> None:
    """ImageXpress: site 10 and wavelength 10 are no wells."""
    imagexpress(lab.screen, "P1", ["A01"], range(1, 13), ["DAPI"])
    imagexpress(lab.screen, "P2", ["B02"], [1], [f"stain {i}" for i in range(1, 12)])
    lab.ingest()
    found = lab.rows("select plate, well, count(distinct site), max(len(channels)) from sites group by all order by 1")
    lab.expect(found == [("P1", "A01", 12, 1), ("P2", "B02", 1, 11)], f"plates, wells, sites, channels {found}")


@case
def one_differing_cell(lab: Lab) -> None:
    """LoadData whose gene differs in one row of one well."""
    genes = {("A02", 2): "Myc"}
    of_well = {"A01": "TP53", "A02": "MYC", "A03": "KRAS"}
    load_data(lab.screen, labels=lambda well, site: {"Metadata_gene": genes.get((well, site), of_well[well])})
    lab.ingest()
    found = dict(lab.rows("select well, gene from wells"))
    lab.expect({found.get("A01"), found.get("A03")} == {"TP53", "KRAS"}, f"genes of the other wells: {found}")
    lab.expect(lab.reported("A02", "gene"), "the differing well is not reported")


@case
def a_second_imaging_run(lab: Lab) -> None:
    """ImageXpress and Phenix: a plate is imaged again; the first run must not come in a second time."""
    for write, first, second in (
        (lambda place, seed: imagexpress(place, "P1", seed=seed), "P1/2024-01-01/100", "P1/2024-01-08/101"),
        (
            lambda place, seed: phenix(place, seed=seed),
            "BR1__2024-01-01T10_00_00-Measurement 1",
            "BR1__2024-01-02T10_00_00-Measurement 2",
        ),
    ):
        own = Lab(Path(tempfile.mkdtemp(dir=lab.folder)))
        write(own.screen / first, "a")
        own.ingest()
        write(own.screen / second, "b")
        own.ingest()
        ((n_sites, n_images),) = own.rows("select count(*), count(distinct image_paths[1]) from sites")
        own.expect(n_sites == n_images, f"{n_sites} sites of {n_images} images")
        plates = own.rows("select count(*) from plates")
        own.expect(plates[0][0] == 2 or bool(own.refused), f"{plates[0][0]} plates, and the second run is not reported")
        lab.silent += own.silent


@case
def nothing_as_spreadsheets_write_it(lab: Lab) -> None:
    """NA, nan, #N/A and the like in label columns are no labels."""
    wells = [f"A{i:02d}" for i in range(1, 9)]
    indexed(lab.screen, wells=wells, channels=("DNA",))
    nothings = ("NA", "nan", "#N/A", "#REF!", "N/A", "null", "")
    rows = [
        {"plate": "P1", "well": well, "gene": nothing, "compound": "Taxol", "dose": nothing, "control": nothing}
        for well, nothing in zip(wells, nothings, strict=False)
    ]
    rows.append({"plate": "P1", "well": "A08", "gene": "TP53", "compound": "NA", "dose": "1", "control": ""})
    write_csv(lab.screen / "platemap.csv", rows)
    lab.ingest()
    found = lab.rows("select well, perturbation, gene, dose from wells order by well")
    right = [(well, "Taxol", "", None) for well in wells[:7]] + [("A08", "TP53", "TP53", 1.0)]
    lab.expect(found == right, f"wells {found}")


@case
def a_screen_that_grows(lab: Lab) -> None:
    """A plate that nobody touched is skipped when another arrives, with one plate map for all, or half copied."""
    wells = ("A01", "A02")
    names = ("P1", "P2", "P3")
    write_csv(lab.screen / "platemap.csv", [{"plate": p, "well": w, "gene": f"G{w}"} for p in names for w in wells])
    indexed(lab.screen, ("P1", "P2"), wells)
    lab.ingest()
    indexed(lab.screen, names, wells)
    report = lab.ingest()
    lab.expect(
        report is not None and (len(report.ingested), len(report.skipped)) == (1, 2), f"the third plate: {lab.refused}"
    )
    half = Lab(lab.folder / "half")
    half.folder.mkdir()
    image = {"pixels": counts("z", (2, 64, 64)), "labels": ["DAPI", "GFP"]}
    zarr_plate(half.screen / "P1.zarr", {"B/03": {"0": image}})
    (half.screen / "P2.zarr").mkdir()
    half.ingest()
    zarr_plate(half.screen / "P2.zarr", {"B/03": {"0": image}})
    report = half.ingest()
    lab.expect(
        report is not None and (len(report.ingested), len(report.skipped)) == (1, 1), f"half copied: {half.refused}"
    )


@case
def a_half_copied_export(lab: Lab) -> None:
    """What the index of a Phenix export, or RxRx1's metadata.csv, lists and is not there is reported."""
    phenix(
        lab.screen / "P1__2024-01-01T10_00_00-Measurement 1",
        fields=(1, 2, 3),
        is_copied=lambda name: not name.startswith("r01c02") and "f03" not in name,
    )
    lab.ingest()
    lab.expect(lab.reported("A02"), "Phenix: a well that was not copied")
    lab.expect(lab.reported("A01", "3") or lab.reported("f03"), "Phenix: a field that was not copied")
    rxrx = Lab(lab.folder / "rxrx")
    rxrx.folder.mkdir()
    _rxrx1(rxrx.screen, {"B02": ("treatment", "s1"), "B03": ("treatment", "s2")}, copied=("B02",))
    rxrx.ingest()
    lab.expect(rxrx.reported("B03"), "RxRx1: a well that was not copied")


@case
def damage_that_reads_as_pixels(lab: Lab) -> None:
    """Absent chunks of OME-Zarr, halves of zeros in TIFF files, pixels that are not numbers."""
    plate = zarr_plate(
        lab.screen / "P1.zarr",
        {"B/03": {"0": {"pixels": counts("chunks", (2, 64, 64)), "labels": ["DAPI", "GFP"]}}},
    )
    for name in ("0.0.0", "0.0.1"):
        (plate / "B/03/0/0" / name).unlink()
    lab.ingest()
    lab.expect(lab.reported("B03"), "absent chunks are read as counts of 0")
    tiff = Lab(lab.folder / "tiff")
    tiff.folder.mkdir()
    wells = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]
    indexed(tiff.screen, wells=wells)
    for well, channels in (("B02", ("DNA",)), ("C04", ("DNA", "ER"))):
        for channel in channels:
            path = tiff.screen / f"P1_{well}_{channel}.tif"
            pixels = tifffile.imread(path)
            pixels[32:] = 0
            tifffile.imwrite(path, pixels)
    tiff.ingest()
    judge_sites(tiff.catalog, QcConfig())
    failed = {
        row[0] for row in tiff.rows("select s.well from qc_verdicts v join sites s using (site_id) where not v.is_pass")
    }
    for well in ("B02", "C04"):
        lab.expect(well in failed or tiff.reported(well), f"half of well {well} is zeros")
    nan = Lab(lab.folder / "nan")
    nan.folder.mkdir()
    pixels = counts("nan").astype("f4")
    pixels[3, 3] = np.nan
    write_tiff(nan.screen / "A01_s1_DAPI.tif", pixels)
    nan.ingest(layout="regex", pattern=WELL_SITE_CHANNEL)
    lab.expect(nan.reported("A01"), "a pixel that is not a number")


@case
def the_first_file_is_damaged(lab: Lab) -> None:
    """One empty file must not rename the stain of a plate."""
    written = imagexpress(lab.screen, "P1", ["A01", "A02", "A03"])
    written[0].write_bytes(b"")
    lab.ingest()
    channels = lab.rows("select channels from plates")
    lab.expect(channels == [(["DNA", "GFP"],)] or lab.reported("w1"), f"channels {channels}")


@case
def labels_are_corrected(lab: Lab) -> None:
    """A plate map that was added, and one gene corrected, reach the wells; a file copied again is read again."""
    indexed(lab.screen)
    damaged = lab.screen / "P1_A01_DNA.tif"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:3000])
    lab.ingest()
    rows = [{"plate": "P1", "well": f"A0{i}", "gene": gene} for i, gene in enumerate(("TP53", "MYC", "KRAS", "NTC"), 1)]
    plate_map = write_csv(lab.screen / "platemap.csv", rows)
    lab.cytolake("plates", "annotate", "s/P1", "--plate-map", str(plate_map))
    lab.expect(("A01", "TP53") in lab.rows("select well, gene from wells"), "the plate map that was added")
    rows[0]["gene"], rows[1]["gene"] = "MYC", "TP53"
    write_csv(plate_map, rows)
    lab.cytolake("plates", "annotate", "s/P1", "--plate-map", str(plate_map))
    lab.expect(("A01", "MYC") in lab.rows("select well, gene from wells"), "the gene that was corrected")
    damaged.write_bytes(good)
    report = lab.ingest()
    lab.expect(report is not None and bool(report.refused), "the file that was copied again is not reported")
    lab.expect(any("plates replace" in text for text in lab.refused), "no advice that leads on")


@case
def labels_in_other_columns(lab: Lab) -> None:
    """Metadata_ prefixes, the names of other sources, columns that nobody knows."""
    indexed(lab.screen, channels=("DNA",))
    rows = [
        {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_gene": gene, "Metadata_control_type": control}
        for well, gene, control in (("A01", "TP53", ""), ("A02", "MYC", ""), ("A03", "KRAS", ""), ("A04", "", "negcon"))
    ]
    write_csv(lab.screen / "platemap.csv", rows)
    lab.ingest()
    found = lab.rows("select well, gene, control from wells order by well")
    right = [("A01", "TP53", ""), ("A02", "MYC", ""), ("A03", "KRAS", ""), ("A04", "", "negative")]
    lab.expect(found == right, f"Metadata_ columns: {found}")
    rxrx = Lab(lab.folder / "rxrx")
    rxrx.folder.mkdir()
    _rxrx1(rxrx.screen, {"B02": ("negative_control", "EMPTY"), "B03": ("treatment", "s21714")}, copied=("B02", "B03"))
    rxrx.ingest()
    found = rxrx.rows("select well, control, perturbation from wells order by well")
    lab.expect([row[:2] for row in found] == [("B02", "negative"), ("B03", "")], f"RxRx1: {found}")
    lab.expect(bool(found) and found[-1][2] == "s21714", f"RxRx1: {found}")
    strange = Lab(lab.folder / "strange")
    strange.folder.mkdir()
    indexed(strange.screen, channels=("DNA",))
    write_csv(
        strange.screen / "platemap.csv", [{"plate": "P1", "well": f"A0{i}", "what": f"x{i}"} for i in range(1, 5)]
    )
    strange.ingest()
    hints = " ".join(strange.inspect().advice) + str(strange.inspect().problems)
    lab.expect("what" in hints and strange.reported("what"), "a label column that nobody knows")


@case
def acquisitions_of_a_zarr_plate(lab: Lab) -> None:
    """Three cycles of one field with other stains are one site of all channels, or reported."""
    images = {
        str(cycle): {"pixels": counts(f"cycle{cycle}", (2, 64, 64)), "labels": ["DAPI", stain], "acquisition": cycle}
        for cycle, stain in enumerate(("GFP", "RFP", "Alexa 647"))
    }
    zarr_plate(lab.screen / "P1.zarr", {"B/03": images})
    lab.ingest()
    sites = lab.rows("select site, len(channels) from sites")
    lab.expect((len(sites) == 1 and sites[0][1] >= 4) or lab.reported("acquisition"), f"sites and channels {sites}")


@case
def a_projection_among_the_planes(lab: Lab) -> None:
    """ImageXpress with ZProjection: ZStep_0 is no focal plane."""
    for step in range(4):
        for path in imagexpress(lab.screen / f"TimePoint_1/ZStep_{step}", "P1", ["B02"], [1], ["DAPI"], seed=str(step)):
            path.rename(path.with_name("P1_B02_s1.TIF"))
    (lab.screen / "P1.HTD").write_text(
        '"HTSInfoFile", Version 1.0\n"TimePoints", 1\n"ZSeries", TRUE\n"ZSteps", 3\n"ZProjection", TRUE\n'
        '"XWells", 12\n"YWells", 8\n"Waves", FALSE\n"NWavelengths", 1\n"WaveName1", "DAPI"\n"EndFile"\n'
    )
    lab.ingest()
    planes = {row[0] for row in lab.rows("select z from sites")}
    lab.expect(len(planes) == 3 or lab.reported("projection"), f"planes {sorted(planes)}")


@case
def new_pixels_of_the_same_size(lab: Lab) -> None:
    """An uncompressed file whose pixels were replaced after the ingest is noticed."""
    indexed(lab.screen, channels=("DNA",))
    lab.ingest()
    path = lab.screen / "P1_A01_DNA.tif"
    write_tiff(path, counts("other", low=30_000, high=60_000))
    later = time.time() + 10
    os.utime(path, (later, later))
    report = lab.ingest()
    lab.expect(report is not None and bool(report.refused), "new pixels of the same size")


@case
def a_thumbnail_first(lab: Lab) -> None:
    """A reduced page before the image is no image."""
    pixels = counts("thumbnail", (128, 128))
    with tifffile.TiffWriter(lab.screen / "A01_s1_DAPI.tif") as file:
        file.write(pixels[::2, ::2].copy(), subfiletype=1)
        file.write(pixels)
    lab.ingest(layout="regex", pattern=WELL_SITE_CHANNEL)
    sizes = lab.rows("select height, width from sites")
    lab.expect(sizes == [(128, 128)] or lab.reported("A01"), f"sizes {sizes}")


@case
def channels_of_two_bit_depths(lab: Lab) -> None:
    """8-bit brightfield next to 16-bit fluorescence: inspect promises what ingest takes."""
    for well in ("A01", "A02"):
        for channel, dtype in (("DAPI", "u2"), ("Brightfield", "u1")):
            write_tiff(lab.screen / f"{well}_s1_{channel}.tif", counts(f"{well}{channel}", dtype=dtype))
    how = {"layout": "regex", "pattern": WELL_SITE_CHANNEL}
    promised = lab.inspect(**how).total("n_sites")
    report = lab.ingest(**how)
    lab.expect(report is not None and report.n_sites == promised, f"inspect promised {promised} sites, {report}")


@case
def zarr_plates_in_folders(lab: Lab) -> None:
    """Zarr plates below folders of runs are read, or where they lie is said."""
    image = {"pixels": counts("nested", (2, 64, 64)), "labels": ["DAPI", "GFP"]}
    for number in (1, 2):
        zarr_plate(lab.screen / f"run{number}/P{number}.zarr", {"B/03": {"0": image}})
    report = lab.ingest()
    lab.expect((report is not None and len(report.ingested) == 2) or "run1" in str(lab.refused), str(lab.refused))


@case
def other_spellings_of_an_index(lab: Lab) -> None:
    """Index.ref.xml names the stains of a Phenix export."""
    phenix(lab.screen / "P1__2024-01-01T10_00_00-Measurement 1", index="Index.ref.xml")
    lab.ingest()
    channels = lab.rows("select channels from plates")
    lab.expect("DNA" in channels[0][0] or lab.reported("Index.ref.xml"), f"channels {channels}")


@case
def load_data_as_parquet(lab: Lab) -> None:
    """The same table as Parquet."""
    load_data(lab.screen, labels=lambda well, _: {"Metadata_gene": f"gene of {well}"})
    table = pyarrow.csv.read_csv(lab.screen / "load_data.csv")
    pyarrow.parquet.write_table(table, lab.screen / "load_data_with_illum.parquet")
    (lab.screen / "load_data.csv").unlink()
    report = lab.ingest()
    genes = dict(lab.rows("select well, gene from wells"))
    lab.expect(genes.get("A01") == "gene of A01" or "parquet" in str(lab.refused), f"{report}, {genes}")


@case
def another_delimiter(lab: Lab) -> None:
    """A plate map with semicolons, as spreadsheets of half of Europe write it, and a byte order mark."""
    indexed(lab.screen, channels=("DNA",))
    path = write_csv(
        lab.screen / "platemap.csv",
        [{"plate": "P1", "well": f"A0{i}", "gene": f"G{i}"} for i in range(1, 5)],
        delimiter=";",
    )
    path.write_text("\ufeff" + path.read_text())
    lab.ingest()
    genes = dict(lab.rows("select well, gene from wells"))
    lab.expect(genes.get("A01") == "G1" or bool(lab.refused), f"genes {genes}")


@case
def the_same_files_under_another_name(lab: Lab) -> None:
    """A screen that was renamed does not come in a second time in silence."""
    indexed(lab.screen, channels=("DNA",))
    lab.ingest(screen="old")
    lab.ingest(screen="new")
    ((n_sites, n_images),) = lab.rows("select count(*), count(distinct image_paths[1]) from sites")
    lab.expect(n_sites == n_images or bool(lab.refused), f"{n_sites} sites of {n_images} images")


@case
def plates_are_retracted_and_renamed(lab: Lab) -> None:
    """What was retracted is in no table, what was renamed is there once."""
    indexed(lab.screen, ("P1", "P2"), channels=("DNA",))
    lab.ingest()
    lab.cytolake("plates", "retract", "s/P2", "--why", "contaminated")
    lab.cytolake("plates", "rename", "s/P1", "--plate", "BR01")
    plates = lab.rows("select distinct plate from crops")
    lab.expect(plates == [("BR01",)], f"plates of crops {plates}")


@case
def values_of_a_query(lab: Lab) -> None:
    """Ids come whole out of `cytolake sql`."""
    indexed(lab.screen, channels=("DNA",))
    lab.ingest()
    ids = {row[0] for row in lab.rows("select crop_id from crops")}
    printed = lab.cytolake("sql", "select crop_id, site_id, well_id, plate_id from crops")
    lab.expect(all(identity in printed for identity in list(ids)[:20]), "cut ids in a pipe")


@case
def forms_of_unicode(lab: Lab) -> None:
    """A folder from macOS (decomposed letters) and a plate map from Windows (composed ones)."""
    write_tiff(lab.screen / unicodedata.normalize("NFD", "Plaque é") / "A01_s1_DAPI.tif", counts("unicode"))
    write_csv(
        lab.screen / "platemap.csv",
        [{"plate": unicodedata.normalize("NFC", "Plaque é"), "well": "A01", "gene": "TP53"}],
    )
    lab.ingest(layout="regex", pattern=r"(?P<plate>[^/]+)/" + WELL_SITE_CHANNEL)
    genes = lab.rows("select gene from wells")
    lab.expect(genes == [("TP53",)], f"genes {genes}")


def _rxrx1(folder: Path, wells: dict[str, tuple[str, str]], copied: tuple[str, ...]) -> None:
    """RxRx1 as downloaded: six PNG files a site, and metadata.csv."""
    rows = []
    for well, (kind, sirna) in wells.items():
        rows.append(
            {
                **{"site_id": f"HUVEC-01_1_{well}_1", "well_id": f"HUVEC-01_1_{well}", "cell_type": "HUVEC"},
                **{"dataset": "train", "experiment": "HUVEC-01", "plate": "1", "well": well, "site": "1"},
                **{"well_type": kind, "sirna": sirna, "sirna_id": "7"},
            }
        )
        if well not in copied:
            continue
        for number in range(1, 7):
            path = folder / "images/HUVEC-01/Plate1" / f"{well}_s1_w{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(counts(str(path.name), dtype="u1", low=0)).save(path)
    write_csv(folder / "metadata.csv", rows)


def run_all(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name of each case, and what was wrong in silence."""
    for number, function in enumerate(CASES):
        place = folder / f"{number:02d}"
        place.mkdir()
        lab = Lab(place)
        try:
            function(lab)
        except Exception as error:  # the figure counts it; the others are still tried
            lab.silent.append(f"{type(error).__name__}: {error}")
        yield function.__name__, lab.silent


def main() -> int:
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    figure = 0
    with tempfile.TemporaryDirectory(prefix="cytolake-cases-") as folder, ray_session(RayConfig(cpus=2)):
        for name, silent in run_all(Path(folder)):
            print(f"{'ok' if not silent else 'SILENT':<7}{name.replace('_', ' ')}", flush=True)
            for text in silent:
                print(f"         {text[:400]}")
            figure += len(silent)
    print(json.dumps({"cases": len(CASES)}))
    print(f"cases: figure={figure} bar={BAR} {'ok' if figure <= BAR else 'short'}")
    return 0 if figure <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
