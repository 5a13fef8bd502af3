"""The simulated screen is ground truth: its pixels must show what its plate map says."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import ngio
import numpy as np
import pytest
from tests.fast_cases import fast_cases

from cytolake.screens.plate import ScreenError
from cytolake.screens.simulated.cells import CHANNELS, PATHWAYS, TRAITS, draw_cells, draw_field, pathway_direction
from cytolake.screens.simulated.imaging import ARTEFACTS, draw_microscope, image_field
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import (
    COPY_KINDS,
    PLANTED_COLUMNS,
    PLATE_MAP_COLUMNS,
    SimulatedScreen,
    SimulatedWell,
    plate_map_columns,
    simulated_cells,
    simulated_site,
    simulated_wells,
)

SMALL = SimulatedScreen(
    n_plates=2, n_pathways=1, genes_per_pathway=1, n_compounds=0, n_negative_controls=1, n_positive_controls=1,
    sites_per_well=1, site_size_px=64, artefact_share=0.5,
)  # fmt: skip
"""Two plates of four wells."""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plate_map(folder: Path) -> list[dict[str, str]]:
    with (folder / "platemap.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain_microscope(strength: float = 0.0):
    return draw_microscope(np.random.default_rng(0), np.random.default_rng(1), len(CHANNELS), strength)


def drawn_field(seed: int = 0, size_px: int = 192, **traits: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    effect = np.zeros(len(TRAITS), np.float32)
    for name, value in traits.items():
        effect[TRAITS.index(name)] = value
    return draw_field(rng, draw_cells(rng, size_px, effect, penetrance=1.0), size_px)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Root of SMALL, written once by one thread; tests may simulate it again, which changes nothing."""
    root = tmp_path_factory.mktemp("simulated")
    simulate_screen(SMALL, root, executor=ThreadPoolExecutor(1))
    return root


@pytest.mark.slow
def test_the_same_config_gives_the_same_bytes_in_any_number_of_threads(written, tmp_path):
    simulate_screen(SMALL, tmp_path, executor=ThreadPoolExecutor(3))
    assert files(tmp_path) == files(written)


def test_another_seed_gives_other_pixels_and_another_layout():
    other = dataclasses.replace(SMALL, seed=1)
    first, second = simulated_wells(SMALL)[0], simulated_wells(other)[0]
    assert (simulated_site(SMALL, first, 1) != simulated_site(other, second, 1)).any()
    big = SimulatedScreen()
    rows = [[well.row["perturbation"] for well in simulated_wells(c)] for c in (big, dataclasses.replace(big, seed=1))]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("version", fast_cases(["0.4", "0.5"], "0.5"))
def test_plates_are_ome_zarr_with_named_channels_and_the_drawn_pixels(written, tmp_path, version):
    config = SMALL if version == "0.5" else dataclasses.replace(SMALL, ome_zarr_version=version, pixel_size_um=0.65)
    paths = simulate_screen(config, written if config is SMALL else tmp_path)
    assert [path.name for path in paths] == ["P01.zarr", "P02.zarr"]
    plate = ngio.open_ome_zarr_plate(str(paths[1]))
    assert plate.meta.version == version
    wells = [well for well in simulated_wells(config) if well.plate_number == 1]
    assert sorted(plate.wells_paths()) == sorted(f"{well.row['well'][0]}/{well.row['well'][1:]}" for well in wells)
    for well in wells:
        name = well.row["well"]
        image = ngio.open_ome_zarr_container(str(paths[1] / name[0] / name[1:] / "1")).get_image()
        assert image.channel_labels == list(CHANNELS)
        assert image.pixel_size.x == pytest.approx(config.pixel_size_um)
        np.testing.assert_array_equal(image.get_as_numpy(), simulated_site(config, well, 1))


def test_a_second_run_changes_no_file_and_calls_progress_to_the_end(written):
    seen: list[tuple[str, int, int]] = []
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    simulate_screen(SMALL, written, progress=lambda *call: seen.append(call))
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert seen[-1] == ("simulate", 2 * SMALL.n_wells, 2 * SMALL.n_wells)


