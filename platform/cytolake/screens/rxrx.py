"""Published tables of Recursion's public screens: wells and embeddings of RxRx3-core and RxRx1, RxRx3-core's truth.

The files are the user's own download, under Recursion's terms; nothing here fetches or contains them.

Source: https://huggingface.co/datasets/recursionpharma/rxrx3-core and https://www.rxrx.ai/rxrx1.

Shapes: N wells, D features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.screens.label_vocabulary import label_vocabulary

Vectors = NDArray[np.float32]

ROWS_AT_ONCE = 16_384
CONTROL = "EMPTY_control"
CONFLICTS = "conflicting_labels"
"""Column of wells, where any has sites that disagree: columns and values, which the well then lacks."""
_PLACE = ("experiment", "plate", "well")
RXRX1_FACTS = (*_PLACE, "sirna", "cell_type", "dataset", "well_type")
"""Columns of RxRx1's metadata that say something of a well, not of one of its sites."""
RXRX3_CORE_TRUTH_COLUMNS = ("treatment", "gene_symbol", "nM_value")
GENE_ALIASES = {"C7orf26": "INTS15", "MPP5": "PALS1"}
"""Symbols of RxRx3 and of older annotation files, and what they are called since."""


def read_rxrx3_core_wells(metadata: str | Path) -> pa.Table:
    """Wells of RxRx3-core, in the order of the file, with columns as those of the table `wells`.

    Args:
        metadata: `metadata_rxrx3_core.csv`.

    Returns:
        `published_well_id`, `batch` (the experiment), `plate` (such as `gene-001_1`, as the image layout `rxrx` names
        it), `well`, `perturbation` (a gene, a compound or a control), `gene`, `guide`, `compound`, `dose` (uM),
        `control` (`negative` or empty), `perturbation_type` (`CRISPR` or `COMPOUND`), and `cell_type` and `SMILES`
        where the file has them.

    Raises:
        ValueError: A file without its columns, or a concentration that is no number.
    """
    table = _read_csv(metadata, ("well_id", "experiment_name", "plate", "address", "treatment", "perturbation_type"))
    treatments = [str(treatment) for treatment in table["treatment"].to_pylist()]
    perturbations = [perturbation_of_treatment(treatment) for treatment in treatments]
    kinds = [
        "" if "_control" in treatment else str(kind)
        for treatment, kind in zip(treatments, table["perturbation_type"].to_pylist(), strict=True)
    ]
    concentrations = _numbers(table, "concentration", metadata).to_pylist()

    def of(kind: str, values: Sequence[Any], otherwise: str | None = "") -> list[Any]:
        return [value if each == kind else otherwise for each, value in zip(kinds, values, strict=True)]

    return pa.table(
        {
            "published_well_id": table["well_id"],
            "batch": table["experiment_name"],
            "plate": _plates(table["experiment_name"].to_pylist(), table["plate"].to_pylist()),
            "well": table["address"],
            "perturbation": pa.array(perturbations, pa.string()),
            "gene": pa.array(of("CRISPR", perturbations), pa.string()),
            "guide": pa.array(of("CRISPR", treatments), pa.string()),
            "compound": pa.array(of("COMPOUND", perturbations), pa.string()),
            "dose": pa.array(of("COMPOUND", concentrations, None), pa.float64()),
            "control": pa.array(["negative" if name == CONTROL else "" for name in perturbations], pa.string()),
            "perturbation_type": table["perturbation_type"],
            **{name: table[name] for name in ("cell_type", "SMILES") if name in table.column_names},
        }
    )


def read_rxrx3_core(
    metadata: str | Path, embeddings: str | Path, *, allow_missing: bool = False
) -> tuple[Vectors, pa.Table]:
    """Wells of RxRx3-core with their vectors, in the order of the metadata.

    A well with several vectors gets their mean.

    Args:
        metadata: `metadata_rxrx3_core.csv`.
        embeddings: Parquet with a `well_id` (or `external_well_id`), and either columns `feature_0`, `feature_1`, ...
            or one column of lists of numbers.
        allow_missing: Leave out wells without a vector and vectors without a well; else they are an error.

    Returns:
        (N, D), and N rows of `read_rxrx3_core_wells`.

    Raises:
        ValueError: A file without its columns, a well that is listed twice, or one without its counterpart.
    """
    wells = read_rxrx3_core_wells(metadata)
    kept, vectors = _match(wells["published_well_id"].to_pylist(), metadata, embeddings, "well_id", allow_missing)
    return vectors, wells.take(pa.array(kept))


