from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.cli.print_inspection import print_inspection
from cytolake.screens.images.pixels import read_site
from cytolake.screens.layouts.class_folders import try_class_folders
from cytolake.screens.plate import Plate, ScreenError
from cytolake.screens.positions import well_position
from cytolake.screens.sources import ScreenSource, list_plates


def write_images(root, paths, mode="RGB", size=(12, 10)):
    """One image of noise for each path; returns the pixels by path."""
    random = np.random.default_rng(0)
    written = {}
    for path in paths:
        shape = (*size, 3) if mode == "RGB" else size
        pixels = random.integers(0, 256, shape).astype(np.uint8)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path, quality=100, subsampling=0) if path.endswith("jpg") else (
            Image.fromarray(pixels).save(root / path)
        )
        written[path] = pixels
    return written


def listed(root, **fields) -> list[Plate]:
    source = ScreenSource(**{"screen": "s", "path": str(root), **fields})
    return list_plates(source, channel_vocabulary().aliases, layout_presets())


def labels_of(plate: Plate) -> list[str]:
    return [row["perturbation"] for row in plate.wells]


def test_splits_are_plates_and_each_image_is_a_well_of_its_class(tmp_path):
    paths = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog") for i in range(5)]
    images = write_images(tmp_path, paths)
    plates = {plate.plate: plate for plate in listed(tmp_path)}
    assert sorted(plates) == ["test", "train"]
    for name, plate in plates.items():
        assert plate.batch == f"{plate.screen}/{name}"
        assert plate.channels == ("RGB_R", "RGB_G", "RGB_B")
        assert len({site.well for site in plate.sites}) == len(plate.sites) == 10
        by_well = {row["well"]: row for row in plate.wells}
        for site in plate.sites:
            row = by_well[site.well]
            assert row["split"] == name
            assert row["image"].split("/")[:2] == [name, row["perturbation"]]
            np.testing.assert_array_equal(read_site(site), images[row["image"]].transpose(2, 0, 1))


def test_without_splits_images_are_dealt_to_plates_every_class_evenly(tmp_path):
    write_images(tmp_path, [f"{label}/{i}.png" for label, n in (("a", 12), ("b", 9)) for i in range(n)], "L")
    plates = listed(tmp_path)
    assert [plate.plate for plate in plates] == ["part_1", "part_2", "part_3", "part_4"]
    assert [plate.channels for plate in plates] == [("Gray",)] * 4
    assert [labels_of(plate).count("a") for plate in plates] == [3, 3, 3, 3]
    assert sorted(labels_of(plate).count("b") for plate in plates) == [2, 2, 2, 3]
    assert len(listed(tmp_path, n_plates=2)) == 2


def test_where_an_image_lands_is_the_same_for_a_copy_of_the_folder(tmp_path):
    paths = [f"{label}/{i}.png" for label in ("a", "b") for i in range(8)]
    for name in ("one", "two"):
        write_images(tmp_path / name, paths if name == "one" else paths[::-1], "L")
    one, two = (listed(tmp_path / name) for name in ("one", "two"))
    assert [plate.wells for plate in one] == [plate.wells for plate in two]


def test_a_class_lies_all_over_the_plate(tmp_path):
    write_images(tmp_path, [f"train/{label}/{i}.png" for label in ("a", "b") for i in range(48)], "L", (4, 4))
    (plate,) = listed(tmp_path)
    rows = {name: [] for name in ("a", "b")}
    for row in plate.wells:
        rows[row["perturbation"]].append(well_position(row["well"])[0])
    # 96 wells, 12 a row: of two classes in blocks the mean rows would be 4 apart
    assert abs(np.mean(rows["a"]) - np.mean(rows["b"])) < 1.5


def test_a_split_of_more_images_than_a_plate_has_wells_is_a_batch_of_several_plates(tmp_path, monkeypatch):
    monkeypatch.setattr("cytolake.screens.layouts.class_folders._N_WELLS", 6)
    write_images(tmp_path, [f"{s}/{label}/{i}.png" for s in ("train", "val") for label in "ab" for i in range(5)], "L")
    plates = listed(tmp_path)
    screen = plates[0].screen
    assert [(plate.plate, plate.batch.removeprefix(f"{screen}/")) for plate in plates] == [
        ("train_1", "train"), ("train_2", "train"), ("val_1", "val"), ("val_2", "val"),
    ]  # fmt: skip
    assert {len(plate.sites) for plate in plates} == {5}
    assert all(2 <= labels_of(plate).count("a") <= 3 for plate in plates)


