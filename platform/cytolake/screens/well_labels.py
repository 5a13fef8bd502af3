"""Labels of wells from the columns of a plate map or table, and problems of these columns.

`Plate.wells` holds the raw cells; `inspect` and `ingest` both read labels with this module. It stays one file because
every function is a step of `read_labels` and `declare_labels`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache

from cytolake.screens.label_vocabulary import LabelVocabulary, fold_column, label_vocabulary, nfc
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import well_order
from cytolake.screens.spreadsheet_damage import likely_original

TEXT_LABELS = ("gene", "pathway", "guide", "compound", "replicate")
NEGATIVE = frozenset(
    {"negative", "neg", "neg control", "negative control", "negcon", "neg con", "nc", "ntc"}
    | {"dmso", "vehicle", "solvent", "untreated", "mock", "scrambled"}
    | {"non targeting", "nontargeting", "non targeting control"}
)
POSITIVE = frozenset({"positive", "pos", "pos control", "positive control", "poscon", "pos con", "pc"})
POSITIVE_PREFIXES = ("poscon ",)  # JUMP: poscon_cp, poscon_orf, poscon_diverse
NO_CONTROL = frozenset({"no", "false", "0", "trt", "treatment", "treated", "sample", "test", "compound"})
SOME_CONTROL = frozenset({"yes", "true", "1", "control", "ctrl"})
"""A control of a kind the column does not say: negative where the treatment is one of NEGATIVE."""

DECLARED_BEFORE = " (plate map)"
"""Added to the name of a column whose label the user declared another column for."""
_ALWAYS_CONTROL = ("control", "controltype")
_NAMES = ("perturbation", "gene", "compound", "guide")
_ID_WORDS = ("id", "barcode", "plate", "sample", "clone", "accession", "catalog", "lot", "batch")
_NEAR = 0.85
_N_SHOWN = 8
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?")  # of spreadsheets in much of Europe
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
_SUBSTANCE = re.compile(r"[^\W\d]")


@dataclass(frozen=True, kw_only=True, slots=True)
class WellLabels:
    """Labels of one well; empty where nothing is known."""

    perturbation: str
    texts: Mapping[str, str]
    """For each of TEXT_LABELS."""
    dose: float | None
    control: str
    """`negative`, `positive` or empty."""
    annotations: Mapping[str, str]
    """Every other column with a value, by its name in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnUse:
    """Use of a column of the plate map."""

    column: str
    becomes: str
    """`label gene`, `place`, `annotation`, or `nothing` where all its cells are empty."""
    n_values: int
    """Different values, of those that say something."""
    example: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateLabels:
    """Labels of the wells of a plate."""

    wells: Mapping[str, WellLabels]
    """Of the wells that the plate map names."""
    problems: tuple[Problem, ...]
    columns: tuple[ColumnUse, ...]


def read_labels(plate: Plate) -> PlateLabels:
    """Read the labels of a plate's wells, with the columns that catalog/labels.yaml names.

    The perturbation is the column for it, else the well's gene, else its compound; its guide where the plate has none
    of these. A well is a control only where a column says so: a well of DMSO without it is a well of DMSO. A negative
    control whose perturbation is its guide has no guide, as in published RxRx1. Nothing is guessed: a cell that is not
    understood is a problem, and kept as an annotation.
    """
    vocabulary = label_vocabulary()
    mapped: dict[str, dict[str, str]] = {}
    for entry in plate.wells:
        cells = {nfc(key.strip()): value.strip() for key, value in entry.items()}
        mapped.setdefault(entry["well"], cells)
    values: dict[str, list[str]] = {}
    for cells in mapped.values():
        for column, cell in cells.items():
            of_column = values.setdefault(column, [])
            if not vocabulary.says_nothing(cell):
                of_column.append(nfc(cell))
    filled = [column for column, found in values.items() if found and not _is_place(column)]
    used = vocabulary.columns_of(filled)
    if "control" in used:
        kept = [each for each in used["control"] if _says_control(each, values[each])]
        used = {**used, "control": tuple(kept)}
    problems: list[Problem] = []
    taken = {column for columns in used.values() for column in columns}
    wells = {
        well: _of_well(plate, well, mapped[well], used, taken, vocabulary, problems)
        for well in sorted(mapped, key=well_order)
    }
    problems += _failed_formulas(plate, mapped, vocabulary)
    problems += _not_used(plate, wells, values, used, taken, vocabulary)
    columns = tuple(_use(column, found, used) for column, found in values.items() if column != "well")
    return PlateLabels(wells=wells, problems=tuple(problems), columns=columns)