def read_rxrx1_wells(metadata: str | Path) -> pa.Table:
    """Wells of RxRx1, in the order of the file, with columns as those of the table `wells`.

    Args:
        metadata: `metadata.csv`, one row for each site.

    Returns:
        `published_well_id`, `batch` (the experiment), `plate` (such as `HUVEC-1_1`), `well`, `perturbation` (the
        siRNA), `guide` (the same; empty in negative controls), `control` (`negative`, `positive` or empty),
        `cell_type`, `split` (`train` or `test`) and `n_sites`. Where the sites of a well disagree on one of these, it
        is empty, and the column CONFLICTS names it with the values; other wells keep theirs.

    Raises:
        ValueError: A file without its columns, or sites of one well on two plates.
    """
    return _wells_of_sites(_read_csv(metadata, ("site_id", "well_id", *RXRX1_FACTS)), metadata)[0]


def read_rxrx1(
    metadata: str | Path, embeddings: str | Path, *, allow_missing: bool = False
) -> tuple[Vectors, pa.Table]:
    """Wells of RxRx1 with the mean of their sites' vectors, in the order of the metadata.

    Args:
        metadata: `metadata.csv`, one row for each site.
        embeddings: Parquet or CSV with a `site_id` and columns as in `read_rxrx3_core`.
        allow_missing: Leave out sites without a vector and vectors without a site; else they are an error.

    Returns:
        (N, D), and N rows of `read_rxrx1_wells`, of which `n_sites` counts the sites with a vector.

    Raises:
        ValueError: As `read_rxrx3_core`, or sites of one well on two plates.
    """
    table = _read_csv(metadata, ("site_id", "well_id", *RXRX1_FACTS))
    kept, of_site = _match(table["site_id"].to_pylist(), metadata, embeddings, "site_id", allow_missing)
    wells, of_well = _wells_of_sites(table.take(pa.array(kept)), metadata)
    sums = np.zeros((wells.num_rows, of_site.shape[1]))
    _add_rows(sums, of_well, of_site)
    return _means(sums, np.bincount(of_well), np.arange(wells.num_rows)), wells


def read_rxrx3_core_truth(path: str | Path, genes: Collection[str] = ()) -> pa.Table:
    """Known activities of compounds on genes, as `compound_gene_activity` reads them.

    Args:
        path: CSV with `treatment`, `gene_symbol` and `nM_value`.
        genes: Spellings of the screen; a gene that it has under an alias is renamed to that.

    Raises:
        ValueError: A file without its columns, or a value that is no number.
    """
    table = _read_csv(path, RXRX3_CORE_TRUTH_COLUMNS)
    nanomolar = _numbers(table, "nM_value", path)
    return pa.table(
        {
            "compound": table["treatment"],
            "gene": pa.array(screen_names_of(table["gene_symbol"].to_pylist(), genes), pa.string()),
            "activity_um": pc.divide(nanomolar, 1000.0),
        }
    )


def perturbation_of_treatment(treatment: str) -> str:
    """`TP53_guide_2` -> `TP53`; a name with `_control` and one without `_` stay as they are."""
    return treatment if "_control" in treatment else treatment.split("_")[0]


def screen_names_of(genes: Sequence[str], known: Collection[str]) -> list[str]:
    """Each gene, or the alias of it that is known where the gene itself is not."""
    have = set(known)
    others: dict[str, list[str]] = {}
    for old, new in GENE_ALIASES.items():
        others.setdefault(old, []).append(new)
        others.setdefault(new, []).append(old)
    return [gene if gene in have else next((o for o in others.get(gene, []) if o in have), gene) for gene in genes]


