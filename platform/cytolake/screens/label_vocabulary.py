"""Vocabulary of well labels from catalog/labels.yaml: names of label columns, and cells that count as empty."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import yaml

from cytolake.screens.declared_folder import declared_folder

LABELS = ("perturbation", "gene", "pathway", "guide", "compound", "dose", "replicate", "control")
"""Labels of a well: columns of the table `wells`."""
PLACES = ("well", "plate", "batch")
OBJECT_PLACES = ("crop", "site", "object", "y", "x")
_PREFIXES = ("imagemetadata", "metadata")


def nfc(text: str) -> str:
    """One form of a name: macOS writes é as two code points, Windows as one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=4096)
def fold_column(name: str) -> str:
    """What names of a column share that differ in case, blanks, punctuation or CellProfiler's `Metadata_`."""
    text = unicodedata.normalize("NFKC", name).casefold().replace("\u03bc", "u")  # dose (µM)
    folded = "".join(letter for letter in text if letter.isalnum())
    for prefix in _PREFIXES:
        if folded.startswith(prefix) and folded != prefix:
            return folded.removeprefix(prefix)
    return folded


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One possible name of a label's column."""

    name: str
    """Folded."""
    unless: tuple[str, ...] = ()
    """Labels that keep this name from being used where the plate has values of them."""
    only_with: tuple[str, ...] = ()
    """Labels without which this name is not used."""


