from __future__ import annotations

import pytest
import yaml

from cytolake.catalog import declared
from cytolake.catalog.errors import CatalogError

PRESET = {"name": "a", "about": "x", "looks_like": "x.csv", "order": 1, "reader": "index-csv"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """The presets of a folder that holds these declarations."""

    def load_all(*presets):
        for i, preset in enumerate(presets):
            (tmp_path / f"{i}.yaml").write_text(preset if isinstance(preset, str) else yaml.safe_dump(preset))
        monkeypatch.setattr(declared, "declared_path", lambda name: tmp_path / name.removeprefix("layouts").strip("/"))
        return declared.layout_presets.__wrapped__()

    return load_all


def test_presets_come_in_their_order(load):
    assert [preset.name for preset in load({**PRESET, "name": "b", "order": 9}, PRESET)] == ["a", "b"]


@pytest.mark.parametrize("other", [{**PRESET, "order": 2}, {**PRESET, "name": "b"}])
def test_two_presets_of_one_name_or_place_are_refused(load, other):
    with pytest.raises(CatalogError, match=r"layouts/1\.yaml.*a \(order 1\)"):
        load(PRESET, other)


@pytest.mark.parametrize("wrong", [{**PRESET, "reader": "czi"}, {"name": "a"}, "just text", "", "- 1"])
def test_a_preset_that_cannot_be_used_is_named_by_its_file(load, wrong):
    with pytest.raises(CatalogError, match=r"catalog/layouts/0\.yaml"):
        load(wrong)