def _read_csv(path: str | Path, needed: Sequence[str]) -> pa.Table:
    """All columns as text: a well id of digits alone would lose its zeros."""
    with Path(path).open(encoding="utf-8-sig") as file:
        header = [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split(",")]
    missing = [name for name in needed if name not in header]
    if missing:
        raise ValueError(
            f"{path}: columns {', '.join(header)}, expected {', '.join(missing)} too. Download the file again, or "
            "rename its columns."
        )
    types = {name: pa.string() for name in header}
    options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=["", "NaN", "nan"])
    # An enhanced SMILES may hold a line break between its quotes.
    return pa.csv.read_csv(path, convert_options=options, parse_options=pa.csv.ParseOptions(newlines_in_values=True))


def _numbers(table: pa.Table, name: str, path: str | Path) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.float64())
    values: list[float | None] = []
    for row, text in enumerate(table[name].to_pylist()):
        try:
            values.append(None if text is None else float(text))
        except ValueError:
            raise ValueError(f"{path}: {name} is {text!r} in row {row}, expected a number. Correct the file.") from None
    return pa.array(values, pa.float64())


def _plates(experiments: Sequence[str], plates: Sequence[str]) -> pa.Array:
    return pa.array([f"{experiment}_{plate}" for experiment, plate in zip(experiments, plates, strict=True)])


def _wells_of_sites(table: pa.Table, path: str | Path) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows of `read_rxrx1_wells`, and the number of the well that each site is of."""
    first: dict[str, int] = {}
    of_well = np.asarray([first.setdefault(well, len(first)) for well in table["well_id"].to_pylist()], np.int64)
    rows = list(zip(*(table[name].to_pylist() for name in RXRX1_FACTS), strict=True))
    said: list[list[dict[str, None]]] = []
    for well, row, number in zip(table["well_id"].to_pylist(), rows, of_well.tolist(), strict=True):
        if number == len(said):
            said.append([{} for _ in RXRX1_FACTS])
        for values, value in zip(said[number], row, strict=True):
            if value is not None and not label_vocabulary().says_nothing(value):
                values.setdefault(value)
        place = said[number][: len(_PLACE)]
        if any(len(values) != 1 for values in place):
            found = " and ".join(" or ".join(values) or "nothing" for values in place)
            raise ValueError(
                f"{path}: well {well} has sites of {found}, expected one {', '.join(_PLACE)}. Correct the file."
            )
    facts = [tuple(next(iter(values)) if len(values) == 1 else "" for values in each) for each in said]
    conflicts = [
        "; ".join(
            f"{name}: {' and '.join(sorted(values))}"
            for name, values in zip(RXRX1_FACTS, each, strict=True)
            if len(values) > 1
        )
        for each in said
    ]
    columns = dict(zip(RXRX1_FACTS, zip(*facts, strict=True), strict=True))
    kinds = [str(each).lower().partition("_")[0] for each in columns["well_type"]]  # negative_control, treatment, ...
    controls = [kind if kind in ("negative", "positive") else "" for kind in kinds]
    guides = ["" if kind == "negative" else name for kind, name in zip(controls, columns["sirna"], strict=True)]
    wells = pa.table(
        {
            "published_well_id": pa.array(list(first), pa.string()),
            "batch": pa.array(columns["experiment"], pa.string()),
            "plate": _plates(columns["experiment"], columns["plate"]),
            "well": pa.array(columns["well"], pa.string()),
            "perturbation": pa.array(columns["sirna"], pa.string()),
            "guide": pa.array(guides, pa.string()),
            "control": pa.array(controls, pa.string()),
            "cell_type": pa.array(columns["cell_type"], pa.string()),
            "split": pa.array(columns["dataset"], pa.string()),
            "n_sites": pa.array(np.bincount(of_well, minlength=len(facts)), pa.int64()),
        }
    )
    if any(conflicts):
        wells = wells.append_column(CONFLICTS, pa.array(conflicts, pa.string()))
    return wells, of_well


def _match(
    ids: Sequence[str], metadata: str | Path, embeddings: str | Path, id_column: str, allow_missing: bool
) -> tuple[list[int], Vectors]:
    """Rows of the metadata that have a vector, and the vectors in their order."""
    place: dict[str, int] = {}
    for row, name in enumerate(ids):
        if place.setdefault(name, row) != row:
            raise ValueError(f"{metadata}: {id_column} {name} is in rows {place[name]} and {row}, expected once.")
    sums: NDArray[np.float64] | None = None
    counts = np.zeros(len(ids), np.int64)
    strangers: list[str] = []
    for names, vectors in _batches(embeddings, id_column):
        if sums is None:
            sums = np.zeros((len(ids), vectors.shape[1]))
        rows = np.asarray([place.get(name, -1) for name in names], np.int64)
        strangers += [name for name, row in zip(names, rows.tolist(), strict=True) if row < 0]
        known = rows >= 0
        _add_rows(sums, rows[known], vectors[known])
        counts += np.bincount(rows[known], minlength=len(ids))
    kept = np.flatnonzero(counts)
    without = [name for name, count in zip(ids, counts.tolist(), strict=True) if not count]
    if sums is None or not len(kept):
        raise ValueError(
            f"{embeddings}: no {id_column} is in {metadata} too ({(strangers or ['no rows'])[0]!r} against "
            f"{(without or ['no rows'])[0]!r}). Give the two files of one release."
        )
    if (without or strangers) and not allow_missing:
        raise ValueError(
            f"{len(without)} rows of {metadata} have no vector in {embeddings} ({', '.join(without[:3]) or '-'}), and "
            f"{len(strangers)} vectors no row ({', '.join(strangers[:3]) or '-'}), expected one for one. Give the two "
            "files of one release, or allow_missing=True to leave them out."
        )
    return kept.tolist(), _means(sums, counts, kept)


def _add_rows(sums: NDArray[np.float64], rows: NDArray[np.int64], vectors: Vectors) -> None:
    """Add each vector to its row, which may occur several times; many times as fast as np.add.at."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    unique, starts = np.unique(rows[order], return_index=True)
    sums[unique] += np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64], kept: NDArray[np.intp]) -> Vectors:
    """Means of some rows, computed in parts: the sums of a large screen already fill the memory."""
    means = np.empty((len(kept), sums.shape[1]), np.float32)
    for start in range(0, len(kept), ROWS_AT_ONCE):
        rows = kept[start : start + ROWS_AT_ONCE]
        means[start : start + ROWS_AT_ONCE] = sums[rows] / counts[rows, None]
    return means


