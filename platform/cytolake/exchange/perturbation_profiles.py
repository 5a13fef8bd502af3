"""Imports published profiles of genes or perturbations: one vector for each name, without wells.

Shapes: N names, D features.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id, representation_id, whole_id
from cytolake.catalog.representations import vectors_column
from cytolake.exchange.profile_tables import feature_columns, matrix_of, read_profile_table
from cytolake.screens.label_vocabulary import label_vocabulary, nfc

EXTERNAL_PERTURBATIONS = "external_perturbations"
ProfileLevel = Literal["gene", "perturbation"]
_POOLING = "all"
_SOME = 5


@dataclass(frozen=True, slots=True, eq=False)
class PerturbationTable:
    """One vector for each gene or perturbation.

    Raises:
        ValueError: No rows or features, a name that is empty or comes twice, or values that are not finite.
    """

    source: str
    level: ProfileLevel
    names: tuple[str, ...]
    """(N,)"""
    vectors: NDArray[np.float32]
    """(N, D)"""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or 0 in self.vectors.shape or len(self.vectors) != len(self.names):
            raise ValueError(
                f"{self.source}: {len(self.names)} names for vectors of shape {self.vectors.shape}, expected one name "
                "for each row, and at least one feature. Check the table."
            )
        empty = [i for i, name in enumerate(self.names) if label_vocabulary().says_nothing(name)]
        twice = sorted(name for name, n in Counter(self.names).items() if n > 1)
        if empty or twice:
            raise ValueError(
                f"{self.source}: {len(empty)} rows without a {self.level}"
                f"{f' (row {empty[0]})' if empty else ''} and {len(twice)} names twice"
                f"{f' ({_some(twice)})' if twice else ''}, expected each {self.level} once. Average or remove rows."
            )
        bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1)).tolist()
        if bad:
            raise ValueError(
                f"{self.source}: values that are not finite for {_some([self.names[i] for i in bad])}. Leave these "
                "rows or features out."
            )


def read_perturbation_table(
    path: str | Path, level: ProfileLevel, *, features: Sequence[str] = ()
) -> PerturbationTable:
    """Read a table with one row for each gene or perturbation.

    Args:
        path: Parquet, CSV or TSV (also `.gz`), or AnnData, whose `X` is the matrix and whose `obs`, or its index, has
            the names.
        level: What a row is; its column is found by the names of catalog/labels.yaml.
        features: Columns that hold the vector; by default those of `feature_columns`.

    Raises:
        ValueError: No column of such names, and what `PerturbationTable` refuses.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        return _of_anndata(path, level)
    table = read_profile_table(path)
    column = _name_column(table.column_names, level, str(path))
    chosen = list(features) or [name for name in feature_columns(table) if name != column]
    names = tuple(nfc(str("" if value is None else value).strip()) for value in table[column].to_pylist())
    return PerturbationTable(str(path), level, names, matrix_of(table, chosen, str(path)))