@dataclass(frozen=True, slots=True)
class LabelVocabulary:
    """What catalog/labels.yaml declares. Column names are folded."""

    nothing: frozenset[str]
    """Cells that say nothing, in lower case."""
    errors: frozenset[str]
    """Those that a spreadsheet writes where a formula failed; among `nothing`."""
    labels: Mapping[str, tuple[LabelColumn, ...]]
    """For each of LABELS its names, the first that a plate has is used."""
    places: Mapping[str, tuple[str, ...]]
    """For each of PLACES its names, in the same order."""
    objects: Mapping[str, tuple[str, ...]]
    """For each of OBJECT_PLACES its names in a table of objects, in the same order."""
    annotations: frozenset[str]
    """Known columns about wells that label nothing."""
    images: frozenset[str]
    """Known columns about sites or images."""
    label_names: frozenset[str]
    """Every name of `labels`."""

    def says_nothing(self, cell: str) -> bool:
        """Whether a cell is empty, or holds what stands for that."""
        return cell.strip().casefold() in self.nothing

    def is_label(self, column: str) -> bool:
        """Whether a column's name is that of a label."""
        return fold_column(column) in self.label_names

    def is_about_wells(self, column: str) -> bool:
        """Whether a column is known to say something about a well: a label or an annotation."""
        return fold_column(column) in self.label_names | self.annotations

    def place_column(self, columns: Iterable[str], place: str) -> str | None:
        """The column that holds the plate, the well or the batch; None where none does."""
        return _first(columns, self.places[place])

    def object_column(self, columns: Iterable[str], place: str) -> str | None:
        """The column of a table of objects for one of OBJECT_PLACES; None where none is."""
        return _first(columns, self.objects[place])

    def value(self, cell: str) -> str:
        """A cell as a label: without blanks at its ends, in NFC, empty where it says nothing."""
        return "" if self.says_nothing(cell) else nfc(cell.strip())

    def columns_of(self, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """For each label the columns that hold it, by precedence; one alone, except for `control`.

        Args:
            columns: Those of a plate that have a value, in the order of the table.
        """
        by_name: dict[str, list[str]] = {}
        for column in columns:
            by_name.setdefault(fold_column(column), []).append(column)
        there = {  # whatever the others have: conditions are judged by these first
            label
            for label, entries in self.labels.items()
            if any(each.name in by_name and not each.unless and not each.only_with for each in entries)
        }
        chosen: dict[str, tuple[str, ...]] = {}
        taken: set[str] = set()
        for label in _IN_ORDER:
            found: list[str] = []
            for each in self.labels[label]:
                if any(other in there for other in each.unless) or not there.issuperset(each.only_with):
                    continue
                same = [column for column in by_name.get(each.name, ()) if column not in taken]
                found += sorted(same, key=lambda column: column.lower() != label)[:1]
                if found and label != "control":
                    break
            if found:
                chosen[label] = tuple(found)
                taken.update(found)
                there.add(label)
        return chosen


def _first(columns: Iterable[str], names: Sequence[str]) -> str | None:
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(fold_column(column), column)
    return next((folded[name] for name in names if name in folded), None)


_IN_ORDER = ("compound", "gene", "guide", "perturbation", "pathway", "dose", "replicate", "control")
"""Compounds before genes: the target of a compound is no gene that was perturbed."""


def parse_labels(declared: Any) -> LabelVocabulary:
    """The vocabulary from its YAML.

    Raises:
        ValueError: A field that is missing or unknown, a label that `wells` lacks, or a name that is declared twice.
    """
    fields = {"nothing", "errors", "labels", "places", "objects", "annotations", "images"}
    if not isinstance(declared, Mapping) or set(declared) != fields:
        found = ", ".join(map(str, declared)) if isinstance(declared, Mapping) else repr(declared)
        raise ValueError(f"found {found}, expected {', '.join(sorted(fields))}. Correct the file.")
    for field, names in (("labels", LABELS), ("places", PLACES), ("objects", OBJECT_PLACES)):
        if set(declared[field]) != set(names):
            raise ValueError(
                f"{field}: found {', '.join(map(str, declared[field]))}, expected {', '.join(names)}. Correct the file."
            )
    labels = {label: tuple(_column(label, each) for each in entries) for label, entries in declared["labels"].items()}
    for label, entries in labels.items():
        declared_names = [each.name for each in entries]
        if len(set(declared_names)) < len(declared_names):
            twice = sorted({name for name in declared_names if declared_names.count(name) > 1})
            raise ValueError(f"labels.{label}: found {', '.join(twice)} twice, expected each once. Remove one.")
    errors = frozenset(str(each).casefold() for each in declared["errors"])
    return LabelVocabulary(
        nothing=errors | {str(each).casefold() for each in declared["nothing"]},
        errors=errors,
        labels=labels,
        places=_folded(declared["places"]),
        objects=_folded(declared["objects"]),
        annotations=frozenset(fold_column(str(each)) for each in declared["annotations"]),
        images=frozenset(fold_column(str(each)) for each in declared["images"]),
        label_names=frozenset(each.name for entries in labels.values() for each in entries),
    )


@cache
def label_vocabulary() -> LabelVocabulary:
    """What catalog/labels.yaml declares.

    Raises:
        ValueError: The file cannot be used.
    """
    path = declared_folder() / "labels.yaml"
    try:
        return parse_labels(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"catalog/labels.yaml: {error}") from error


def _folded(declared: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    return {place: tuple(dict.fromkeys(fold_column(str(each)) for each in names)) for place, names in declared.items()}


def _column(label: str, declared: Any) -> LabelColumn:
    if not isinstance(declared, Mapping) or not {"column"} <= set(declared) <= {"column", "unless", "with", "about"}:
        raise ValueError(f"labels.{label}: found {declared!r}, expected column, and perhaps unless, with and about.")
    conditions = {key: tuple(str(each) for each in declared.get(key, ())) for key in ("unless", "with")}
    for key, names in conditions.items():
        if unknown := sorted(set(names) - set(LABELS)):
            raise ValueError(
                f"labels.{label}, {declared['column']}: found {', '.join(unknown)} under {key}, expected labels out of "
                f"{', '.join(LABELS)}. Correct the file."
            )
    return LabelColumn(fold_column(str(declared["column"])), conditions["unless"], conditions["with"])


def check_label_columns(label_columns: Mapping[str, str]) -> None:
    """Check that every key is a label of wells.

    Raises:
        ValueError: A key is not in LABELS.
    """
    if unknown := sorted(set(label_columns) - set(LABELS)):
        raise ValueError(
            f"found label_columns for {', '.join(unknown)}, expected labels out of {', '.join(LABELS)}. Correct them: "
            "label first, then its column."
        )
