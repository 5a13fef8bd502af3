"""The example scripts, run as a user runs them, against a server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import tifffile
from tests.serving.conftest import KEY, SIZE


def run(checkout, address, script, *arguments):
    variables = {"CYTOLAKE_URL": address, "CYTOLAKE_API_KEY": KEY, "PYTHONPATH": str(checkout / "platform")}
    return subprocess.run(
        [sys.executable, checkout / "serve" / "examples" / script, *map(str, arguments)],
        env=os.environ | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_crops_of_your_own_images_get_the_vectors_that_the_table_has(checkout, address, lake, tmp_path):
    crop = next(row for row in lake.catalog.table("crops").to_pylist() if row["plate"] == "P1")
    of_site = lake.catalog.sql(f"SELECT crop_id, y, x FROM crops WHERE site_id = '{crop['site_id']}'").to_pylist()
    (channels,) = set(lake.catalog.channels_of([crop["crop_id"]]))
    image = np.zeros((len(channels), 3 * SIZE, 3 * SIZE + 5), np.uint16)  # 5: what fills no crop is left out
    for each, pixels in zip(of_site, lake.catalog.crop_pixels([row["crop_id"] for row in of_site]), strict=True):
        image[:, each["y"] : each["y"] + SIZE, each["x"] : each["x"] + SIZE] = pixels
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack")
    done = run(
        checkout, address, "embed_images.py", tmp_path / "out.parquet", ",".join(channels), tmp_path / "image.tif"
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"representation_id"].decode() == lake.card.representation_id
    found = {(row["y"], row["x"]): row["embedding"] for row in table.to_pylist()}
    assert len(found) == len(of_site)
    for each in of_site:
        stored = lake.stored[lake.crop_ids.index(each["crop_id"])]
        np.testing.assert_allclose(found[each["y"], each["x"]], stored, atol=1e-3)


def test_an_image_of_other_channels_is_refused_by_name(checkout, address, tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((3, 64, 64), np.uint16), photometric="minisblack")
    done = run(checkout, address, "embed_images.py", tmp_path / "out.parquet", "DNA,ER", tmp_path / "image.tif")
    assert done.returncode == 1
    assert "image.tif: shape (3, 64, 64), expected 2 channels" in done.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_perturbations_that_look_alike_are_listed_without_the_query(checkout, address):
    done = run(checkout, address, "similar_perturbations.py", "TP53-ko")
    assert done.returncode == 0, done.stderr
    named = [line.split()[0] for line in done.stdout.splitlines() if "-ko " in line and not line.startswith("The")]
    assert sorted(named) == ["GAPDH-ko", "KRAS-ko"]
    done = run(checkout, address, "similar_perturbations.py", "TP53-ko", "--where", "gene = 'KRAS'")
    assert "KRAS-ko" in done.stdout
    assert "GAPDH" not in done.stdout


def test_an_unknown_perturbation_is_refused_with_the_message_of_the_service(checkout, address):
    done = run(checkout, address, "similar_perturbations.py", "NOBODY")
    assert done.returncode == 1
    assert "NOBODY" in done.stderr