def _batches(path: str | Path, id_column: str) -> Iterator[tuple[list[str], Vectors]]:
    """Ids and vectors of a table of embeddings, some rows at a time."""
    if Path(path).suffix == ".csv":
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types={id_column: pa.string()}))
        schema, parts = table.schema, iter(table.to_batches(max_chunksize=ROWS_AT_ONCE))
    else:
        file = pq.ParquetFile(path)
        schema, parts = file.schema_arrow, file.iter_batches(batch_size=ROWS_AT_ONCE)
    ids = [name for name in (id_column, f"external_{id_column}") if name in schema.names]
    features = sorted((n for n in schema.names if re.fullmatch(r"feature_\d+", n)), key=lambda n: int(n[8:]))
    lists = [
        field.name
        for field in schema
        if (
            pa.types.is_list(field.type)
            or pa.types.is_large_list(field.type)
            or pa.types.is_fixed_size_list(field.type)
        )
        and pa.types.is_floating(field.type.value_type)
    ]
    if not ids or (not features and len(lists) != 1):
        raise ValueError(
            f"{path}: columns {', '.join(schema.names[:8])}, expected {id_column} and feature_0, feature_1, ..., or "
            "one column of lists of numbers. Give the embeddings' file."
        )
    for part in parts:
        names = [str(name) for name in part.column(part.schema.get_field_index(ids[0])).to_pylist()]
        if features:
            columns = [
                part.column(part.schema.get_field_index(name)).to_numpy(zero_copy_only=False) for name in features
            ]
            yield names, np.stack(columns, axis=1).astype(np.float32)
        elif len(names):
            column = part.column(part.schema.get_field_index(lists[0]))
            lengths = set(pc.list_value_length(column).to_pylist())
            if len(lengths) != 1 or None in lengths:
                raise ValueError(f"{path}: {lists[0]} has lists of {lengths} numbers, expected one length for all.")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            yield names, flat.reshape(len(names), -1).astype(np.float32)
