"""Short channel names whose meaning depends on the assay, as declared in catalog/channels.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from cytolake.screens.channel_names import canonical, fold
from cytolake.screens.declared_folder import declared_folder


@dataclass(frozen=True, slots=True)
class AmbiguousName:
    """A name that means a stain of the vocabulary in one assay only."""

    assay: str
    stains: frozenset[str]
    """Of the assay, as the vocabulary names them."""
    otherwise: str
    """Its name on a plate that does not look like the assay."""


def parse_ambiguous(declared: Mapping[str, Any]) -> dict[str, AmbiguousName]:
    """Folded name -> what is declared of it, from the YAML of the channels.

    Raises:
        ValueError: An assay that is not declared.
    """
    assays = {str(each["name"]): frozenset(map(str, each["channels"])) for each in declared["assays"]}
    found: dict[str, AmbiguousName] = {}
    for each in declared["ambiguous"]:
        assay = str(each["assay"])
        if assay not in assays:
            raise ValueError(f"ambiguous {each['alias']}: found assay {assay}, expected one of {', '.join(assays)}.")
        found[fold(str(each["alias"]))] = AmbiguousName(assay, assays[assay], str(each["otherwise"]))
    return found


@cache
def ambiguous_names() -> dict[str, AmbiguousName]:
    """Ambiguous names declared in catalog/channels.yaml."""
    return parse_ambiguous(yaml.safe_load((declared_folder() / "channels.yaml").read_text(encoding="utf-8")))


def names_otherwise(names: Sequence[str], vocabulary: Mapping[str, str]) -> dict[str, AmbiguousName]:
    """Ambiguous names of a plate that is not of the assay in which the vocabulary declares them.

    Args:
        names: All channels of one plate, as the source has them.
        vocabulary: Folded spelling -> declared name.
    """
    found = {}
    stains = {name: canonical(name, vocabulary) for name in names}
    for name in names:
        declared = ambiguous_names().get(fold(name))
        if declared is None or fold(name) not in vocabulary:
            continue
        others = [stain for other, stain in stains.items() if other != name]
        n_unknown = sum(fold(stain) not in vocabulary for stain in others)
        if n_unknown > sum(stain in declared.stains for stain in others):
            found[name] = declared
    return found
