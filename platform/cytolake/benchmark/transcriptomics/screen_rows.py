"""Selection and labels of a screen's rows: incomplete rows, and rows with several perturbations.

A cell without a guide or without a count is left out and reported by name; the rest of the file is used.

Shapes: N rows of the AnnData.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Several = Literal["exclude", "combination", "each"]
Codes = NDArray[np.intp]
SHOWN = 5
"""Most names of rows in a report."""
SEPARATORS = ("|", "+", ";", ",", "&", "/")
"""Frequent separators of several perturbations in a label."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """Rows left out for one reason."""

    reason: str
    n: int
    names: tuple[str, ...]
    """Names of the first of them, from the index of `obs`."""

    def __str__(self) -> str:
        shown = ", ".join(self.names) + (", ..." if self.n > len(self.names) else "")
        return f"{self.n:,} row{'' if self.n == 1 else 's'} left out, {self.reason}: {shown}"


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows with a perturbation."""

    rows: Codes
    """(n,) rows of the AnnData; where `several` is `each`, a row occurs once for each of its perturbations."""
    labels: NDArray[np.str_]
    """(n,) perturbation, or the control."""
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


def labelled_rows(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str], control: str, separator: str, several: Several
) -> LabelledRows:
    """The perturbation of each row, from one or more columns.

    The control's name and empty values do not count where a row also has a perturbation, and two guides with one name
    are one perturbation. The order of several perturbations has no effect.

    Args:
        columns: (N,) values of each column; None, NaN and blanks are empty.
        names: (N,) names of the rows.
        control: Value of controls.
        separator: Separator of several perturbations in one value; empty where a value is one perturbation.
        several: `exclude` rows with several, treat each combination as a perturbation (`combination`), or count the
            row for `each`.
    """
    raw = np.array(["\0".join(_text(value) for value in row) for row in zip(*columns.values(), strict=True)])
    values, code = np.unique(raw, return_inverse=True)
    parts = [_parts(value, control, separator) for value in values.tolist()]
    n_parts = np.array([len(each) for each in parts])[code]
    excluded = [exclusion(f"no value in {' or '.join(columns)}", n_parts == 0, names)]
    if several == "exclude":
        excluded.append(exclusion("several perturbations", n_parts > 1, names))
    used = np.flatnonzero((n_parts == 1) | ((n_parts > 1) & (several != "exclude")))
    notes = []
    if several == "each":
        rows = np.repeat(used, n_parts[used])
        labels = [name for row in used.tolist() for name in parts[code[row]]]
    else:
        joined = [(separator or "+").join(each) for each in parts]
        rows, labels = used, [joined[code[row]] for row in used.tolist()]
    n_several = int((n_parts > 1).sum())
    if n_several and several != "exclude":
        how = "counted as perturbations of their own" if several == "combination" else "counted for each"
        notes.append(f"{n_several:,} row{'' if n_several == 1 else 's'} with several perturbations: {how}")
    if not separator:
        notes += _unseparated(labels)
    return LabelledRows(
        rows.astype(np.intp),
        np.asarray(labels, dtype=np.str_),
        tuple(each for each in excluded if each.n),
        tuple(notes),
    )


def exclusion(reason: str, which: NDArray[np.bool_], names: Sequence[str]) -> Excluded:
    """The rows of a mask, with the names of the first ones."""
    first = np.flatnonzero(which)[:SHOWN]
    return Excluded(reason, int(which.sum()), tuple(str(names[i]) for i in first.tolist()))


def _text(value: Any) -> str:
    is_missing = value is None or value != value  # NaN and NaT are not equal to themselves
    return "" if is_missing else str(value).strip()


def _parts(value: str, control: str, separator: str) -> list[str]:
    pieces = [piece.strip() for part in value.split("\0") for piece in (part.split(separator) if separator else [part])]
    found = sorted({piece for piece in pieces if piece})
    return [piece for piece in found if piece != control] if len(found) > 1 else found


def _unseparated(labels: Sequence[str]) -> list[str]:
    """A note where labels look like several perturbations and no separator is set."""
    counts = Counter(labels)
    for separator in SEPARATORS:
        found = [
            name
            for name in counts
            if separator in name and all(part.strip() in counts for part in name.split(separator))
        ]
        if found:
            n_rows = sum(counts[name] for name in found)
            return [
                f"{n_rows:,} row{'' if n_rows == 1 else 's'} with a label such as {found[0]!r}, whose parts are "
                "perturbations too: such a label counts as a perturbation of its own. If it is several, set "
                f"separator={separator!r} and several"
            ]
    return []
