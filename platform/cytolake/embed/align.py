"""Aligns a representation on its negative controls and writes the result as a representation of its own.

Tasks of Ray (or here, to the same result) count parts of the stored rows into statistics of the controls. These are
merged in order, and the fit is stored once below the catalog's root. Tasks again apply it to parts and append
their rows. The row of `representations` comes last: an aligned representation that is there is whole. Memory follows
the number of plates or batches, not the number of rows.

Shapes: N rows, D features in, K features out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.ids import representation_id as id_of_place
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.representations import (
    ALIGNED,
    TABLES,
    Level,
    VectorReader,
    find_representation,
    no_vectors,
    stored_representation,
    vectors_column,
    vectors_of,
)
from cytolake.embed.alignment.control_statistics import ControlStatistics
from cytolake.embed.alignment.fit import fit_alignment, fit_from_statistics
from cytolake.embed.alignment.fitted import FittedAlignment
from cytolake.embed.alignment.stored import (
    cache_alignment,
    cached_alignment,
    load_alignment,
    save_alignment,
)
from cytolake.embed.alignment.variants import ROBUST, AlignmentConfig
from cytolake.embed.alignment.well_facts import AlignBy, WellFacts, read_well_facts
from cytolake.embed.well_sums import (
    BYTES_FOR_TASKS,
    MOST_PARTS,
    append_group_profiles,
    append_profiles,
)
from cytolake.statistics.threads import limited_threads

Progress = Callable[[str, int, int], None]
Chunk = tuple[NDArray[np.float32], NDArray[np.object_], NDArray[np.bool_]]
"""(N, D) vectors, and of each row its plate or batch and whether it is a negative control."""

STATISTICS_BYTES = 8_000_000_000
"""Most bytes of statistics of all controls, in all parts together; fitting takes about twice as much again."""
CHUNK_BYTES = 128_000_000
"""Bytes of vectors that are added to the statistics at once: each addition copies the covariances of every plate."""
APPEND_BYTES = 128_000_000
"""Bytes of vectors in one commit. A commit is named after its rows: with another number here, a run that an older
cytolake left unfinished would write rows twice. It is refused then."""


@dataclass(frozen=True, slots=True)
class PlannedCommit:
    """Row groups whose aligned rows are one commit."""

    groups: tuple[tuple[str, int], ...]
    """Path of a file in its table, and the number of a row group there. Files of a table never change."""

    def transaction(self, table: str, representation_id: str) -> str:
        """Name of the commit."""
        return f"{table}/{representation_id}/{content_id(*(part for group in self.groups for part in group))}"


def align_representation(
    catalog: Catalog,
    representation_id: str,
    config: AlignmentConfig,
    *,
    level: Level,
    align_by: AlignBy = "plate",
    progress: Progress | None = None,
) -> str:
    """Write a representation of kind `aligned`: the vectors of another, aligned on its negative controls.

    The same again changes nothing, and a run that was killed goes on where it was: each row is there once.

    Args:
        catalog: Where the rows are and go, with a folder; not pinned.
        representation_id: What is aligned. It may have been aligned before, such as plate by plate before `sphering`.
        config: How. Statistics of `robustize` and `mad_robustize` do not add up: those fit wells alone, in memory.
        level: `crop` is fitted on crops, and writes their vectors and the means of wells. `well` is fitted on the means
            of wells, and writes these alone; it is what benchmarks of profiles do.
        align_by: Whose controls a vector is aligned on. A well without a batch counts as of a batch named as its plate.
        progress: Called with the parts fitted and aligned, and those to do.

    Returns:
        Id of the aligned representation.

    Raises:
        ValueError: The variant `none`, or one that does not fit the level; a representation that is not there or has no
            rows at this level; a plate or batch with too few controls; more plates or batches than fit into memory;
            aligned vectors that are not finite; a well that is not in `wells`.
        RuntimeError: Rows of the aligned representation that no run of this version wrote.
    """
    _check_request(catalog, config, level)
    representation_id = find_representation(catalog, representation_id)["representation_id"]
    append_group_profiles(catalog, [representation_id])
    source = catalog.snapshot()
    parent = find_representation(source, representation_id)
    facts = _facts_of(source, representation_id, align_by)
    # What the fit depends on: rows of a representation do not change, what is known of wells may.
    of_wells = (f"{well} {is_control} {group}" for well, (group, is_control) in sorted(facts.items()))
    request = content_id("alignment", representation_id, level, align_by, repr(asdict(config)), *of_wells)
    alignment_id = cached_alignment(catalog.root, request)
    if alignment_id is None:
        fitted = fit_representation(
            source, representation_id, config, level=level, align_by=align_by, progress=progress
        )
        alignment_id = save_alignment(catalog.root, fitted)
        cache_alignment(catalog.root, request, alignment_id)
    # A model id of its own: the blocks of the encoder's model id are those that serving can give.
    # Groups of labelled objects are rows that the same fit did not have before.
    rows_of = (request,) if source.dataset("objects").count_rows() else ()
    model_id = content_id(ALIGNED, parent["model_id"], alignment_id, level, *rows_of)
    identity = id_of_place(model_id, parent["block"], parent["pooling"], parent["pack_id"])
    if stored_representation(catalog, identity):
        return identity
    fitted = load_alignment(catalog.root, alignment_id)
    _write_rows(catalog, source, parent, identity, fitted, level, align_by, progress)
    if level == "crop":
        append_profiles(catalog, [identity])
    row = parent | {
        "representation_id": identity,
        "kind": ALIGNED,
        "model_id": model_id,
        "dim": fitted.n_out,
        "checkpoint": "",
        "created_at": datetime.now(UTC),
        "parent_id": representation_id,
        "alignment_id": alignment_id,
        "alignment_variant": ", ".join(filter(None, (parent["alignment_variant"], config.variant))),
    }
    new = table_contract("representations").rows([row])
    catalog.append("representations", new, transaction=f"representations/{identity}")
    return identity


def fit_representation(
    catalog: Catalog,
    representation_id: str,
    config: AlignmentConfig,
    *,
    level: Level,
    align_by: AlignBy = "plate",
    progress: Progress | None = None,
) -> FittedAlignment:
    """Fit an alignment on the stored rows of a representation, as `fit_alignment` does on all of them.

    Args and Raises: as `align_representation`.
    """
    _check_robust(config, level)
    catalog = catalog.snapshot()
    representation = find_representation(catalog, representation_id)
    representation_id = representation["representation_id"]
    if not VectorReader(catalog, level).count(representation_id):
        raise no_vectors(representation, level)
    dim = int(representation["dim"])
    if config.variant in ROBUST:
        return _fit_in_memory(catalog, representation_id, dim, config, align_by)
    n_parts = _parts_to_fit(catalog, representation_id, dim, config, level, align_by)
    tasks = ((catalog, representation_id, dim, config, level, align_by, part, n_parts) for part in range(n_parts))
    parts = run_tasks(statistics_of_part, tasks, n_parts, "parts fitted", progress)
    return fit_from_statistics(reduce(ControlStatistics.merge, parts), config)


def statistics_of_part(
    catalog: Catalog,
    representation_id: str,
    dim: int,
    config: AlignmentConfig,
    level: Level,
    align_by: AlignBy,
    part: int,
    n_parts: int,
) -> ControlStatistics:
    """Statistics of every `n_parts`-th row group, from the row group `part`; one task."""
    facts = read_well_facts(catalog, align_by)
    rows = VectorReader(catalog, level).rows(representation_id, part, n_parts)
    statistics = ControlStatistics.for_config(config, dim)
    waiting: list[Chunk] = []
    n_waiting = 0
    with limited_threads():  # other tasks have the other CPUs; and sums round the same with Ray and without
        for chunk in (_chunk(each, representation_id, dim, facts) for each in rows):
            waiting.append(chunk)
            n_waiting += len(chunk[0])
            if 4 * n_waiting * dim >= CHUNK_BYTES:
                statistics.add(*_joined(waiting))
                waiting, n_waiting = [], 0
        if waiting:
            statistics.add(*_joined(waiting))
    return statistics


def append_aligned(
    catalog: Catalog,
    source: Catalog,
    representation_id: str,
    dim: int,
    identity: str,
    alignment_id: str,
    level: Level,
    align_by: AlignBy,
    commits: Sequence[PlannedCommit],
) -> None:
    """Append the aligned rows of some planned commits; one task.

    Args:
        catalog: Where the rows go.
        source: Where they are, pinned.
        representation_id: What is aligned.
        dim: D.
        identity: Of the aligned representation.
        level: Of the rows.
        align_by: As it was fitted.
        commits: Of the pinned table.
    """
    table, vector, _ = TABLES[level]
    contract = table_contract(table)
    fitted = load_alignment(catalog.root, alignment_id)
    facts = read_well_facts(source, align_by)
    reader = VectorReader(source, level)
    files = {str(file.path): file for file in reader.files(representation_id)}
    with limited_threads():
        for planned in commits:
            groups = (files[path].subset(row_group_ids=[number]) for path, number in planned.groups)
            tables = []
            for rows in reader.rows_of_groups(representation_id, groups):
                vectors_ND, group_N, _ = _chunk(rows, representation_id, dim, facts)
                aligned_NK = _as_float32(fitted.apply(vectors_ND, group_N), rows, identity)
                changed = {
                    "representation_id": pa.repeat(identity, rows.num_rows),
                    vector: vectors_column(aligned_NK),
                }
                tables.append(pa.table({name: changed.get(name, rows[name]) for name in contract.schema.names}))
            catalog.append(table, pa.concat_tables(tables), transaction=planned.transaction(table, identity))


def planned_commits(reader: VectorReader, representation_id: str, dim: int) -> Iterator[PlannedCommit]:
    """All row groups of a representation, in order, as many in each commit as fit.

    Args:
        reader: Of a pinned catalog.
        representation_id: Whose rows.
        dim: The greater of D and K.
    """
    groups: list[tuple[str, int]] = []
    n_bytes = 0
    for file in reader.files(representation_id):
        for group in file.row_groups:
            if groups and n_bytes + 4 * dim * group.num_rows > APPEND_BYTES:
                yield PlannedCommit(tuple(groups))
                groups, n_bytes = [], 0
            groups.append((str(file.path), int(group.id)))
            n_bytes += 4 * dim * group.num_rows
    if groups:
        yield PlannedCommit(tuple(groups))


def _write_rows(
    catalog: Catalog,
    source: Catalog,
    parent: Mapping[str, Any],
    identity: str,
    fitted: FittedAlignment,
    level: Level,
    align_by: AlignBy,
    progress: Progress | None,
) -> None:
    """Write all rows of the aligned representation that are not there yet."""
    reader = VectorReader(source, level)
    table = reader.table
    wanted = reader.count(parent["representation_id"])
    dim = int(parent["dim"])
    widest = max(dim, fitted.n_out)
    commits = list(planned_commits(reader, parent["representation_id"], widest))
    done = catalog.committed(table, [planned.transaction(table, identity) for planned in commits])
    todo = [planned for planned in commits if planned.transaction(table, identity) not in done]
    n_parts = max(1, min(MOST_PARTS, len(todo), 4 * widest * wanted // BYTES_FOR_TASKS))
    about = (catalog, source, parent["representation_id"], dim, identity, fitted.id, level, align_by)
    tasks = ((*about, todo[part::n_parts]) for part in range(n_parts) if todo)
    run_tasks(append_aligned, tasks, n_parts if todo else 0, "parts aligned", progress)
    written = VectorReader(catalog, level).count(identity)
    if written != wanted:
        raise RuntimeError(
            f"representation {identity}: {written} rows in the table {table}, expected {wanted} as of its parent "
            f"{parent['representation_id']}. Another version of cytolake, or another program, wrote rows of it. "
            "It is not visible: align with that version, or under another root."
        )


def _check_request(catalog: Catalog, config: AlignmentConfig, level: Level) -> None:
    """Refuse what can be refused without reading rows."""
    if catalog.pinned is not None:
        raise ValueError(f"{catalog!r}: pinned to old versions, so nothing can be written. Give `open(root)`.")
    if config.variant == "none":
        raise ValueError("alignment.variant none changes nothing: take the representation itself, or another variant.")
    _check_robust(config, level)


def _check_robust(config: AlignmentConfig, level: Level) -> None:
    if config.variant in ROBUST and level == "crop":
        raise ValueError(
            f"alignment.variant {config.variant} takes medians, which need all control crops in memory at once. Align "
            "at the level of wells, or use centre_scale, whose statistics add up."
        )


def _parts_to_fit(
    catalog: Catalog, representation_id: str, dim: int, config: AlignmentConfig, level: Level, align_by: AlignBy
) -> int:
    """As many parts as are worth a task, while their statistics fit into memory.

    Raises:
        ValueError: One part's do not.
    """
    facts = _facts_of(catalog, representation_id, align_by)
    names = ["well_id", "n_crops"]
    stored = VectorReader(catalog, "well").columns(representation_id, names)
    counts: dict[tuple[str, bool], int] = {}
    for well, n_crops in zip(*(stored[name].to_pylist() for name in names), strict=True):
        if well in facts:  # else of labelled objects that were labelled otherwise since
            counts[facts[well]] = counts.get(facts[well], 0) + (int(n_crops) if level == "crop" else 1)
    statistics = ControlStatistics.for_config(config, dim)
    # Mean and spread, and rows of a root of the scatter, at most 2 D of them.
    kept = [n for (_, is_control), n in counts.items() if is_control or statistics.keep_other_wells]
    n_bytes = sum(8 * dim * (2 + (min(n, 2 * dim) if statistics.full else 0)) for n in kept)
    if n_bytes > STATISTICS_BYTES:
        n_groups = len({group for group, _ in counts})
        raise ValueError(
            f"representation {representation_id}: {config.variant} by {align_by} takes {n_bytes / 1e9:,.0f} GB of "
            f"statistics ({n_groups:,} {align_by} groups, {dim} features), expected at most "
            f"{STATISTICS_BYTES / 1e9:,.0f} GB. Align at the level of wells, by batch, or with centre_scale."
        )
    vectors_bytes = 4 * dim * sum(counts.values())
    return max(1, min(MOST_PARTS, vectors_bytes // BYTES_FOR_TASKS, STATISTICS_BYTES // max(1, n_bytes)))


def _fit_in_memory(
    catalog: Catalog, representation_id: str, dim: int, config: AlignmentConfig, align_by: AlignBy
) -> FittedAlignment:
    """Fit on the means of all wells, in the order of their ids."""
    facts = read_well_facts(catalog, align_by)
    stored = pa.concat_tables(VectorReader(catalog, "well").rows(representation_id)).sort_by("well_id")
    return fit_alignment(*_chunk(stored, representation_id, dim, facts), config)


def _facts_of(catalog: Catalog, representation_id: str, align_by: AlignBy) -> dict[str, tuple[str, bool]]:
    """Plate or batch and control flag of a representation's wells and groups of labelled objects."""
    stored = VectorReader(catalog, "well").columns(representation_id, ["well_id", "plate_id"])
    if not stored.num_rows:
        raise no_vectors(find_representation(catalog, representation_id), "well")
    wells = stored["well_id"].to_pylist()
    facts = read_well_facts(catalog, align_by)
    facts.check_known(wells, stored["plate_id"].to_pylist(), representation_id)
    return facts.of_wells(wells)


def _chunk(rows: pa.Table, representation_id: str, dim: int, facts: WellFacts) -> Chunk:
    groups_N, is_control_N = facts.of_rows(rows, representation_id)
    return vectors_of(rows, representation_id, dim), groups_N, is_control_N


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    vectors, groups, is_control = zip(*chunks, strict=True)
    return np.concatenate(vectors), np.concatenate(groups), np.concatenate(is_control)


def _as_float32(aligned_NK: NDArray[np.float64], rows: pa.Table, identity: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values_NK = aligned_NK.astype(np.float32)
    if not np.isfinite(values_NK).all():
        bad = np.flatnonzero(~np.isfinite(values_NK).all(axis=1))
        some = ", ".join(rows["well_id"].take(bad[:3]).to_pylist())
        raise ValueError(
            f"representation {identity}: {len(bad)} aligned vectors are not finite or too large for float32, such as "
            f"those of wells {some}. Some features hardly vary among the controls: leave these out, use more controls, "
            "or take centre."
        )
    return values_NK
