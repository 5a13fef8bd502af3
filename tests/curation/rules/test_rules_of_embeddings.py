"""Rules that compare images: exact_duplicates, near_duplicates, cluster_balanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.curation.planted_catalog import CROPS_EACH, add_embeddings, add_screen, plate_labels, well_vectors

from cytolake.catalog import Catalog

EXACT = {"rule": "exact_duplicates"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Catalog:
    """A screen whose wells W000 to W009 of P0 have copies W010 to W019: five of the pixels, five near ones.

    A well Z01 has no embedding.
    """
    wells = plate_labels()
    vectors = well_vectors(wells, "active")
    for n in range(10):
        vectors[10 + n] = vectors[n] + 0.05 * np.random.default_rng(n).standard_normal(vectors.shape[1:])
        if n < 5:
            values = dict.fromkeys(("mean", "sd", "p01", "p50", "p99", "max", "noise_share"), 0.5 + n)
            values |= {"laplacian_variance": 0.1 * n, "focus_slope": -float(n)}
            wells[n] |= {"metrics": values}
            wells[10 + n] |= {"metrics": values}
    catalog = empty_catalog(tmp_path_factory.mktemp("copied") / "catalog")
    lone = {"plate_id": "P0", "plate": "P0", "batch": "B0", "well": "Z01", "well_id": "P0/Z01", "perturbation": "lone"}
    add_screen(catalog, [*wells, lone | {"guide": "", "control": ""}])
    add_embeddings(catalog, wells, "first", vectors)
    return catalog


def pairs(n: range) -> set[frozenset[str]]:
    return {frozenset((f"P0/W{i:03d}", f"P0/W{10 + i:03d}")) for i in n}


def copies_and_originals(details: dict[str, str]) -> set[frozenset[str]]:
    return {frozenset((crop.rsplit("/", 1)[0], detail.split(",")[0].split()[1])) for crop, detail in details.items()}


def test_of_two_sites_with_the_same_pixels_one_is_excluded_and_names_the_other(copied, run):
    applied = run(copied, EXACT)
    assert applied.counts == {"exact_duplicates: same pixels as another site": 5 * CROPS_EACH}
    assert copies_and_originals(applied.crop_details) == pairs(range(5))


@pytest.mark.parametrize("level", ["site", "crop"])
def test_near_copies_are_excluded_and_nothing_else(copied, run, level):
    applied = run(copied, {"rule": "near_duplicates", "min_cosine": 0.98, "level": level, "representation": "first"})
    assert applied.counts == {
        f"near_duplicates: cosine 0.98 or more to another {level}": 10 * CROPS_EACH,
        "near_duplicates: no embedding": CROPS_EACH,
    }
    if level == "site":
        assert copies_and_originals(applied.crop_details) == pairs(range(10))
    assert set(applied.kept_wells.values()) == {CROPS_EACH}, "of a copied site, all crops stay or all go"


def test_the_seed_decides_which_copy_stays(copied, run):
    outcomes = {frozenset(run(copied, EXACT, seed=seed).kept) for seed in range(4)}
    assert len(outcomes) > 1
    assert frozenset(run(copied, EXACT, seed=0).kept) in outcomes


def test_a_copy_of_a_crop_that_an_earlier_rule_excluded_stays(copied, run):
    where = {"rule": "where", "where": "well NOT IN ('W000', 'W001', 'W002', 'W003', 'W004')"}
    assert run(copied, where, EXACT).steps[1].n_removed == 0


def test_rare_kinds_of_images_gain_weight_and_no_cluster_exceeds_its_limit(tmp_path, run):
    """Six blobs of very different size in embedding space."""
    wells = plate_labels()
    blob = np.random.default_rng(0).choice(6, len(wells), p=[0.5, 0.2, 0.12, 0.08, 0.06, 0.04])
    vectors = 10 * np.eye(6)[blob][:, None, :] + np.random.default_rng(1).standard_normal((len(wells), CROPS_EACH, 6))
    catalog = empty_catalog(tmp_path / "blobs")
    add_screen(catalog, wells)
    add_embeddings(catalog, wells, "blobs", vectors.astype(np.float32))
    blob_of = {well["well_id"]: int(b) for well, b in zip(wells, blob, strict=True)}
    sizes = Counter(blob_of[well["well_id"]] for well in wells for _ in range(CROPS_EACH))
    step = {"rule": "cluster_balanced", "representation": "blobs", "n_clusters": 20, "n_kinds": 6}
    chosen = run(catalog, step | {"max_crops": 300})
    found = Counter(blob_of[crop.rsplit("/", 1)[0]] for crop in chosen.kept)
    assert len(chosen.kept) == 300
    assert found[5] >= 0.9 * min(50, sizes[5]), "the rarest, 4 % of all, contributes as much as any other"
    assert found[0] / 300 < 0.5 * sizes[0] / len(chosen.reasons), "the most common"
    capped = run(catalog, step | {"max_crops_per_cluster": 5})
    assert len(capped.kept) == 20 * 5
    assert set(capped.crop_details.values()) == {f"cluster {n}" for n in range(20)}


def test_within_a_cluster_perturbations_are_balanced(screen, run):
    step = {"rule": "cluster_balanced", "representation": "first", "n_clusters": 1, "max_crops": 26 * 20}
    assert set(run(screen, step).kept_perturbations.values()) == {20}, "24 treatments and 2 controls"
