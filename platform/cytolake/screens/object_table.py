"""Tables with one row per object, such as the guide or the type of each cell of a pooled screen.

CSV, TSV (also `.gz`) or Parquet, as CellProfiler, in situ sequencing pipelines and segmentation tools write them. Names
of the columns are in catalog/labels.yaml. Millions of rows are read as columns, and labels once for each combination.

Shapes: N rows.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytolake.screens.label_vocabulary import LABELS, OBJECT_PLACES, fold_column, label_vocabulary, nfc
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.positions import site_name, well_name
from cytolake.screens.tables import (
    cell_texts,
    checked_columns,
    header_delimiter,
    ragged_row,
    table_errors,
    unpacked,
)
from cytolake.screens.well_labels import WellLabels, declare_labels, read_labels
from cytolake.storage.source_folder import SourceFolder

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_BYTES_MAX = 1 << 33
_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTable:
    """Objects with at least one label, each with its place: N of each, empty where the table has no such column."""

    source: str
    plate: tuple[str, ...]
    """In NFC; all empty where the table has no plates."""
    well: tuple[str, ...]
    """Positions such as `B03`, or names of samples."""
    site: tuple[str, ...]
    object: tuple[str, ...]
    """Name in the site; the number of the row where the table names no objects."""
    crop: tuple[str, ...]
    """Crop id."""
    y: NDArray[np.float64]
    """(N,) centre, pixels; NaN where unknown."""
    x: NDArray[np.float64]
    label_of_row: NDArray[np.intp]
    """(N,) index into `labels`."""
    labels: tuple[WellLabels, ...]
    columns: Mapping[str, str]
    """Column of each label and place that was found."""
    problems: tuple[Problem, ...]


def read_object_table(path: str | Path, screen: str, label_columns: Mapping[str, str] | None = None) -> ObjectTable:
    """Read and check such a table on its own.

    Args:
        path: Local.
        screen: For messages.
        label_columns: Label -> column, before the names of catalog/labels.yaml.

    Raises:
        ScreenError: A file that is missing or cannot be read; without a label; or without what says where an object is:
            a crop, or the well and (unless every well has one site) the site.
    """
    path = Path(path).expanduser().resolve()
    file = path.name
    opened = _Source(SourceFolder(path.parent), file, screen)
    columns = opened.columns
    vocabulary = label_vocabulary()
    declared = _declared(columns, label_columns or {}, screen, file)
    places = {
        **{place: vocabulary.place_column(columns, place) for place in ("plate", "well")},
        **{place: vocabulary.object_column(columns, place) for place in OBJECT_PLACES},
    }
    found = {place: column for place, column in places.items() if column and column not in declared.values()}
    taken = set(found.values())
    candidates = [c for c in columns if (vocabulary.is_label(c) or c in declared.values()) and c not in taken]
    if not candidates:
        raise _refused(
            screen, file, "no_label", f"the columns {', '.join(columns)}", "a label such as perturbation, gene or guide"
        )
    if "crop" not in found and "well" not in found:
        raise _refused(
            screen, file, "missing_column", f"the columns {', '.join(columns)}", "well (and site, y and x), or crop_id"
        )
    if ("y" in found) != ("x" in found):
        raise _refused(
            screen,
            file,
            "missing_column",
            f"one of two coordinates, {found.get('y') or found.get('x')}",
            "both y and x",
        )
    rows = opened.read(sorted({*taken, *candidates}))
    table = _table(rows, found, candidates, declared, screen, str(path))
    return replace(table, problems=(*opened.problems, *table.problems))


def object_labels(
    rows: pa.Table, candidates: Sequence[str], declared: Mapping[str, str], screen: str, file: str
) -> tuple[tuple[WellLabels, ...], NDArray[np.intp], list[Problem]]:
    """Labels of the different combinations of cells, which of them each row has, and what is wrong with them.

    Args:
        rows: With the candidates as text.
        candidates: Columns that may be labels.
        declared: Label -> column, before the names of catalog/labels.yaml.
        screen: For messages.
        file: The same.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [pa.array(cell_texts(rows[column]), pa.string()) for column in candidates]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR) if len(texts) > 1 else texts[0]
    dictionary = joined.dictionary_encode()
    names = [f"row {i}" for i in range(len(dictionary.dictionary))]
    wells = tuple(
        {"well": name, **dict(zip(candidates, text.split(_SEPARATOR), strict=True))}
        for name, text in zip(names, dictionary.dictionary.to_pylist(), strict=True)
    )
    plate = Plate(screen=screen, plate="", batch="", source="", reader="files", channels=(), sites=(), wells=wells)
    read = read_labels(declare_labels(plate, declared))
    problems = {
        replace(problem, well="", file=file, next_step=problem.next_step.replace("plate map", "table"))
        for problem in read.problems
        if problem.problem not in ("no_perturbation", "unused_label")
    }
    of_row = np.asarray(dictionary.indices.to_numpy(zero_copy_only=False), dtype=np.intp)
    return tuple(read.wells[name] for name in names), of_row, sorted(problems, key=str)


