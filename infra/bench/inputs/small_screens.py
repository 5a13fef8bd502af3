"""Writers of small screens in the layouts of vendors and tools: random counts, real names and metadata."""

from __future__ import annotations

import csv
import json
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

Counts = NDArray[Any]


def counts(key: str, shape: tuple[int, ...] = (64, 64), dtype: str = "u2", low: int = 100, high: int = 4000) -> Counts:
    """Counts that depend on the key alone; under 200 at most where the type has 8 bits."""
    random = np.random.default_rng(zlib.crc32(key.encode()))
    return random.integers(low, min(high, 200) if dtype == "u1" else high, shape).astype(dtype)


def write_tiff(path: Path, pixels: Counts, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **options)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def indexed(
    folder: Path,
    plates: Iterable[str] = ("P1",),
    wells: Sequence[str] = ("A01", "A02", "A03", "A04"),
    channels: Sequence[str] = ("DNA", "ER"),
) -> Path:
    """TIFF files and the index.csv that lists them; files that are there stay."""
    rows = []
    for plate in plates:
        for well in wells:
            for channel in channels:
                name = f"{plate}_{well}_{channel}.tif"
                if not (folder / name).exists():
                    write_tiff(folder / name, counts(name))
                rows.append({"path": name, "plate": plate, "well": well, "site": "1", "channel": channel})
    write_csv(folder / "index.csv", rows)
    return folder


def metaseries(stain: str) -> str:
    """The description that MetaXpress puts into a TIFF."""
    return (
        '<MetaData><PlaneInfo><prop id="spatial-calibration-state" type="bool" value="on"/>'
        '<prop id="spatial-calibration-x" type="float" value="0.65"/>'
        '<prop id="spatial-calibration-units" type="string" value="um"/>'
        f'<custom-prop id="_IllumSetting_" type="string" value="{stain}"/></PlaneInfo></MetaData>'
    )


def imagexpress(
    folder: Path,
    plate: str,
    wells: Sequence[str] = ("A01", "A02"),
    sites: Sequence[int] = (1, 2),
    stains: Sequence[str] = ("DAPI", "FITC"),
    seed: str = "",
) -> list[Path]:
    """`<plate>_<well>_s<site>_w<wavelength><GUID>.tif`, without `_s` or `_w` where there is one alone."""
    written = []
    for well in wells:
        for site in sites:
            for number, stain in enumerate(stains, 1):
                key = f"{seed}{plate}{well}{site}{number}"
                guid = str(uuid.UUID(int=zlib.crc32(key.encode()) << 64)).upper()
                middle = (f"_s{site}" if len(sites) > 1 else "") + (f"_w{number}" if len(stains) > 1 else "")
                path = folder / f"{plate}_{well}{middle}{guid}.tif"
                written.append(write_tiff(path, counts(key), description=metaseries(stain), metadata=None))
    return written


def phenix(
    folder: Path,
    wells: Sequence[tuple[int, int]] = ((1, 1), (1, 2)),
    fields: Sequence[int] = (1,),
    stains: Sequence[str] = ("HOECHST 33342", "Alexa 488"),
    is_copied: Callable[[str], bool] = lambda _: True,
    seed: str = "",
    index: str = "Index.idx.xml",
) -> Path:
    """An Operetta or Opera Phenix export with its index; files for which `is_copied` is False are listed alone."""
    images = folder / "Images"
    images.mkdir(parents=True)
    listed = []
    for row, column in wells:
        for field in fields:
            for number, stain in enumerate(stains, 1):
                name = f"r{row:02d}c{column:02d}f{field:02d}p01-ch{number}sk1fk1fl1.tiff"
                listed.append(
                    f'<Image Version="1"><State>Ok</State><URL>{name}</URL><Row>{row}</Row><Col>{column}</Col>'
                    f"<FieldID>{field}</FieldID><PlaneID>1</PlaneID><TimepointID>0</TimepointID>"
                    f"<ChannelID>{number}</ChannelID><ChannelName>{stain}</ChannelName>"
                    '<ImageResolutionX Unit="m">5.98E-07</ImageResolutionX></Image>'
                )
                if is_copied(name):
                    write_tiff(images / name, counts(f"{seed}{name}"))
    (images / index).write_text(
        '<?xml version="1.0" encoding="utf-8"?><EvaluationInputData '
        f'xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5" Version="1"><Images>{"".join(listed)}</Images>'
        "</EvaluationInputData>",
        encoding="utf-8",
    )
    return folder


def load_data(
    folder: Path,
    wells: Sequence[str] = ("A01", "A02", "A03"),
    sites: Sequence[int] = (1, 2),
    labels: Callable[[str, int], Mapping[str, str]] = lambda *_: {},
) -> Path:
    """CellProfiler's LoadData table, load_data.csv, and its images."""
    rows = []
    for well in wells:
        for site in sites:
            row: dict[str, Any] = {}
            for channel in ("DNA", "ER"):
                name = f"{well}_{site}_{channel}.tif"
                write_tiff(folder / "images" / name, counts(name))
                row |= {f"FileName_Orig{channel}": name, f"PathName_Orig{channel}": "images"}
            place = {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": str(site)}
            rows.append(row | place | labels(well, site))
    write_csv(folder / "load_data.csv", rows)
    return folder


def zarr_plate(path: Path, wells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Path:
    """An OME-Zarr 0.4 plate: well path -> image path -> `pixels` (C, H, W), `labels`, perhaps `acquisition`."""

    def group(folder: Path, attributes: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))

    acquisitions = sorted(
        {image["acquisition"] for images in wells.values() for image in images.values() if "acquisition" in image}
    )
    plate: dict[str, Any] = {
        "version": "0.4",
        "rows": [{"name": name} for name in dict.fromkeys(well.split("/")[0] for well in wells)],
        "columns": [{"name": name} for name in dict.fromkeys(well.split("/")[1] for well in wells)],
        "wells": [{"path": well, "rowIndex": 0, "columnIndex": i} for i, well in enumerate(wells)],
    }
    if acquisitions:
        plate["acquisitions"] = [{"id": number, "name": f"cycle {number}"} for number in acquisitions]
    group(path, {"plate": plate})
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    for well, images in wells.items():
        group(path / well.split("/")[0], {})
        listed = [
            {"path": name} | ({"acquisition": image["acquisition"]} if "acquisition" in image else {})
            for name, image in images.items()
        ]
        group(path / well, {"well": {"version": "0.4", "images": listed}})
        for name, image in images.items():
            scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
            datasets = [{"path": "0", "coordinateTransformations": scale}]
            group(
                path / well / name,
                {
                    "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}],
                    "omero": {"channels": [{"label": label} for label in image["labels"]]},
                },
            )
            pixels = image["pixels"]
            store = str(path / well / name / "0")
            array = zarr.create_array(
                store=store, shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 32, 32), zarr_format=2
            )
            array[...] = pixels
    return path
