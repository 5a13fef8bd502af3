"""Ids of content: two screens in two catalogs never share one, and one screen in two has the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.packs.test_build import CONFIG, ingest, write_plate

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.catalog.content import OF_PIXELS, content_of, plate_contents
from cytolake.catalog.ids import representation_id
from cytolake.curation import curate as curating
from cytolake.curation.curate import CurateConfig, Curation, curate
from cytolake.packs import built_of
from cytolake.packs.build import build_pack
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig, run_key


@dataclass(frozen=True, slots=True)
class Root:
    """A catalog of one plate, what is chosen of it, and the pack."""

    catalog: Catalog
    curation: Curation
    pack: Pack

    @property
    def ids(self) -> dict[str, str]:
        """Of everything that is named after pixels."""
        return {
            "curation": self.curation.curation_id,
            "pack": self.pack.pack_id,
            "representation": representation_id("a model", 0, "mean", self.pack.pack_id),
            "run": run_key(self.pack.pack_id, PretrainConfig()),
        }


def make(folder: Path, seed: int) -> Root:
    """All roots have plates of the same names, files of the same sizes, and as many commits."""
    catalog = cytolake.catalog.open(folder / "catalog", create=True)
    ingest(catalog, write_plate(folder / "screen", "counts16", seed=seed))
    curation = choose(catalog)
    return Root(catalog, curation, build_pack(catalog, curation.curation_id, CONFIG))


def choose(catalog: Catalog) -> Curation:
    spec = catalog.root / "any.yaml"
    spec.write_text("where: x >= 0\n")
    return curate(catalog, CurateConfig(name="any", folder=str(catalog.root)))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, module_ray_in_process: None) -> list[Root]:
    """Two screens, and the first one again elsewhere."""
    return [make(tmp_path_factory.mktemp(f"root{number}"), seed) for number, seed in enumerate((0, 1, 0))]


def test_screens_of_the_same_names_sizes_and_commits_in_several_roots_share_no_id_of_content(roots):
    assert len({json.dumps(root.catalog.versions()) for root in roots}) == 1  # what ids were hashed from before
    assert len({root.catalog.table("plates")["content_hash"][0] for root in roots}) == 1
    for name in roots[0].ids:
        assert len({root.ids[name] for root in roots[:2]}) == 2, name


def test_one_screen_in_two_places_has_the_same_ids(roots):
    assert roots[2].catalog.root != roots[0].catalog.root
    assert roots[2].ids == roots[0].ids


def test_states_of_two_catalogs_with_the_same_versions_differ(roots):
    assert roots[0].catalog.versions() == roots[2].catalog.versions()
    assert not set(roots[0].catalog.state().values()) & set(roots[2].catalog.state().values())


def test_content_is_that_of_the_rows_in_any_order_and_any_number_of_commits(tmp_path):
    contents = []
    for names in (["counts8", "wide"], ["wide", "counts8"]):
        catalog = cytolake.catalog.open(tmp_path / "-".join(names), create=True)
        for name in names:
            ingest(catalog, write_plate(tmp_path / "screens", name))
        contents.append(catalog)
    one, other = contents
    for table in ("crops", *OF_PIXELS):
        assert plate_contents(one, table) == plate_contents(other, table)
        assert len(set(plate_contents(one, table).values())) == 2
    assert content_of(one, OF_PIXELS) == content_of(other, OF_PIXELS)
    (plate,) = one.table("plates", where="plate = 'wide'")["plate_id"].to_pylist()
    assert content_of(one, OF_PIXELS, frozenset({plate})) == content_of(other, OF_PIXELS, frozenset({plate}))
    assert content_of(one, OF_PIXELS, frozenset({plate})) != content_of(one, OF_PIXELS)
    first = one.at({name: version - 1 for name, version in one.versions().items()})
    assert content_of(first, OF_PIXELS) != content_of(one, OF_PIXELS)
    assert set(plate_contents(first, "crops").items()) < set(plate_contents(one, "crops").items())


def test_what_an_earlier_version_wrote_under_other_ids_is_found_and_not_made_again(
    tmp_path, ray_in_process, monkeypatch
):
    """As of before ids were hashed from rows: other ids, and no metrics among what a curation pinned."""
    with monkeypatch.context() as before:
        before.setattr(curating, "TABLES_READ", ("crops", "plates", "sites", "wells"))
        for module in (curating, built_of):
            before.setattr(module, "content_of", lambda *_: "versions")
        old = make(tmp_path, 0)
    shutil.rmtree(tmp_path / "screen")  # so that making it again must fail
    assert choose(old.catalog).curation_id == old.curation.curation_id
    again = build_pack(old.catalog, old.curation.curation_id, CONFIG)
    assert again.pack_id == old.pack.pack_id
    assert len(list((old.catalog.root / "packs").iterdir())) == 1


@pytest.mark.slow
def test_another_plate_makes_another_curation_and_pack(tmp_path, ray_in_process):
    root = make(tmp_path, 0)
    ingest(root.catalog, write_plate(tmp_path / "screen", "counts8"))
    later = choose(root.catalog)
    assert later.curation_id != root.curation.curation_id
    pack = build_pack(root.catalog, later.curation_id, CONFIG)
    assert pack.pack_id != root.pack.pack_id
    assert pack.n_crops > root.pack.n_crops
