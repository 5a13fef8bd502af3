"""A fitted alignment on disk, and its id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.fitted import ARRAYS, DESCRIPTION, FittedAlignment
from cytolake.embed.alignment.variants import AlignmentConfig

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(90, 5))
BATCHES = ["week 1", "week 2", "woche 3 – ä"] * 30
IS_CONTROL = np.arange(90) % 4 < 2


def fit(variant="tvn_vcb", vectors=VECTORS, **settings) -> FittedAlignment:
    return fit_alignment(vectors, BATCHES, IS_CONTROL, AlignmentConfig(variant=variant, **settings))


@pytest.mark.parametrize(
    "fitted",
    [fit("none"), fit("centre_scale", constant_features="zero"), fit("mad_robustize"), fit("tvn_vcb"), fit("sphering")],
    ids=lambda fitted: fitted.config.variant,
)
def test_a_loaded_alignment_is_the_saved_one(fitted, tmp_path):
    fitted.save(tmp_path / "new" / "folder")
    loaded = FittedAlignment.load(tmp_path / "new" / "folder")
    assert (loaded.id, loaded.config, loaded.batches) == (fitted.id, fitted.config, fitted.batches)
    np.testing.assert_array_equal(loaded.apply(VECTORS, BATCHES), fitted.apply(VECTORS, BATCHES))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [DESCRIPTION, ARRAYS]


def test_the_id_is_that_of_the_content():
    assert fit().id == fit().id
    nudged = VECTORS.copy()
    nudged[0, 0] += 1e-6
    others = [fit("pca_cs"), fit(shrinkage=0.4), fit(vectors=nudged), fit(min_controls=3)]
    assert len({fit().id, *(other.id for other in others)}) == 5


def test_a_new_alignment_replaces_the_one_that_was_there(tmp_path):
    fit("pca_cs").save(tmp_path)
    fit("centre").save(tmp_path)
    assert FittedAlignment.load(tmp_path).id == fit("centre").id


def test_the_description_can_be_read_by_people(tmp_path):
    fit().save(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    assert description["config"]["variant"] == "tvn_vcb"
    assert [batch["n_controls"] for batch in description["batches"]] == [
        sum(control for control, batch in zip(IS_CONTROL, BATCHES, strict=True) if batch == name)
        for name in sorted(set(BATCHES))
    ]


def test_files_of_two_fits_are_refused_together(tmp_path):
    fit("pca_cs").save(tmp_path / "a")
    fit("pca_cs", vectors=VECTORS + 1e-3).save(tmp_path / "b")
    (tmp_path / "a" / ARRAYS).write_bytes((tmp_path / "b" / ARRAYS).read_bytes())
    with pytest.raises(ValueError, match="They were edited or are of two fits"):
        FittedAlignment.load(tmp_path / "a")


def cut_arrays(folder: Path) -> None:
    (folder / ARRAYS).write_bytes((folder / ARRAYS).read_bytes()[:-20])


def cut_description(folder: Path) -> None:
    (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text()[:100])


def other_format(folder: Path) -> None:
    (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text().replace("alignment/1", "alignment/7"))


def unknown_variant(folder: Path) -> None:
    (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text().replace("tvn_vcb", "tvn_xyz"))


@pytest.mark.parametrize("damage", [cut_arrays, cut_description, other_format, unknown_variant])
def test_a_damaged_file_is_an_error_that_names_the_folder(damage, tmp_path):
    fit().save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved: not a saved alignment"):
        FittedAlignment.load(tmp_path / "saved")


def test_an_edited_number_is_noticed(tmp_path):
    fit().save(tmp_path)
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / DESCRIPTION).write_text(text.replace('"n_controls": 15', '"n_controls": 99', 1))
    assert text != (tmp_path / DESCRIPTION).read_text()
    with pytest.raises(ValueError, match="edited"):
        FittedAlignment.load(tmp_path)


def test_a_folder_without_an_alignment_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{ARRAYS}: no such file"):
        FittedAlignment.load(tmp_path)