def says_something(labels: WellLabels) -> bool:
    """Whether there is any label; an annotation is none."""
    return bool(labels.perturbation or labels.control or labels.dose is not None or any(labels.texts.values()))


def _table(
    rows: pa.Table,
    found: Mapping[str, str],
    candidates: Sequence[str],
    declared: Mapping[str, str],
    screen: str,
    source: str,
) -> ObjectTable:
    file = Path(source).name
    labels, of_row, problems = object_labels(rows, candidates, declared, screen, file)
    is_labelled = np.asarray([says_something(each) for each in labels], dtype=bool)[of_row]
    text = {
        place: [text.strip() for text in cell_texts(rows[found[place]])]
        for place in ("plate", "well", "site", "object", "crop")
        if place in found
    }
    number = {place: _numbers(rows[found[place]], screen, file, found[place]) for place in ("y", "x") if place in found}
    wells = {name: well_name(name) or nfc(name) for name in set(text.get("well", ()))}
    sites = {name: site_name(name) for name in set(text.get("site", ()))}
    is_placed = np.ones(len(of_row), dtype=bool)
    for place in ("well", "plate", "crop"):
        if place in text and not (place == "well" and "crop" in text):
            is_placed &= np.asarray([bool(each) for each in text[place]], dtype=bool)
    if "y" in number and "crop" not in text:
        is_placed &= np.isfinite(number["y"]) & np.isfinite(number["x"])
    if lost := int((is_labelled & ~is_placed).sum()):
        first = int(np.flatnonzero(is_labelled & ~is_placed)[0])
        problems.append(
            Problem(
                screen=screen,
                file=file,
                problem="object_without_place",
                found=f"{lost} objects with an empty plate, well, position or crop, the first in line {first + 2}",
                expected="the place of every object",
                next_step="Fill it in; until then these objects have no labels.",
            )
        )
    kept = np.flatnonzero(is_labelled & is_placed)
    if not len(kept):
        raise _refused(
            screen, file, "no_label", f"{len(of_row)} rows, none with a place and a label", "labels of some objects"
        )

    def of(place: str, shown: Mapping[str, str] | None = None) -> tuple[str, ...]:
        if place not in text:
            return ("",) * len(kept)
        values = text[place]
        return tuple(values[i] if shown is None else shown[values[i]] for i in kept.tolist())

    nowhere = np.full(len(of_row), np.nan)
    used = dict(declared)
    used |= {
        label: chosen[0]
        for label, chosen in label_vocabulary()
        .columns_of([c for c in candidates if c not in declared.values()])
        .items()
        if label not in used
    }
    return ObjectTable(
        source=source,
        plate=tuple(map(nfc, of("plate"))),
        well=of("well", wells),
        site=of("site", sites),
        object=of("object") if "object" in text else tuple(str(i + 1) for i in kept.tolist()),
        crop=of("crop"),
        y=number.get("y", nowhere)[kept],
        x=number.get("x", nowhere)[kept],
        label_of_row=of_row[kept],
        labels=labels,
        columns={**used, **found},
        problems=tuple(problems),
    )