def parse_control(text: str, treatment: str) -> str | None:
    """`negative`, `positive` or empty, from a plate map's control column; None where it does not say.

    Args:
        text: The control column.
        treatment: What the well holds, which counts where the column says only that it is a control.
    """
    said = _fold(text)
    if label_vocabulary().says_nothing(text) or said in NO_CONTROL:
        return ""
    if said in NEGATIVE or (said in SOME_CONTROL and _fold(treatment) in NEGATIVE):
        return "negative"
    if said in POSITIVE or said.startswith(POSITIVE_PREFIXES):
        return "positive"
    return None


def looks_negative(treatment: str) -> bool:
    """Whether a treatment has a name of those that negative controls have."""
    return _fold(treatment) in NEGATIVE


def declare_labels(plate: Plate, label_columns: Mapping[str, str]) -> Plate:
    """The plate with the columns that the user declared under the names of their labels.

    A declared column keeps its own name too. A column that has the label's name already is renamed with
    DECLARED_BEFORE. A declared column that the plate lacks is a problem.

    Args:
        label_columns: Label -> column, as `ScreenSource.label_columns` has it.
    """
    if not label_columns or not plate.wells:
        return plate
    there = dict.fromkeys(column for row in plate.wells for column in row)
    found: dict[str, str] = {}
    problems = []
    for label, wanted in label_columns.items():
        column = next((each for each in there if nfc(each) == nfc(wanted)), None) or next(
            (each for each in there if fold_column(each) == fold_column(wanted)), None
        )
        if column is not None:
            found[label] = column
            continue
        problems.append(
            plate.problem(
                problem="missing_column",
                found=f"columns {', '.join(each for each in there if each != 'well')}",
                expected=f"the column {wanted}, which label_columns declares for {label}",
                next_step="Correct `label_columns` of the screen, or the plate map.",
            )
        )
    wells = []
    for row in plate.wells:
        cells = dict(row)
        for label, column in found.items():
            before = next((each for each in row if each.casefold() == label and each != column), None)
            if before is not None:
                cells.pop(before, None)
                cells[before + DECLARED_BEFORE] = row[before]
        for label, column in found.items():
            cells[label] = row.get(column, "")
        wells.append(cells)
    return replace(plate, wells=tuple(wells), problems=(*plate.problems, *problems))


