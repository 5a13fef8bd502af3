"""Embeds every crop of a pack: one pass over the pixels yields every block and pooling of every encoder.

Ray Data hands row numbers of the pack to actors that hold the encoders; the driver writes bounded appends to the
`embeddings` table. Rows of `representations` come last: a representation that is there is whole.

Shapes: B crops, R representations of one width of one encoder, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id, representation_id
from cytolake.catalog.representations import PIXEL_STATISTICS, VectorReader, stored_representation
from cytolake.embed.cell_count import append_cell_counts
from cytolake.embed.crop_vectors import EmbedCrops, VectorGroup, column_name, groups_of
from cytolake.embed.pixel_statistics import MODEL as PIXEL_STATISTICS_MODEL
from cytolake.embed.pixel_statistics import VARIANTS, PixelStatistics
from cytolake.embed.well_sums import append_profiles
from cytolake.models import Encoder, load_encoder, model_id
from cytolake.models.encoder import CHANNEL_MEAN, has_channel_mean
from cytolake.models.precision import PRECISIONS, EncoderPrecision
from cytolake.packs.pack import Pack

Progress = Callable[[str, int, int], None]
ENCODER_KINDS = ("trained", "untrained")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How the pass over the pack is distributed."""

    minibatch_size: int = 64
    """Crops in one forward pass; changes memory and speed, not the vectors."""
    actors: int = 2
    """Processes that hold the encoders."""
    cpus_per_actor: float = 1.0
    """Logical CPUs, and threads of torch, of each."""
    gpus_per_actor: float = 0.0
    """Logical GPUs of each; above 0 the encoders run on CUDA."""
    megabytes_per_append: int = 128
    """Vectors of one commit, MB: what the driver holds in memory at once, and about the size of the files."""
    precision: EncoderPrecision = "fp32"
    """Of the encoders' matrix products. `bf16` is for GPUs; a representation keeps its id, for the vectors differ by
    rounding alone."""
    channel_mean: bool = False
    """Also write `channel_mean` where it is defined (see `has_channel_mean`), as many times wider than the other
    poolings as a crop has channels. It comes from the same pass, or from one of its own where the others are there. It
    is for benchmarks and exports: serving gives the other two."""

    def __post_init__(self) -> None:
        for name in ("minibatch_size", "actors", "megabytes_per_append"):
            if getattr(self, name) < 1:
                raise ValueError(f"embed.{name} is {getattr(self, name)}, expected 1 or more.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"embed.precision is {self.precision!r}, expected {' or '.join(PRECISIONS)}.")
        if self.cpus_per_actor <= 0:
            raise ValueError(f"embed.cpus_per_actor is {self.cpus_per_actor}, expected more than 0.")
        if self.gpus_per_actor < 0:
            raise ValueError(f"embed.gpus_per_actor is {self.gpus_per_actor}, expected 0 or more.")


@dataclass(frozen=True, slots=True)
class _Source:
    """Representations of one width of one encoder (or the pixel statistics), and what is still to be written."""

    kind: str
    checkpoint: str
    rows: list[dict[str, Any]]
    """Its rows for `representations`, in the order of the vectors that an actor returns."""
    todo: NDArray[np.int64]
    """Rows of the pack without vectors yet."""
    group: VectorGroup
    """Its poolings and blocks, or the variant of the pixel statistics."""

    @property
    def dim(self) -> int:
        return int(self.rows[0]["dim"])

    @property
    def column(self) -> str:
        """Its vectors in what an actor returns."""
        return column_name(self.kind, self.group)


def embed_pack(
    catalog: Catalog,
    pack: Pack,
    checkpoints: Mapping[str, str | Path],
    config: EmbedConfig,
    progress: Progress | None = None,
    *,
    run_id: str = "",
) -> list[dict[str, Any]]:
    """Write embeddings, well profiles and representations of a pack.

    What is there already is not computed again; after a crash the crops that were not committed are done.

    Args:
        catalog: Where the rows go.
        pack: The pixels.
        checkpoints: `trained` and `untrained`, each a file of `save_encoder`. Pixel statistics are always added, and
            cell counts where quality control has counted objects.
        config: How the work is spread.
        progress: Called with the crops done and to do.
        run_id: MLflow run that trained the encoder.

    Returns:
        Rows of the `representations` table: every block and pooling of each checkpoint, the pixel statistics and the
        cell counts.
        A pooling that this pack does not have with an encoder has no rows.

    Raises:
        CheckpointError: A checkpoint that cannot be used.
        ValueError: Kinds other than `trained` and `untrained`, both with the same weights, or crops whose channels or
            size an encoder does not take.
    """
    sources = list(_sources(catalog, pack, checkpoints, run_id, channel_mean=config.channel_mean))
    todo = np.unique(np.concatenate([source.todo for source in sources]))
    if len(todo):
        _embed(catalog, pack, [source for source in sources if len(source.todo)], todo, config, progress)
    elif progress is not None:
        progress("crops", pack.n_crops, pack.n_crops)
    for source in sources:
        ids = [row["representation_id"] for row in source.rows]
        append_profiles(catalog, ids)
        new = pa.Table.from_pylist(source.rows, schema=catalog.table("representations", where="false").schema)
        catalog.append("representations", new, transaction=f"representations/{content_id(*ids)}")
    counted = append_cell_counts(catalog, pack)
    return [row for source in sources for row in source.rows] + ([counted] if counted else [])


def _sources(
    catalog: Catalog,
    pack: Pack,
    checkpoints: Mapping[str, str | Path],
    run_id: str,
    *,
    channel_mean: bool = False,
) -> Iterator[_Source]:
    if set(checkpoints) - set(ENCODER_KINDS) or "trained" not in checkpoints:
        raise ValueError(
            f"checkpoints for {', '.join(sorted(checkpoints)) or 'nothing'}, expected `trained`, and `untrained` for "
            "its twin before training."
        )
    channel_sets = _channel_sets(pack)
    seen: dict[str, str] = {}
    for kind, checkpoint in checkpoints.items():
        encoder = load_encoder(checkpoint)
        _check_fits(encoder, checkpoint, pack, channel_sets)
        identity = model_id(encoder)
        if identity in seen:
            raise ValueError(
                f"the {kind} and the {seen[identity]} checkpoint hold the same weights ({checkpoint}). Give the "
                "encoder after training and the one before it."
            )
        seen[identity] = kind
        of_encoder = {
            "kind": kind,
            "model_id": identity,
            "architecture": encoder.config.architecture,
            "checkpoint": str(Path(checkpoint).resolve()),
            "run_id": run_id if kind == "trained" else "",
        }
        with_channels = channel_mean and has_channel_mean(encoder.config, channel_sets)
        for group in groups_of(encoder, channel_mean=with_channels):
            dim = encoder.config.block_widths[group.blocks[0]]
            if CHANNEL_MEAN in group.poolings:
                dim *= len(channel_sets[0])
            yield _source(catalog, pack, {**of_encoder, "dim": dim}, group)
    statistics = PixelStatistics(channel_sets)
    for variant in VARIANTS:
        shared = {
            "kind": PIXEL_STATISTICS,
            "model_id": content_id(PIXEL_STATISTICS_MODEL),
            "architecture": PIXEL_STATISTICS,
            "dim": statistics.variant_dim(variant),
            "checkpoint": "",
            "run_id": "",
        }
        yield _source(catalog, pack, shared, VectorGroup((variant,), (-1,)))


def _source(catalog: Catalog, pack: Pack, shared: dict[str, Any], group: VectorGroup) -> _Source:
    rows = [
        {
            "representation_id": representation_id(shared["model_id"], block, pooling, pack.pack_id),
            **shared,
            "block": block,
            "pooling": pooling,
            "pack_id": pack.pack_id,
            "curation_id": pack.curation_id,
            "created_at": datetime.now(UTC),
        }
        for pooling, block in group.places
    ]
    # An append holds all representations of a source, so the crops of one are the crops of all.
    first = rows[0]["representation_id"]
    known = stored_representation(catalog, first)
    if known and known["kind"] != shared["kind"]:
        raise ValueError(
            f"{shared['checkpoint']}: given as the {shared['kind']} encoder, but the catalog has its weights as the "
            f"{known['kind']} one. Training changed nothing, or the checkpoints are exchanged: check the run's loss "
            "curve."
        )
    if known:
        return _Source(shared["kind"], shared["checkpoint"], rows, np.empty(0, dtype=np.int64), group)
    done = VectorReader(catalog).columns(first, ["crop_id"])["crop_id"]
    is_done = pc.is_in(pack.index["crop_id"], value_set=done.combine_chunks())
    todo = np.flatnonzero(~np.asarray(is_done.to_numpy(zero_copy_only=False), dtype=bool))
    return _Source(shared["kind"], shared["checkpoint"], rows, todo.astype(np.int64), group)


def _channel_sets(pack: Pack) -> list[tuple[str, ...]]:
    return sorted({tuple(channels) for channels in pack.index["channels"].to_pylist()})


def _check_fits(encoder: Encoder, checkpoint: str | Path, pack: Pack, channel_sets: Sequence[tuple[str, ...]]) -> None:
    if encoder.config.crop_size != pack.crop_size:
        raise ValueError(
            f"{checkpoint}: the encoder takes crops of {encoder.config.crop_size} px, pack {pack.pack_id} holds crops "
            f"of {pack.crop_size} px. Embed the pack it was trained on, or one of the same crop size."
        )
    for channels in channel_sets:
        encoder.config.channel_indices(channels)  # says which stains it wants


def _embed(
    catalog: Catalog,
    pack: Pack,
    sources: Sequence[_Source],
    todo: NDArray[np.int64],
    config: EmbedConfig,
    progress: Progress | None,
) -> None:
    import ray.data

    bytes_per_crop = sum(4 * source.dim * len(source.rows) for source in sources)
    crops_per_append = max(1, config.megabytes_per_append * 1_000_000 // bytes_per_crop)
    minibatch_size = min(config.minibatch_size, len(todo))
    n_actors = max(1, min(config.actors, len(todo) // minibatch_size))
    with _in_order():
        embedded = ray.data.from_arrow(
            [pa.table({"row": part}) for part in np.array_split(todo, max(1, len(todo) // minibatch_size))]
        ).map_batches(
            EmbedCrops,
            fn_constructor_kwargs=_actor_arguments(pack, sources, config),
            batch_size=minibatch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=n_actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor or None,
        )
        waiting: list[pa.Table] = []
        n_waiting, n_done = 0, 0
        batches: Iterable[Any] = embedded.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            waiting.append(batch)
            n_waiting += batch.num_rows
            n_done += batch.num_rows
            if n_waiting >= crops_per_append or n_done == len(todo):
                _append(catalog, pack, sources, pa.concat_tables(waiting))
                waiting, n_waiting = [], 0
            if progress is not None:
                progress("crops", pack.n_crops - len(todo) + n_done, pack.n_crops)
    if n_done != len(todo):
        raise RuntimeError(f"pack {pack.pack_id}: {n_done} of {len(todo)} crops came back embedded. Run the job again.")


def _actor_arguments(pack: Pack, sources: Sequence[_Source], config: EmbedConfig) -> dict[str, Any]:
    """Of `EmbedCrops`."""
    with_statistics = any(source.kind == PIXEL_STATISTICS for source in sources)
    return {
        "pack_path": str(pack.path),
        "checkpoints": {source.kind: source.checkpoint for source in sources if source.checkpoint},
        "groups": {kind: [source.group for source in sources if source.kind == kind] for kind in ENCODER_KINDS},
        "statistics": PixelStatistics(_channel_sets(pack)) if with_statistics else None,
        "threads": max(1, round(config.cpus_per_actor)),
        "cuda": config.gpus_per_actor > 0,
        "precision": config.precision,
    }


def _append(catalog: Catalog, pack: Pack, sources: Sequence[_Source], batch: pa.Table) -> None:
    """One commit for each encoder: every representation of the batch's crops."""
    schema = catalog.table("embeddings", where="false").schema
    for source in sources:
        wanted = batch.filter(pc.is_in(batch["row"], value_set=pa.array(source.todo)))
        if wanted.num_rows == 0:
            continue
        crops = pack.index.take(wanted["row"]).select(["crop_id", "well_id", "plate_id"])
        vectors_BRD = _matrix(wanted[source.column]).reshape(wanted.num_rows, len(source.rows), source.dim)
        offsets = pa.array(np.arange(wanted.num_rows + 1, dtype=np.int32) * source.dim)
        tables = []
        for place, row in enumerate(source.rows):
            vectors = pa.ListArray.from_arrays(offsets, pa.array(vectors_BRD[:, place].ravel()))
            ids = pa.repeat(row["representation_id"], wanted.num_rows)
            columns = {"representation_id": ids, "embedding": vectors, **{c: crops[c] for c in crops.column_names}}
            tables.append(pa.table(columns).select(schema.names).cast(schema))
        crop_ids = crops["crop_id"].to_pylist()
        transaction = content_id(*(row["representation_id"] for row in source.rows), "|", *crop_ids)
        catalog.append("embeddings", pa.concat_tables(tables), transaction=f"embeddings/{transaction}")


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(B, R * D) of a fixed-size-list column."""
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])


@contextmanager
def _in_order() -> Iterator[None]:
    """Ray Data returns rows in the order they went in, so that a repeated job makes the same appends."""
    import ray.data

    options = ray.data.DataContext.get_current().execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before