def test_a_killed_run_leaves_no_half_plate_and_the_next_run_finishes(written, tmp_path):
    def stop(stage: str, done: int, of: int) -> None:
        if done == SMALL.n_wells + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_screen(SMALL, tmp_path / "cut", stop)
    assert sorted(path.name for path in (tmp_path / "cut" / "simulated").glob("[!.]*")) == ["P01.zarr", "platemap.csv"]
    simulate_screen(SMALL, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(written)


def test_plates_of_another_config_are_refused_by_name(written):
    with pytest.raises(ScreenError, match=r"P01.zarr.*found effect_size=6.0, expected effect_size=2.0. Delete"):
        simulate_screen(dataclasses.replace(SMALL, effect_size=2.0), written)
    with pytest.raises(ScreenError, match=r"platemap.csv.*found another plate map"):
        simulate_screen(dataclasses.replace(SMALL, n_negative_controls=2), written)


PLANTED = SimulatedScreen(
    n_plates=2, n_batches=1, plate_format=384, n_inactive_genes=3, artefact_share=0.1, bad_well_share=0.1,
    copy_share=0.1,
)  # fmt: skip


def test_the_options_that_plant_faults_leave_every_other_well_as_it_was():
    plain = dataclasses.replace(PLANTED, bad_well_share=0.0, copy_share=0.0)
    assert set(plate_map_columns(plain)) == set(PLATE_MAP_COLUMNS)
    n_same = 0
    for before, after in zip(simulated_wells(plain), simulated_wells(PLANTED), strict=True):
        if after.copy_of or after.row["artefact_site"] == "all":
            continue
        assert {name: after.row[name] for name in PLATE_MAP_COLUMNS} == before.row
        np.testing.assert_array_equal(after.effect, before.effect)
        if after.well_number % 40 == 0:
            np.testing.assert_array_equal(simulated_site(PLANTED, after, 1), simulated_site(plain, before, 1))
            n_same += 1
    assert n_same > 0


def test_the_default_screen_is_the_one_it_always_was():
    """Digest and mean counts of 2026-11: figures of the demo rest on this screen."""
    config = SimulatedScreen(n_plates=1, n_batches=1)
    wells = simulated_wells(config)
    assert hashlib.sha256(repr([well.row for well in wells]).encode()).hexdigest()[:16] == "b29ec90e93eb8208"
    found = simulated_site(config, wells[7], 2).mean(axis=(1, 2))
    np.testing.assert_allclose(found, [311.71, 1432.1, 1069.05, 1139.73, 1035.16], rtol=1e-4)


def test_the_requested_number_of_faults_is_planted_and_no_well_has_two():
    wells = simulated_wells(PLANTED)
    for plate in range(PLANTED.n_plates):
        of_plate = [well for well in wells if well.plate_number == plate]
        share = round(0.1 * PLANTED.n_wells)
        bad = [well for well in of_plate if well.row["artefact_site"] == "all"]
        one_site = [well for well in of_plate if well.row["artefact"] and well not in bad]
        copies = [well for well in of_plate if well.copy_of]
        assert len(bad) == len(one_site) == len(copies) == share
        assert all(float(well.row["artefact_severity"]) >= 0.6 for well in bad)
        touched = [well.row["well"] for well in (*bad, *one_site, *copies)]
        touched += [well.row["copy_of"] for well in copies]
        assert len(set(touched)) == len(touched)
        assert {(well.row["copy_kind"], well.row["copy_sites"]) for well in copies} == set(
            product(COPY_KINDS, ("1", "all"))
        )


def test_a_bad_well_is_spoilt_in_every_site():
    clean = dataclasses.replace(PLANTED, bad_well_share=0.0)
    before = {(well.plate_number, well.well_number): well for well in simulated_wells(clean)}
    bad = next(well for well in simulated_wells(PLANTED) if well.row["artefact_site"] == "all")
    for site in (1, 2):
        as_clean = simulated_site(clean, before[bad.plate_number, bad.well_number], site)
        assert (simulated_site(PLANTED, bad, site) != as_clean).any()


@pytest.mark.slow
def test_a_copy_of_pixels_is_the_other_wells_site_to_the_last_count():
    for copy in planted_copies("pixels"):
        n_copied = PLANTED.sites_per_well if copy.row["copy_sites"] == "all" else 1
        for site in range(1, PLANTED.sites_per_well + 1):
            is_same = np.array_equal(simulated_site(PLANTED, copy, site), simulated_site(PLANTED, copy.copy_of, site))
            assert is_same == (site <= n_copied)


@pytest.mark.slow
def test_a_copy_imaged_again_has_the_same_cells_in_another_picture():
    for copy in planted_copies("imaged_again"):
        again, first = (simulated_site(PLANTED, well, 1).astype(float) for well in (copy, copy.copy_of))
        assert (again != first).mean() > 0.5
        other = simulated_site(PLANTED, copy, 2 if copy.row["copy_sites"] == "1" else 3).astype(float)
        alike, unlike = (np.corrcoef(again[0].ravel(), some[0].ravel())[0, 1] for some in (first, other))
        assert alike > 0.8 > 0.5 > unlike
        cells = [simulated_cells(PLANTED, well, 1) for well in (copy, copy.copy_of)]
        for field in dataclasses.fields(cells[0]):
            np.testing.assert_array_equal(*(getattr(some, field.name) for some in cells))


def planted_copies(kind: str) -> list[SimulatedWell]:
    """One that copies the first site and one that copies all."""
    copies = [well for well in simulated_wells(PLANTED) if well.row.get("copy_kind") == kind]
    return [next(well for well in copies if well.row["copy_sites"] == sites) for sites in ("1", "all")]


def test_genes_that_do_nothing_are_in_no_pathway_and_have_the_effect_of_controls():
    wells = simulated_wells(PLANTED)
    inactive = [well for well in wells if well.row["perturbation"].startswith("unexpressed")]
    assert len(inactive) == PLANTED.n_plates * 3 * PLANTED.guides_per_gene
    assert {well.row["gene"] for well in inactive} == {f"unexpressed-{n}" for n in (1, 2, 3)}
    for well in inactive:
        assert (well.row["pathway"], well.row["efficacy"], well.row["control"]) == ("", "0.00", "")
        assert not well.effect.any()
    assert all(well.effect.any() for well in wells if well.row["gene"] and well not in inactive)


def test_the_written_plate_map_has_the_truth_and_a_plate_of_the_same_options_is_kept(tmp_path):
    config = dataclasses.replace(
        SMALL, n_plates=1, n_batches=1, copy_share=0.2, n_inactive_genes=1, n_negative_controls=6
    )
    simulate_screen(config, tmp_path)
    rows = plate_map(tmp_path / "simulated")
    assert tuple(rows[0]) == (*PLATE_MAP_COLUMNS, *PLANTED_COLUMNS) == plate_map_columns(config)
    assert rows == [well.row for well in simulated_wells(config)]
    assert any(row["copy_of"] for row in rows)
    simulate_screen(config, tmp_path)
    with pytest.raises(ScreenError, match="found another plate map"):
        simulate_screen(dataclasses.replace(config, copy_share=0.0), tmp_path)


def test_options_that_are_not_used_are_not_stored_so_that_older_plates_stay_valid(written):
    plate = written / "simulated" / "P01.zarr"
    stored = json.loads((plate / "zarr.json").read_text())["attributes"]["cytolake_simulated_screen"]
    assert {field.name for field in dataclasses.fields(SMALL)} - set(stored) == {
        "n_inactive_genes", "bad_well_share", "copy_share",
    }  # fmt: skip


def test_the_plate_map_names_every_well_once_with_its_artefact(written):
    config = SimulatedScreen(n_plates=3, n_batches=2, artefact_share=0.25)
    wells = simulated_wells(config)
    assert len({(well.row["plate"], well.row["well"]) for well in wells}) == 3 * config.n_wells == len(wells)
    assert {well.row["plate"]: well.row["batch"] for well in wells} == {"P01": "B1", "P02": "B2", "P03": "B1"}
    spoilt = [well.row for well in wells if well.row["artefact"]]
    assert len(spoilt) == 3 * round(0.25 * config.n_wells)
    assert {row["artefact"] for row in spoilt} == set(ARTEFACTS)
    assert all(1 <= int(row["artefact_site"]) <= config.sites_per_well for row in spoilt)
    assert all(0 < float(row["artefact_severity"]) <= 1 for row in spoilt)
    rows = plate_map(written / "simulated")
    assert tuple(rows[0]) == PLATE_MAP_COLUMNS
    assert rows == [well.row for well in simulated_wells(SMALL)]


@pytest.mark.parametrize("plate_format", [96, 384])
def test_each_plate_holds_the_same_treatments_in_other_wells(plate_format):
    config = SimulatedScreen(plate_format=plate_format, n_plates=2, n_compounds=1, doses=(0.5, 5.0))
    wells = simulated_wells(config)
    treatments = [
        sorted(
            (w.row["guide"], w.row["compound"], w.row["dose"], w.row["replicate"]) for w in wells if w.plate_number == p
        )
        for p in range(2)
    ]
    assert treatments[0] == treatments[1]
    assert len(treatments[0]) == config.n_wells
    layout = [[w.row["perturbation"] for w in wells if w.plate_number == p] for p in range(2)]
    assert layout[0] != layout[1]
    assert sum(w.row["control"] == "negative" for w in wells) == 2 * config.n_negative_controls
    n_rows, n_columns = (8, 12) if plate_format == 96 else (16, 24)
    assert all(ord(w.row["well"][0]) - 65 < n_rows and 1 <= int(w.row["well"][1:]) <= n_columns for w in wells)


def test_effects_are_nearer_within_a_pathway_than_between_pathways_and_grow_with_dose():
    config = SimulatedScreen(n_plates=1, n_batches=1, n_pathways=6, genes_per_pathway=3, doses=(0.1, 1.0, 10.0))
    wells = simulated_wells(config)
    genes = {w.row["gene"]: w for w in wells if w.row["pathway"] and w.row["gene"]}
    unit = {gene: w.effect / np.linalg.norm(w.effect) for gene, w in genes.items()}
    cosine = {(a, b): float(unit[a] @ unit[b]) for a in unit for b in unit if a < b}
    within = [v for (a, b), v in cosine.items() if genes[a].row["pathway"] == genes[b].row["pathway"]]
    between = [v for (a, b), v in cosine.items() if genes[a].row["pathway"] != genes[b].row["pathway"]]
    assert np.mean(within) > np.mean(between) + 0.3
    sizes = {w.row["dose"]: np.linalg.norm(w.effect) for w in wells if w.row["compound"] == "compound-1"}
    assert sizes["0.1"] < sizes["1"] < sizes["10"]
    assert all(not w.effect.any() for w in wells if w.row["control"] == "negative")


def mean_stain(**traits: float) -> np.ndarray:
    return np.mean([drawn_field(seed, **traits).mean((1, 2)) for seed in range(6)], axis=0)


@pytest.fixture(scope="module")
def untreated_stain() -> np.ndarray:
    """(C,) mean stain of untreated cells."""
    return mean_stain()


@pytest.mark.parametrize("pathway", fast_cases(PATHWAYS, *list(PATHWAYS)[:1]))
def test_a_pathway_changes_shapes_and_hardly_the_amount_of_stain(pathway, untreated_stain):
    direction = pathway_direction(pathway)
    assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
    treated = mean_stain(**dict(zip(TRAITS, 3.5 * direction, strict=True)))
    np.testing.assert_allclose(treated, untreated_stain, rtol=0.12)


def test_no_cells_no_stain_and_density_adds_cells():
    rng = np.random.default_rng(0)
    nothing = np.zeros(len(TRAITS), np.float32)
    empty = draw_cells(rng, 96, nothing, density=0.0)
    assert len(empty.y) == 0
    assert not draw_field(rng, empty, 96).any()
    few, many = (len(draw_cells(rng, 256, nothing, density=density).y) for density in (0.5, 1.2))
    assert 1.6 * few < many


def test_traits_do_what_they_are_called():
    def spread_around_nuclei(field: np.ndarray) -> float:
        """Share of a stain's pixels' overlap with the neighbourhood of DNA."""
        from scipy import ndimage

        near = ndimage.gaussian_filter(field[0], 5)
        return float((field[4] * near).sum() / field[4].sum())

    assert spread_around_nuclei(drawn_field(mito_spread=-4)) > 1.2 * spread_around_nuclei(drawn_field(mito_spread=4))
    large, small = drawn_field(nucleus_area=4)[0], drawn_field(nucleus_area=-4)[0]
    assert (large > 0.3).mean() > 1.5 * (small > 0.3).mean()
    many, few = (drawn_field(nucleoli_count=value)[2] for value in (4, -4))
    assert count_of_peaks(many) > 2 * count_of_peaks(few)


def count_of_peaks(image: np.ndarray) -> int:
    from scipy import ndimage

    return int(ndimage.label(image > 2.5)[1])


def test_batches_share_a_microscope_up_to_a_small_plate_part():
    def gain(batch: int, plate: int) -> np.ndarray:
        return draw_microscope(np.random.default_rng([0, batch]), np.random.default_rng([1, plate]), 5, 1.0).gain

    gains = np.log([[gain(batch, 10 * batch + plate) for plate in range(3)] for batch in range(20)])
    assert gains.mean(axis=1).std(axis=0).mean() > 1.5 * gains.std(axis=1).mean()
    still = plain_microscope(strength=0.0)
    assert np.allclose(still.gain, 1)
    assert np.allclose(still.gamma, 1)


@pytest.mark.slow
def test_edge_wells_are_dimmer_and_sparser():
    config = SimulatedScreen(artefact_share=0.0, n_plates=1, n_batches=1, plate_format=384, n_negative_controls=90)
    wells = [w for w in simulated_wells(config) if w.row["control"] == "negative"]
    edge = [w for w in wells if w.edge == 1][:6]
    inner = [w for w in wells if w.edge == 0][:6]
    assert np.mean([simulated_site(config, w, 1).mean() for w in edge]) < np.mean(
        [simulated_site(config, w, 1).mean() for w in inner]
    )
    n_edge, n_inner = (np.mean([len(simulated_cells(config, w, 1).y) for w in some]) for some in (edge, inner))
    assert n_edge < n_inner


@pytest.mark.parametrize("artefact", [name for name in ARTEFACTS if name != "empty"])
def test_an_artefact_shows_in_the_measure_of_its_kind_and_more_when_severe(artefact):
    from scipy import ndimage

    stain = drawn_field(size_px=128)

    def measured(severity: float | None) -> float:
        pixels = image_field(
            np.random.default_rng(3),
            stain,
            plain_microscope(),
            artefact="" if severity is None else artefact,
            severity=severity or 0.0,
        ).astype(float)
        laplacian = ndimage.laplace(ndimage.gaussian_filter(pixels[3], 2.0))
        return {
            "blur": lambda: -laplacian.var() / pixels[3].var(),
            "saturation": lambda: float((pixels == 65535).mean()),
            "debris": lambda: float(pixels.min(axis=0).max()),
            "noise": lambda: float(np.median(np.abs(ndimage.laplace(pixels[4])))),
            "autofluorescence": lambda: float(np.percentile(pixels, 5, axis=(1, 2)).max()),
        }[artefact]()

    assert measured(None) < measured(0.3) < measured(1.0)


def test_an_empty_site_has_no_cells():
    config = dataclasses.replace(SMALL, artefact_share=1.0, n_negative_controls=9)
    well = next(w for w in simulated_wells(config) if w.row["artefact"] == "empty")
    assert len(simulated_cells(config, well, 1).y) == 0
    nuclei = simulated_site(config, well, 1)[0]
    assert np.percentile(nuclei, 99.5) < 2 * np.median(nuclei)  # noise alone


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("plate_format", 48, "96 or 384"),
        ("ome_zarr_version", "0.3", "'0.4' or '0.5'"),
        ("n_batches", 9, r"no more than n_plates \(4\)"),
        ("artefact_share", 1.5, "0 to 1"),
        ("screen", "a/b", "a folder name"),
        ("n_negative_controls", 90, "90|plate_format=384"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_do(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        SimulatedScreen(**{field: value})