def _of_well(
    plate: Plate,
    well: str,
    cells: Mapping[str, str],
    used: Mapping[str, Sequence[str]],
    taken: set[str],
    vocabulary: LabelVocabulary,
    problems: list[Problem],
) -> WellLabels:
    def value(label: str) -> str:
        return next((said for column in used.get(label, ()) if (said := vocabulary.value(cells.get(column, "")))), "")

    def report(problem: str, found: str, expected: str, next_step: str) -> None:
        problems.append(
            plate.problem(
                well=well,
                problem=problem,
                found=found,
                expected=expected,
                next_step=next_step,
            )
        )

    texts = {label: value(label) for label in TEXT_LABELS}
    perturbation = value("perturbation") or texts["gene"] or texts["compound"]
    is_guide = not any(used.get(label) for label in ("perturbation", "gene", "compound"))
    perturbation = perturbation or (texts["guide"] if is_guide else "")
    annotations = {
        column.lower(): cell for column, cell in cells.items() if cell and column not in taken and not _is_place(column)
    }
    column, said = next(
        ((each, cell) for each in used.get("control", ()) if (cell := vocabulary.value(cells.get(each, "")))), ("", "")
    )
    control = parse_control(said, perturbation)
    if control is None:
        report(
            "unknown_control",
            f"{column} {said}",
            "negative, positive or nothing",
            f"Correct the column {column} in the plate map. The well is kept as one that is no control.",
        )
    if said and _fold(said) not in NEGATIVE | POSITIVE | NO_CONTROL | SOME_CONTROL:
        annotations[column.lower()] = said  # poscon_cp says more than positive
    if control == "negative" and is_guide:
        texts["guide"] = ""
    written = value("dose")
    dose = _number(written)
    if dose is None and written:
        column = used["dose"][0]
        report(
            "bad_dose",
            f"{column} {written}",
            "a number without a unit; a decimal comma only where it cannot be one of thousands",
            f"Correct the column {column} in the plate map. The well is kept without a dose.",
        )
        annotations[column.lower()] = written
    damaged: set[str] = set()
    for column, cell in cells.items():
        is_name = any(column in used.get(label, ()) for label in _NAMES)
        if cell in damaged or not (is_name or fold_column(column).endswith(_ID_WORDS)):
            continue
        if original := likely_original(cell, is_name=is_name and column not in used.get("compound", ())):
            damaged.add(cell)
            report(
                "spreadsheet_damage",
                f"{column} {cell}",
                f"a name or an id; probably {original}",
                f"Correct the column {column} in the plate map, and save it as text. The value is kept as it is.",
            )
    return WellLabels(perturbation=perturbation, texts=texts, dose=dose, control=control or "", annotations=annotations)


def _says_control(column: str, values: Sequence[str]) -> bool:
    """Whether a column that may hold controls does: of a name such as role, at least one value must be understood."""
    return fold_column(column) in _ALWAYS_CONTROL or any(
        parse_control(value, "DMSO") is not None for value in set(values)
    )


def _failed_formulas(
    plate: Plate, mapped: Mapping[str, Mapping[str, str]], vocabulary: LabelVocabulary
) -> list[Problem]:
    wells: dict[str, list[str]] = {}
    cell_of: dict[str, str] = {}
    for well, cells in mapped.items():
        for column, cell in cells.items():
            if cell.casefold() in vocabulary.errors:
                wells.setdefault(column, []).append(well)
                cell_of.setdefault(column, cell)
    return [
        plate.problem(
            well=found[0] if len(found) == 1 else "",
            problem="spreadsheet_damage",
            found=f"{column} {cell_of[column]} in {len(found)} wells: {_some(found)}",
            expected="a value; the spreadsheet's formula failed",
            next_step=f"Correct the column {column} in the plate map. Until then these cells count as empty.",
        )
        for column, found in wells.items()
    ]


def _not_used(
    plate: Plate,
    wells: Mapping[str, WellLabels],
    values: Mapping[str, Sequence[str]],
    used: Mapping[str, Sequence[str]],
    taken: set[str],
    vocabulary: LabelVocabulary,
) -> list[Problem]:
    """That no well has a perturbation, and columns that look like labels and are none."""
    others = {
        column: found for column, found in values.items() if found and column not in taken and not _is_place(column)
    }
    set_it = "Name the column in `label_columns` of the screen, such as label_columns={'perturbation': 'COLUMN'}"
    if not any(each.perturbation for each in wells.values()):
        repeated = [f"{column} ({len(set(found))} values)" for column, found in others.items() if _repeats(found)]
        columns = f"; columns {', '.join(others)}" if others else ""
        like = f"; {', '.join(repeated)} repeat over wells as labels do" if repeated else ""
        maps = [problem.file for problem in plate.problems if problem.problem == "image_without_well"]
        where = "its plate map" if plate.wells else "a plate map: there is none"
        next_step = f"{set_it}, or rename it." if others else "Write a platemap.csv, or set `plate_map`."
        if maps and not plate.wells:
            where = f"rows of this plate in {maps[0]}: there are none"
            next_step = f"Name the plate {plate.plate} in the column plate of {maps[0]}."
        return [
            plate.problem(
                problem="no_perturbation",
                found=f"no well with a perturbation, gene or compound{columns}{like}",
                expected=f"what was done to the wells, in {where}",
                next_step=next_step,
            )
        ]
    return [
        *_reagents_alone(plate, wells),
        *(
            plate.problem(
                problem="unused_label",
                found=f"the column {column}, which looks like {label} and is kept as an annotation",
                expected=f"a column for {label} of a name that catalog/labels.yaml has",
                next_step=f"{set_it.replace('perturbation', label).replace('COLUMN', column)}, if it is one.",
            )
            for column in others
            if (label := _near(column, vocabulary)) and label != "perturbation" and not used.get(label)
        ),
    ]


