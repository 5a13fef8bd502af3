"""Readers of files with known relations and clusters of genes.

A relation file is a comma- or tab-separated table with the columns `entity1` and `entity2`. A cluster file has one
cluster a line: its name, a tab, its genes separated by blanks, commas or tabs. Names are compared letter by letter, so
a screen and an annotation with gene symbols of different years need a table of aliases.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Relations:
    """Pairs of related genes from one source."""

    source: str
    """Such as `Reactome`."""
    pairs: tuple[tuple[str, str], ...]
    """Unordered: the smaller name first, each pair once, none of a gene with itself; sorted."""
    n_lines: int
    """Pairs in the file, duplicates and self-pairs counted."""

    @property
    def genes(self) -> frozenset[str]:
        """All genes that have a partner."""
        return frozenset(gene for pair in self.pairs for gene in pair)


def read_relations(path: Path, source: str | None = None, aliases: Mapping[str, str] | None = None) -> Relations:
    """Read a relation file.

    Args:
        path: Table with the columns `entity1` and `entity2`; others are ignored.
        source: Name in the results; the file's name without its ending where None.
        aliases: From `read_aliases`. Genes are renamed first; pairs that are then equal count once.

    Raises:
        ValueError: A column is missing, or a line has no name in one; with the file and the line.
        FileNotFoundError: No such file.
    """
    renamed = aliases or {}
    pairs: set[tuple[str, str]] = set()
    n_lines = 0
    for _, first, second in _rows(path, ("entity1", "entity2")):
        n_lines += 1
        if renamed:
            first, second = renamed.get(first, first), renamed.get(second, second)
        if first != second:
            pairs.add((first, second) if first < second else (second, first))
    if not pairs:
        raise ValueError(
            f"{path}: {n_lines} pairs, none of two different genes. Expected at least one; use another file."
        )
    return Relations(source or path.name.split(".")[0], tuple(sorted(pairs)), n_lines)


def read_aliases(path: Path) -> dict[str, str]:
    """Other names of genes, from a table with the columns `alias` and `symbol`, comma or tab separated.

    Rename both sides, or genes under an old symbol are silently missing: `read_relations(path, aliases=...)` for the
    annotation, `rename(entities, aliases)` for the screen.

    Raises:
        ValueError: A column or name is missing, an alias has two symbols, or a symbol is itself an alias of another.
    """
    symbols: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for line, alias, symbol in _rows(path, ("alias", "symbol")):
        if symbols.setdefault(alias, symbol) != symbol:
            raise ValueError(
                f"{path}, line {line}: alias {alias} is {symbol}, on line {line_of[alias]} it is {symbols[alias]}. "
                "Expected one symbol for each alias; remove one of the lines."
            )
        line_of.setdefault(alias, line)
    for alias, symbol in symbols.items():
        if symbols.get(symbol, symbol) != symbol:
            raise ValueError(
                f"{path}, line {line_of[alias]}: {alias} becomes {symbol}, and line {line_of[symbol]} makes that "
                f"{symbols[symbol]}. Expected a symbol that stays; write {alias},{symbols[symbol]}."
            )
    return symbols


def rename(entities: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """The entities, aliases replaced by their symbols.

    Raises:
        ValueError: Two different entities become one; their vectors must be aggregated first.
    """
    origin: dict[str, str] = {}
    for entity in entities:
        symbol = aliases.get(entity, entity)
        if origin.setdefault(symbol, entity) != entity:
            raise ValueError(
                f"entities {origin[symbol]} and {entity} are both {symbol} under the aliases. Expected one vector for "
                "each gene; aggregate the wells of both under one name, or take the alias out."
            )
    return [aliases.get(entity, entity) for entity in entities]


def read_clusters(path: Path, aliases: Mapping[str, str] | None = None) -> dict[str, tuple[str, ...]]:
    """Clusters of genes, such as protein complexes: name to its genes, sorted, each once.

    Raises:
        ValueError: A line without a tab or without genes, or a name that comes twice; with the file and the line.
    """
    renamed = aliases or {}
    clusters: dict[str, tuple[str, ...]] = {}
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        name, _, members = text.strip().partition("\t")
        genes = {renamed.get(gene, gene) for gene in members.replace(",", " ").split()}
        if not genes:
            raise ValueError(
                f"{path}, line {number}: found {text.strip()[:60]!r}, expected a cluster's name, a tab, and its genes. "
                "Correct the line."
            )
        if name in clusters:
            raise ValueError(f"{path}, line {number}: cluster {name} comes a second time. Give it another name.")
        clusters[name] = tuple(sorted(genes))
    if not clusters:
        raise ValueError(f"{path}: the file is empty, expected one cluster a line. Use another file.")
    return clusters


def _rows(path: Path, columns: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """Line number of each row and its values in the two columns."""
    lines = _lines(path)
    header = next(lines, "")
    delimiter = "\t" if "\t" in header else ","
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {' and '.join(missing)}, found {', '.join(names)[:200] or 'an empty line'}. "
            f"Expected a header with {' and '.join(columns)}, comma or tab separated; add it."
        )
    left, right = (names.index(column) for column in columns)
    reader = csv.reader(lines, delimiter=delimiter)
    n_needed = max(left, right) + 1
    for fields in reader:
        if len(fields) >= n_needed and (first := fields[left].strip()) and (last := fields[right].strip()):
            yield reader.line_num + 1, first, last
        elif fields:
            raise ValueError(
                f"{path}, line {reader.line_num + 1}: found {delimiter.join(fields)[:100]!r}, expected a name in each "
                f"of the columns {' and '.join(columns)}. Complete the line, or remove it."
            )


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason}). Save it as UTF-8, uncompressed.") from None
