"""The contract of a curation rule, and the crops that the rules of one curation work on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.representations import StoredVectors, stored_vectors
from cytolake.catalog.tables import Catalog
from cytolake.qc.verdicts import Progress

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class CurationError(CatalogError):
    """An invalid spec, or a curation that keeps no crop."""


@dataclass(slots=True)
class Candidates:
    """All crops of the catalog, and which of them the rules applied so far keep. `curate` updates it; rules read it."""

    name: str
    """Name of the curation, for error messages."""
    catalog: Catalog
    """The catalog at the pinned table versions."""
    crops: pa.Table
    """Columns of crops and wells, ordered by crop_id."""
    kept: Mask
    """(N,) True where no rule has excluded the crop yet."""
    seed: int
    evidence: list[dict[str, Any]] = field(default_factory=list)
    """Rows of consistency_tests, without curation_id."""

    def check_columns(self, columns: Iterable[str], place: str) -> None:
        """Check that crops or wells has these columns.

        Raises:
            CurationError: Names the columns that are missing and those that exist.
        """
        unknown = [column for column in columns if column not in self.crops.column_names]
        if unknown:
            raise CurationError(
                f"curation {self.name}: {place}: no column {', '.join(unknown)}. Columns of crops and wells: "
                f"{', '.join(self.crops.column_names)}."
            )

    def text(self, column: str) -> pa.ChunkedArray:
        """A column as text; null becomes the empty string."""
        values = self.crops.column(column)
        return pc.fill_null(values if pa.types.is_string(values.type) else values.cast(pa.string()), "")

    def groups(self, columns: Sequence[str]) -> tuple[Numbers, Numbers]:
        """Group crops by equal values in all columns.

        Returns:
            (N,) the group number of each crop, and for each group the row of one of its crops.
        """
        codes = np.zeros(self.crops.num_rows, np.int64)
        for column in columns:
            encoded = self.text(column).combine_chunks().dictionary_encode()
            codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy().astype(np.int64)
            codes = np.unique(codes, return_inverse=True)[1]
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        return codes.astype(np.int64), first.astype(np.int64)

    def experiments(self, experiment: str) -> tuple[Numbers, Numbers]:
        """`groups` of plates, or of the batches of a screen."""
        return self.groups(["screen", "plate_id"] if experiment == "plate" else ["screen", "batch"])

    def is_equal(self, column: str, value: str) -> Mask:
        """(N,) True where a column has this text."""
        return np.asarray(pc.equal(self.text(column), value).to_numpy(zero_copy_only=False), np.bool_)

    def random_numbers(self, column: str) -> NDArray[np.uint64]:
        """(N,) a hash of the crop's value in a column and the seed: adding plates changes no number."""
        encoded = self.text(column).combine_chunks().dictionary_encode()
        numbers = np.array([hashed_number(value, self.seed) for value in encoded.dictionary.to_pylist()], np.uint64)
        of_each: NDArray[np.uint64] = numbers[encoded.indices.to_numpy()]
        return of_each

    def vectors(self, representation_id: str) -> tuple[StoredVectors, Numbers]:
        """Vectors of the kept crops (`rows` index all crops), and the rows of kept crops without a vector."""
        kept = np.flatnonzero(self.kept)
        found = stored_vectors(self.catalog, representation_id, self.crops.column("crop_id").take(pa.array(kept)))
        return replace(found, rows=kept[found.rows]), np.setdiff1d(kept, kept[found.rows], assume_unique=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusions:
    """Crops that a rule excludes."""

    rows: Numbers
    """(M,) rows of the candidates."""
    reasons: Sequence[str]
    """(M,) a short text, equal for crops excluded for the same reason: reasons are counted."""
    details: Sequence[str] | None = None
    """(M,) details of the single crop, such as the crop it duplicates or its p-value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule(ABC):
    """One entry of a curation's `steps`. The fields of a subclass are the keys of the entry."""

    rule: ClassVar[str]
    """Name of the rule in the YAML file."""
    tables: ClassVar[tuple[str, ...]] = ()
    """Tables that the rule reads in addition to crops, plates, sites and wells."""

    def resolved(self, catalog: Catalog, curation: str) -> Self:
        """The rule with names replaced by the ids that they currently stand for. Writes nothing."""
        return self

    @abstractmethod
    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        """Choose crops to exclude. Crops that an earlier rule excluded may be listed and are ignored."""


def hashed_number(value: str, seed: int) -> int:
    """A pseudo-random number, 0 to 2**64 - 1, that depends on the value and the seed only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{value}".encode(), digest_size=8).digest())


def exclude_all(mask: Mask, reason: str) -> Exclusions:
    """Exclude the crops of a mask for one reason."""
    rows = np.flatnonzero(mask)
    return Exclusions(rows=rows, reasons=[reason] * len(rows))


def check_field(step: Rule, name: str, is_good: bool, expected: str) -> None:
    """Refuse a field's value.

    Raises:
        CurationError: `is_good` is false.
    """
    if not is_good:
        raise CurationError(f"{step.rule}.{name} is {getattr(step, name)!r}; expected {expected}.")