def _reagents_alone(plate: Plate, wells: Mapping[str, WellLabels]) -> list[Problem]:
    """That wells have a guide, on a plate whose perturbations are genes or compounds, and none of these."""
    found = [well for well, each in wells.items() if each.texts["guide"] and not (each.perturbation or each.control)]
    if not found:
        return []
    guides = dict.fromkeys(wells[well].texts["guide"] for well in found)
    return [
        plate.problem(
            well=found[0] if len(found) == 1 else "",
            problem="no_perturbation",
            found=f"{len(found)} wells with a guide ({_some(list(guides))}) and no gene or compound: {_some(found)}",
            expected="a perturbation wherever a guide is named, as on the rest of the plate",
            next_step="Fill in their gene, or write what they are, such as non-targeting, and negative into a column "
            "control. Until then they count as wells without a perturbation.",
        )
    ]


def _near(column: str, vocabulary: LabelVocabulary) -> str:
    """The label that an unknown column's name is like; empty for none."""
    folded = fold_column(column)
    if folded in vocabulary.annotations | vocabulary.images | vocabulary.label_names:
        return ""
    return _near_label(folded)


@cache
def _near_label(folded: str) -> str:
    vocabulary = label_vocabulary()
    best, label_of_best = _NEAR, ""
    for label, entries in vocabulary.labels.items():
        for each in entries:
            if len(each.name) < 4:
                continue
            score = SequenceMatcher(None, folded, each.name).ratio()
            if score > best:
                best, label_of_best = score, label
    return label_of_best or next((label for word, label in _LIKE.items() if word in folded), "")


_LIKE = {
    "concentration": "dose", "controltype": "control", "perturb": "perturbation", "treatment": "perturbation",
    "sirna": "guide", "sgrna": "guide", "genesymbol": "gene", "genename": "gene", "compoundname": "compound",
    "drug": "compound",
}  # fmt: skip
"""Word in a column's name -> the label that it is like."""


def _repeats(values: Sequence[str]) -> bool:
    """Few different values, several wells each, and not all numbers: as the labels of replicates are."""
    counts = Counter(values)
    return 2 <= len(counts) <= len(values) / 2 and any(_SUBSTANCE.search(value) for value in counts)


def _use(column: str, found: Sequence[str], used: Mapping[str, Sequence[str]]) -> ColumnUse:
    label = next((label for label, columns in used.items() if column in columns), "")
    becomes = f"label {label}" if label else "annotation" if found else "nothing"
    if _is_place(column):
        becomes = "place"
    return ColumnUse(column=column, becomes=becomes, n_values=len(set(found)), example=found[0] if found else "")


def _is_place(column: str) -> bool:
    """The row's own place, which the table `wells` has columns for."""
    return column.lower() in ("screen", "plate", "well") or fold_column(column) == "batch"


def _number(text: str) -> float | None:
    """A number with a decimal point, or with a decimal comma; 1,000 may be either, and is None."""
    is_decimal = _DECIMAL_COMMA.fullmatch(text) and not _THOUSANDS.fullmatch(text)
    try:
        number = float(text.replace(",", ".") if is_decimal else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _fold(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_N_SHOWN]) + (" and more" if len(names) > _N_SHOWN else "")
