"""Reads the YAML files of the folder catalog/: table contracts, stain names, layouts, rules.
Label columns are read by `cytolake.screens.label_vocabulary`.

In an installed wheel the same files lie inside the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cytolake.catalog.contracts import TableContract, parse_contract
from cytolake.catalog.errors import CatalogError, UnknownTableError
from cytolake.screens import channel_names
from cytolake.screens.declared_folder import declared_folder

if TYPE_CHECKING:
    from cytolake.screens.layouts import LayoutPreset

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is 10 times as fast; not every build has it


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelVocabulary:
    """Known stains, each with an identity of its own, and their synonyms."""

    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(repr=False)
    """Name by folded synonym, for `cytolake.screens.channel_names`; every name is its own synonym."""
    modalities: Mapping[str, str] = field(repr=False)
    """Imaging modality by name: fluorescence, brightfield or phase."""
    default_modality: str
    """Of names that are not in the vocabulary."""

    def canonical(self, name: str) -> str:
        """The vocabulary's name of a stain; an unknown name is returned trimmed.

        Case, blanks, hyphens and underscores do not count.
        """
        return channel_names.canonical(name, self.aliases)

    def index(self, name: str) -> int:
        """Identity of a stain for an encoder: 0 = unknown, 1 = the first name."""
        canonical = self.canonical(name)
        return self.names.index(canonical) + 1 if canonical in self.names else 0


def declared_path(relative: str) -> Path:
    """Path of a declared file or folder, such as `declared_path("qc.yaml")`.

    Raises:
        CatalogError: There is no such file; lists its neighbours.
    """
    path = declared_folder() / relative
    if not path.exists():
        near = sorted(entry.name for entry in path.parent.glob("*")) if path.parent.is_dir() else []
        raise CatalogError(
            f"{path}: no such file. There are: {', '.join(near) or 'none'}. "
            "Add the file, or name one that is there; an installed package must be built with its catalog/ folder."
        )
    return path


def table_names() -> tuple[str, ...]:
    """Every table that has a contract, in alphabetical order."""
    return tuple(sorted(path.stem for path in declared_path("tables").glob("*.yaml")))


@cache
def table_contract(name: str) -> TableContract:
    """The contract of one table.

    Raises:
        UnknownTableError: No contract has this name.
    """
    if name not in table_names():
        raise UnknownTableError(f"table {name}: no such table. There are: {', '.join(table_names())}.")
    contract = parse_contract(read_declared(f"tables/{name}.yaml"))
    if contract.name != name:
        raise CatalogError(f"catalog/tables/{name}.yaml: declares table {contract.name}, expected {name}. Rename one.")
    return contract


@cache
def channel_vocabulary() -> ChannelVocabulary:
    """The stains of catalog/channels.yaml, in its order.

    Raises:
        CatalogError: Two stains share a spelling.
    """
    declared = read_declared("channels.yaml")
    entries, default = declared["channels"], str(declared["default_modality"])
    spellings = {str(entry["name"]): [str(alias) for alias in entry.get("aliases", ())] for entry in entries}
    if len(spellings) != len(entries):
        raise CatalogError("catalog/channels.yaml: a stain is there twice. Keep one of them.")
    try:
        aliases = channel_names.alias_table(spellings)
    except ValueError as error:
        raise CatalogError(f"catalog/channels.yaml: {error}") from error
    return ChannelVocabulary(
        names=tuple(spellings),
        aliases=aliases,
        modalities={str(entry["name"]): str(entry.get("modality", default)) for entry in entries},
        default_modality=default,
    )


@cache
def layout_presets() -> tuple[LayoutPreset, ...]:
    """The screen layouts of catalog/layouts, in the order in which `auto` tries them.

    Raises:
        CatalogError: A preset that cannot be used, or two with one name or one place in the order.
    """
    from cytolake.screens.layouts import parse_preset

    presets: dict[str, LayoutPreset] = {}
    for path in sorted(declared_path("layouts").glob("*.yaml")):
        try:
            preset = parse_preset(read_declared(f"layouts/{path.name}"))
        except ValueError as error:
            raise CatalogError(f"catalog/layouts/{path.name}: {error}") from error
        same = next((each for each in presets.values() if preset.name == each.name or preset.order == each.order), None)
        if same is not None:
            raise CatalogError(
                f"catalog/layouts/{path.name}: found name {preset.name} and order {preset.order}, expected others than "
                f"those of {same.name} (order {same.order}). Change one of the two."
            )
        presets[preset.name] = preset
    return tuple(sorted(presets.values(), key=lambda preset: preset.order))


def read_declared(relative: str) -> Any:
    """The content of a YAML file of the folder catalog/."""
    return yaml.load(declared_path(relative).read_text(encoding="utf-8"), _SafeLoader)