def import_perturbations(catalog: Catalog, table: PerturbationTable, name: str, *, screen: str) -> str:
    """Write such a table as a representation of kind `external_perturbations`; no well is made up for it.

    The same content under the same name is stored once, in whatever order its rows come.

    Args:
        catalog: Where the rows go.
        table: What was read.
        name: Of the model: becomes the architecture in `representations`.

    Returns:
        The representation's id.

    Raises:
        ValueError: An empty name or screen.
    """
    if not name.strip() or not screen.strip():
        raise ValueError(f"name {name!r}, screen {screen!r}: expected both. Give --name and --screen.")
    order = sorted(range(len(table.names)), key=table.names.__getitem__)
    names = [table.names[i] for i in order]
    vectors_ND = np.asarray(table.vectors, dtype="<f4")[order]
    digest = hashlib.blake2b(vectors_ND.tobytes(), digest_size=16).hexdigest()
    model_id = content_id(EXTERNAL_PERTURBATIONS, name, screen, table.level, vectors_ND.shape[1], *names, digest)
    pack_id = content_id(EXTERNAL_PERTURBATIONS, screen, table.level, *names)
    identity = representation_id(model_id, -1, _POOLING, pack_id)
    rows = {
        "representation_id": pa.repeat(identity, len(names)),
        "level": pa.repeat(table.level, len(names)),
        "screen": pa.repeat(screen, len(names)),
        "name": pa.array(names, pa.string()),
        "profile": vectors_column(vectors_ND),
    }
    contract = table_contract("perturbation_profiles")
    transaction = f"perturbation_profiles/{identity}"
    catalog.append("perturbation_profiles", contract.conform(pa.table(rows)), transaction=transaction)
    row = dict.fromkeys(table_contract("representations").schema.names) | {
        "representation_id": identity, "kind": EXTERNAL_PERTURBATIONS, "model_id": model_id, "architecture": name,
        "block": -1, "pooling": _POOLING, "dim": vectors_ND.shape[1], "pack_id": pack_id, "curation_id": "",
        "checkpoint": "", "run_id": "", "created_at": datetime.now(UTC),
    }  # fmt: skip
    new = table_contract("representations").rows([row])
    catalog.append("representations", new, transaction=f"representations/{identity}")
    return identity


def read_perturbations(catalog: Catalog, id_or_name: str) -> PerturbationTable:
    """Vectors of an import by gene or perturbation, in order of the names.

    Args:
        id_or_name: Its id or the beginning of it, or the name that it was imported under.

    Raises:
        ValueError: There is none, or several of this name.
    """
    rows = catalog.table("representations", where="kind = ?", parameters=[EXTERNAL_PERTURBATIONS]).to_pylist()
    matches = [row for row in rows if id_or_name in (row["representation_id"], row["architecture"])]
    if not matches:
        whole = whole_id(id_or_name, (row["representation_id"] for row in rows), "representation")
        matches = [row for row in rows if row["representation_id"] == whole]
    if len(matches) != 1:
        there = sorted({row["architecture"] for row in rows})
        raise ValueError(
            f"{id_or_name}: found {len(matches)} imports by gene or perturbation, expected one. There are: "
            f"{_some(there) or 'none'}. Give an id of the table representations, or import it with --by."
        )
    identity = [matches[0]["representation_id"]]
    stored = catalog.table("perturbation_profiles", where="representation_id = ?", parameters=identity).sort_by("name")
    values = stored["profile"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix_ND = np.asarray(values, dtype=np.float32).reshape(stored.num_rows, -1)
    level: ProfileLevel = "gene" if stored["level"][0].as_py() == "gene" else "perturbation"
    return PerturbationTable(id_or_name, level, tuple(stored["name"].to_pylist()), matrix_ND)


def _of_anndata(path: Path, level: ProfileLevel) -> PerturbationTable:
    import anndata

    data = anndata.read_h5ad(path)
    if data.X is None:
        raise ValueError(f"{path}: no X, expected the vectors there. Write them as X.")
    columns = [str(name) for name in data.obs]
    column = _found_column(columns, level)
    names = data.obs[column].astype(str) if column else data.obs_names
    matrix = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    return PerturbationTable(
        f"{path}, X", level, tuple(nfc(str(each)) for each in names), np.asarray(matrix, dtype=np.float32)
    )


def _found_column(columns: Sequence[str], level: ProfileLevel) -> str | None:
    found = label_vocabulary().columns_of(columns)
    for label in (level, *(("gene", "compound", "guide") if level == "perturbation" else ())):
        if label in found:
            return found[label][0]
    return None


def _name_column(columns: Sequence[str], level: ProfileLevel, source: str) -> str:
    if level not in get_args(ProfileLevel):
        raise ValueError(f"level {level!r}: expected one of {', '.join(get_args(ProfileLevel))}.")
    column = _found_column(columns, level)
    if column is None:
        raise ValueError(
            f"{source}: found the columns {_some(columns)}, expected one for the {level} of a name that "
            "catalog/labels.yaml has. Rename it."
        )
    return column


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SOME])}{' and more' if len(names) > _SOME else ''}"