def test_formats_and_modes_are_read_as_what_the_folder_holds(tmp_path):
    grey = np.arange(120, dtype=np.uint8).reshape(12, 10)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    colour = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "a" / "rgb.tif")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "a" / "rgba.png")
    Image.fromarray(np.full((12, 10, 3), 77, np.uint8)).save(tmp_path / "b" / "flat.JPG")
    Image.fromarray(grey).save(tmp_path / "b" / "grey.png")
    Image.fromarray(colour).quantize(16).save(tmp_path / "b" / "palette.png")
    sites = {site.image_paths[0].rsplit("/", 1)[1]: site for plate in listed(tmp_path) for site in plate.sites}
    np.testing.assert_array_equal(read_site(sites["rgb.tif"]), colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_site(sites["rgba.png"]), colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_site(sites["grey.png"]), np.stack([grey] * 3))
    assert np.abs(read_site(sites["flat.JPG"]).astype(int) - 77).max() <= 1
    assert read_site(sites["palette.png"]).shape == (3, 12, 10)
    np.testing.assert_array_equal(read_site(sites["rgb.tif"], (2, 3, 4, 5)), colour.transpose(2, 0, 1)[:, 2:6, 3:8])


def test_grey_images_of_16_bits_keep_their_counts(tmp_path):
    counts = (np.arange(120).reshape(12, 10) * 500).astype(np.uint16)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(counts).save(tmp_path / label / "deep.png")
    site = listed(tmp_path)[0].sites[0]
    assert read_site(site).dtype == np.uint16
    np.testing.assert_array_equal(read_site(site)[0], counts)


def test_a_damaged_image_and_a_colour_one_among_grey_are_reported(tmp_path):
    write_images(tmp_path, [f"{label}/{i}.png" for label in ("a", "b") for i in range(4)], "L")
    write_images(tmp_path, ["a/z_colour.png"])
    whole = (tmp_path / "b" / "1.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "2.png").write_text("no image")
    sites = {site.image_paths[0].rsplit("/", 2)[-2:][-1]: site for plate in listed(tmp_path) for site in plate.sites}
    by_path = {site.image_paths[0].removeprefix(str(tmp_path) + "/"): site for site in _sites(tmp_path)}
    assert sites
    for path, problem in (("a/z_colour.png", "unsupported"), ("b/1.png", "truncated"), ("b/2.png", "unsupported")):
        with pytest.raises(ScreenError, match=f"{problem} file"):
            read_site(by_path[path])
    with pytest.raises(ScreenError, match="too large"):
        read_site(by_path["a/1.png"], bytes_max=100)


def _sites(root):
    return [site for plate in listed(root) for site in plate.sites]


def test_inspect_recognises_it_and_prints_the_recipe_s_line(tmp_path):
    write_images(tmp_path, [f"train/{label}/{i}.jpg" for label in ("cat", "dog") for i in range(3)], size=(32, 32))
    source = ScreenSource(screen="pets", path=str(tmp_path))
    found = inspect_screen(source, channel_vocabulary().aliases, layout_presets(), crop_size=32)
    assert found.layout == "class-folders"
    assert found.total("n_crops") == 6
    assert found.plates[0].sizes == ("32 x 32 uint8",)
    assert all(channel.is_known for channel in found.channels)
    text = io.StringIO()
    print_inspection(found, Console(file=text, width=200))
    assert f"ScreenSource(screen='pets', path='{tmp_path}', layout='class-folders')" in text.getvalue()
    assert "6 images of 2 classes in splits train" in text.getvalue()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a/1.png", "b/1.png", "c/2.txt"], "2 images of 2 classes"),
        (["train/n01440764/n01440764_10026.JPEG", "train/n01443537/n01443537_2.JPEG"], "in splits train"),
        (["readme.txt", "labels.csv"], "no PNG, JPEG or TIFF file"),
        (["1.png", "2.png"], "images 0 folders deep"),
        (["a/1.png", "train/b/1.png"], "images 1, 2 folders deep"),
        (["images/1.png", "images/2.png"], "one folder of images"),
        (["P1/Images/1.tif", "P2/Images/2.tif"], "one folder of images"),
        (["P1/B02/1.tif", "P1/B03/1.tif"], "folders are named after wells"),
        (["plateA/x_B02_s1_w1.tif", "plateB/x_B03_s1_w1.tif"], "file names hold positions of wells"),
        (["plateA/r01c02f03p01.tif", "plateB/r01c02f03p01.tif"], "file names hold positions of wells"),
    ],
)
def test_names_distinguish_classes_from_plates_and_wells(files, said):
    fits, found = try_class_folders(files)
    assert said in found
    assert fits == ("classes" in found and "one for each" not in found)


def test_plates_below_1_are_refused():
    with pytest.raises(ValueError, match="found n_plates 0"):
        ScreenSource(screen="s", path="p", n_plates=0)
