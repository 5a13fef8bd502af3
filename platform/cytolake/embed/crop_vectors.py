"""Vectors of crops from one pass of an encoder: every block and pooling at once.

Shapes: B crops of a minibatch, N crops, R representations of one width of one encoder, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog.representations import PIXEL_STATISTICS
from cytolake.embed.pixel_statistics import VARIANTS, PixelStatistics
from cytolake.models import Encoder, load_encoder
from cytolake.models.crops import CropBatch
from cytolake.models.encoder import CHANNEL_MEAN
from cytolake.models.precision import EncoderPrecision, multiply_in
from cytolake.packs.crop_batches import crop_batch
from cytolake.packs.pack import Pack

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class VectorGroup:
    """Vectors of one width of an encoder: poolings, outer, of blocks, inner; -1 is no block."""

    poolings: tuple[str, ...]
    blocks: tuple[int, ...]

    @property
    def places(self) -> list[tuple[str, int]]:
        """Pooling and block of each vector, in the order in which they are returned and stored."""
        return [(pooling, block) for pooling in self.poolings for block in self.blocks]


def groups_of(encoder: Encoder, *, channel_mean: bool = False) -> list[VectorGroup]:
    """Outputs of an encoder, by width: blocks of a vision transformer have one width, stages of a ResNet several."""
    widths = encoder.config.block_widths
    blocks = {width: tuple(block for block, each in enumerate(widths) if each == width) for width in widths}
    groups = [VectorGroup(encoder.config.poolings, each) for each in blocks.values()]
    return groups + ([VectorGroup((CHANNEL_MEAN,), tuple(range(encoder.n_blocks)))] if channel_mean else [])


class EmbedCrops:
    """Embeds rows of a pack in a Ray actor: one long vector for each encoder and width."""

    def __init__(
        self,
        pack_path: str,
        checkpoints: Mapping[str, str],
        statistics: PixelStatistics | None,
        threads: int,
        cuda: bool,
        groups: Mapping[str, Sequence[VectorGroup]] | None = None,
        precision: EncoderPrecision = "fp32",
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        device = torch.device("cuda" if cuda else "cpu")
        self.pack = Pack.open(pack_path)
        self.encoders = {kind: load_encoder(path).to(device) for kind, path in checkpoints.items()}
        self.precision = precision
        self.statistics = statistics
        self.groups = groups or {kind: groups_of(encoder) for kind, encoder in self.encoders.items()}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`row` and, for each encoder and width, all its vectors end to end, in the order of `VectorGroup`."""
        rows = np.asarray(batch["row"].to_numpy(), dtype=np.int64)
        images = self.pack.read(rows)
        channels = [tuple(self.pack.channels(int(row))) for row in rows]
        columns: dict[str, Any] = {"row": batch["row"]}
        for kind, encoder in self.encoders.items():
            groups = self.groups[kind]
            poolings = list(dict.fromkeys(pooling for group in groups for pooling in group.poolings))
            with multiply_in(self.precision, next(encoder.parameters()).device):
                pooled = pooled_vectors(encoder, crop_batch(self.pack, rows, encoder.config, images), poolings)
            for group in groups:
                columns[column_name(kind, group)] = _vectors(_by_place(pooled, group).reshape(len(rows), -1))
        if self.statistics is not None:
            measured = self.statistics.measure(images, channels)
            for variant in VARIANTS:
                form = VectorGroup((variant,), (-1,))
                columns[column_name(PIXEL_STATISTICS, form)] = _vectors(self.statistics.variant(measured, variant))
        return pa.table(columns)


def embed_rows(
    encoder: Encoder,
    pack: Pack,
    rows: NDArray[np.int64],
    pooling: str = "mean",
    change: Callable[[CropBatch, NDArray[np.int64]], CropBatch] | None = None,
) -> list[NDArray[np.float32]]:
    """(N, D) for each block in turn: one pooling of some crops of a pack, in this process.

    Args:
        encoder: On the device to run on.
        rows: (N,) of the pack.
        pooling: `mean`, `cls` or `channel_mean`.
        change: What is done to a minibatch and its rows first, such as an augmentation.
    """
    device = next(encoder.parameters()).device
    parts: list[list[NDArray[np.float32]]] = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[first : first + ROWS_AT_ONCE]
        batch = crop_batch(pack, part, encoder.config).to(device)
        if change is not None:
            batch = change(batch, part)
        parts.append([block.float().cpu().numpy() for block in encoder.pooled_blocks(batch, (pooling,))[pooling]])
    return [np.concatenate(blocks) for blocks in zip(*parts, strict=True)]


def pooled_vectors(encoder: Encoder, batch: CropBatch, poolings: Sequence[str]) -> dict[str, list[NDArray[np.float32]]]:
    """(B, D) of each block in turn, by pooling, from one pass."""
    pooled = encoder.pooled_blocks(batch.to(next(encoder.parameters()).device), poolings)
    return {pooling: [block.float().cpu().numpy() for block in blocks] for pooling, blocks in pooled.items()}


def _by_place(pooled: Mapping[str, Sequence[NDArray[np.float32]]], group: VectorGroup) -> NDArray[np.float32]:
    """(B, R, D)"""
    return np.stack([pooled[pooling][block] for pooling, block in group.places], axis=1)


def column_name(kind: str, group: VectorGroup) -> str:
    return f"{kind} {', '.join(group.poolings)} of {', '.join(map(str, group.blocks))}"


def _vectors(matrix: NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
