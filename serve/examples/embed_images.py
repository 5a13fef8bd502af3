"""Computes vectors of your own images: cuts crops, sends them to a running service, writes one Parquet file.

    embed_images.py vectors.parquet DNA,ER,RNA images/*.tif

An image is a TIFF of (channels, height, width), raw intensities, with the pixel size of the screen that the model was
trained on. The second argument names the stains in the order of the channels. $CYTOLAKE_URL is the address of the
service (http://127.0.0.1:8000 when unset), $CYTOLAKE_API_KEY its key.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray

from cytolake.client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("channels", type=lambda text: text.split(","), help="stains in the order of the image's planes")
    parser.add_argument("images", type=Path, nargs="+")
    arguments = parser.parse_args()
    url, key = os.environ.get("CYTOLAKE_URL", "http://127.0.0.1:8000"), os.environ.get("CYTOLAKE_API_KEY", "")
    parts = []
    with Client(url, key) as service:
        model = service.model()
        for path in arguments.images:
            places, crops = cut(tifffile.imread(path), len(arguments.channels), model["crop_size"], path)
            vectors = service.embed(crops, arguments.channels)
            columns = {
                "image": pa.repeat(str(path), len(crops)),
                "y": places[:, 0],
                "x": places[:, 1],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            }
            parts.append(pa.table(columns))
            print(f"{path}: {len(crops)} crops")
        if service.model()["representation_id"] != model["representation_id"]:
            raise SystemExit(
                "another model was promoted during the run, and vectors of two models must not be mixed. Run again."
            )
    # Vectors of two models cannot be compared, so the file names the model.
    metadata = {name: str(model[name]) for name in ("name", "version", "representation_id")}
    pq.write_table(pa.concat_tables(parts).replace_schema_metadata(metadata), arguments.output)
    print(f"{arguments.output}: vectors of representation {model['representation_id']}")


def cut(image: NDArray[Any], n_channels: int, size: int, path: Path) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(N, 2) y and x of the crops on a grid without overlap, and their (N, C, S, S) pixels."""
    if image.ndim != 3 or len(image) != n_channels or min(image.shape[1:]) < size:
        raise SystemExit(
            f"{path}: shape {image.shape}, expected {n_channels} channels of {size} x {size} px or more. Name one "
            "stain for each channel."
        )
    height, width = image.shape[1:]
    places = np.array([(y, x) for y in range(0, height - size + 1, size) for x in range(0, width - size + 1, size)])
    return places, np.stack([image[:, y : y + size, x : x + size] for y, x in places])


if __name__ == "__main__":
    main()