class _Source:
    """A table that is opened: its columns, and any of them as Arrow."""

    def __init__(self, folder: SourceFolder, file: str, screen: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file, self._screen = file, screen
        self._is_parquet = file.lower().endswith(".parquet")
        with table_errors(file, screen):
            data = folder.read_bytes(file, TABLE_BYTES_MAX)
            if self._is_parquet:
                try:
                    names = list(pq.read_schema(io.BytesIO(data)).names)
                except pa.ArrowException as error:
                    raise OSError(str(error)) from error
            else:
                data = unpacked(data, file)
                if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    data = data.decode("utf-16").encode()
                data = data.removeprefix(codecs.BOM_UTF8)
                first, _, rest = data.partition(b"\n")
                if first.strip().strip(b'"').lower().startswith(b"sep="):
                    first, data = rest.partition(b"\n")[0], rest
                text = first.decode()
                self._delimiter = header_delimiter(text, file)
                names = next(csv.reader([text.rstrip("\r")], delimiter=self._delimiter), [])
        self._data = data
        self.columns = checked_columns(names, file, screen)
        self._name_of = dict(zip(self.columns, names, strict=True))
        self.problems: list[Problem] = []

    def read(self, columns: Sequence[str]) -> pa.Table:
        """These columns: of a CSV as text, of Parquet as they are."""
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet as pq

        names = [self._name_of[column] for column in columns]
        with table_errors(self._file, self._screen):
            try:
                table = pq.read_table(io.BytesIO(self._data), columns=names) if self._is_parquet else self._csv(names)
            except pa.ArrowException as error:
                raise OSError(str(error)) from error
        return pa.table({column: table[self._name_of[column]] for column in columns})

    def _csv(self, names: Sequence[str]) -> pa.Table:
        import pyarrow as pa
        import pyarrow.csv

        def skip(row: Any) -> str:
            n_cells = row.actual_columns
            self.problems.append(ragged_row(self._screen, self._file, row.number or 0, n_cells, row.expected_columns))
            return "skip"

        return pyarrow.csv.read_csv(
            io.BytesIO(self._data),
            # One thread, or rows have no numbers.
            read_options=pyarrow.csv.ReadOptions(
                skip_rows=1, column_names=list(self._name_of.values()), use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=names, default_column_type=pa.string()),
        )


def _declared(columns: Sequence[str], label_columns: Mapping[str, str], screen: str, file: str) -> dict[str, str]:
    """Label -> the table's column for it."""
    declared = {}
    for label, wanted in label_columns.items():
        if label not in LABELS:
            raise _refused(screen, file, "unknown_label", label, f"one of {', '.join(LABELS)}")
        column = next((each for each in columns if nfc(wanted) == each), None) or next(
            (each for each in columns if fold_column(each) == fold_column(wanted)), None
        )
        if column is None:
            raise _refused(screen, file, "missing_column", f"the columns {', '.join(columns)}", f"{wanted} for {label}")
        declared[label] = column
    return declared


def _numbers(column: pa.ChunkedArray, screen: str, file: str, name: str) -> NDArray[np.float64]:
    """NaN where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        stripped = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(stripped, ""), pa.scalar(None, stripped.type), stripped)
    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowException as error:
        raise _refused(screen, file, "bad_number", f"{name}: {error}", "a number of pixels") from error
    return np.asarray(pc.fill_null(numbers, float("nan")).to_numpy(), dtype=np.float64)


def _refused(screen: str, file: str, problem: str, found: str, expected: str) -> ScreenError:
    next_step = {
        "no_label": "Name the label's column with --label, such as --label guide=call, or rename it.",
        "missing_column": "Add or rename the column.",
    }.get(problem, "Save it again.")
    return ScreenError(
        Problem(screen=screen, file=file, problem=problem, found=found, expected=expected, next_step=next_step)
    )
