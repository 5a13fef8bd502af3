from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.catalog import Catalog, CatalogError, table_contract

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
DIM = 4


def blank(table: str, **values: object) -> dict[str, object]:
    """A row of a table: what is given, and the smallest value of each other column's type."""
    smallest = {"string": "", "int32": 0, "bool": False, "double": 0.0, "timestamp[us, tz=UTC]": NOW}
    return {f.name: values.get(f.name, smallest.get(str(f.type), [])) for f in table_contract(table).schema}


def vectors(representation: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(representation))
    return {f"c{i}": rng.normal(size=DIM).astype(np.float32) for i in (5, 3, 1, 0, 4, 2)}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Six crops of two wells, two crop representations (the second of five crops), one well representation."""
    catalog = empty_catalog(tmp_path)
    rows = {
        "wells": [blank("wells", well_id=f"w{i}", plate_id="p", gene=g) for i, g in enumerate(("TP53", "MYC"))],
        "crops": [blank("crops", crop_id=f"c{i}", well_id=f"w{i % 2}", plate_id="p", size=64, y=i) for i in range(6)],
        "plates": [blank("plates", plate_id="p")],
        "representations": [blank("representations", representation_id=r, dim=DIM) for r in ("r1", "other")],
        "embeddings": [
            blank("embeddings", representation_id=r, crop_id=c, well_id="w0", plate_id="p", embedding=v.tolist())
            for r in ("r1", "other")
            for c, v in vectors(r).items()
            if (r, c) != ("other", "c3")
        ],
        "profiles": [blank("profiles", representation_id="r1", well_id="w1", profile=[1.0, 2.0, 3.0, 4.0])],
    }
    for name, listed in rows.items():
        add_rows(catalog, name, *listed)
    return catalog


def test_each_crop_has_its_own_vector_and_its_wells_columns(catalog):
    cells = catalog.to_anndata("r1")
    assert list(cells.obs_names) == [f"c{i}" for i in range(6)]
    assert cells.X.dtype == np.float32
    for name, vector in vectors("r1").items():
        np.testing.assert_array_equal(cells[name].X[0], vector)
    assert list(cells.obs["gene"]) == ["TP53", "MYC"] * 3
    assert list(cells.obs["y"]) == list(range(6))
    assert cells.uns["cytolake"]["r1"]["dim"] == DIM


def test_of_several_representations_the_crops_they_share_are_there(catalog):
    cells = catalog.to_anndata(["r1", "other"])
    assert list(cells.obs_names) == ["c0", "c1", "c2", "c4", "c5"]
    for representation in ("r1", "other"):
        expected = [vectors(representation)[name] for name in cells.obs_names]
        np.testing.assert_array_equal(cells.obsm[representation], expected)


def test_wells_have_their_profiles(catalog):
    wells = catalog.to_anndata("r1", level="well")
    assert list(wells.obs_names) == ["w1"]
    assert list(wells.obs["gene"]) == ["MYC"]
    np.testing.assert_array_equal(wells.X, [[1, 2, 3, 4]])


def test_columns_without_a_value_and_flags_that_are_not_known_survive_it_too(tmp_path):
    import anndata

    catalog = empty_catalog(tmp_path)
    wells = [
        blank("wells", well_id="w0", plate_id="p", edition=None, pathway=None, has_images=None, dose=None),
        blank("wells", well_id="w1", plate_id="p", edition=None, pathway=None, has_images=True, dose=None),
    ]
    rows = {
        "wells": wells,
        "plates": [blank("plates", plate_id="p", wells_edition=None)],
        "representations": [blank("representations", representation_id="r1", dim=1)],
        "profiles": [blank("profiles", representation_id="r1", well_id=f"w{i}", profile=[1.0]) for i in (0, 1)],
    }
    for name, listed in rows.items():
        add_rows(catalog, name, *listed)
    catalog.to_anndata("r1", level="well").write_h5ad(tmp_path / "wells.h5ad")
    obs = anndata.read_h5ad(tmp_path / "wells.h5ad").obs
    assert obs[["edition", "dose"]].isna().all(axis=None)
    assert obs.has_images.isna().tolist() == [True, False]
    assert obs.has_images["w1"]


def test_an_unknown_or_empty_representation_is_refused_with_what_is_there(catalog):
    with pytest.raises(CatalogError, match=r"representation r2: not in the table .* has 2, the newest: "):
        catalog.to_anndata("r2")
    with pytest.raises(CatalogError, match=r"none given\): not in the table"):
        catalog.to_anndata([])
    with pytest.raises(CatalogError, match=r"representation other has no rows in the table profiles"):
        catalog.to_anndata("other", level="well")
