"""Embedding a pack, all blocks and poolings and the whole path, against a bare forward pass of the same crops.

Ours is `embed_pack`: from the start of the actors and the pack on disk, over the mean and cls tokens of all 12 blocks
and the pixel statistics, to the Delta commits of embeddings, profiles and representations. The bare pass is the same
encoder on minibatches that are already float32 tensors in memory, and keeps the final block alone. Both have as many
threads as the machine has CPUs: ours as actors of one thread each, the bare pass in one process. Ray runs before the
clock starts, as it does for a job that is submitted to a cluster.

The two take turns, each of ours into a catalog of its own; the figure is the median ratio of crops per second. The
final block's vectors are compared each time. What passes before the first crops are back, most of it the start of the
actors, is shown: it is the same for any number of crops.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from inputs.simulated_pack import STAINS, write_pack
from numpy.typing import NDArray

import cytolake.catalog
from cytolake.embed.extract import EmbedConfig, embed_pack
from cytolake.models import CropBatch, ModelConfig, VisionTransformer, build_encoder, collate, save_encoder
from cytolake.packs.pack import Pack
from cytolake.pipeline.session import RayConfig, ray_session

BAR = 0.9
N_CROPS, SIZE, MINIBATCH = 1024, 128, 32
ROUNDS = 3
THREADS = os.cpu_count() or 1
MODEL = ModelConfig(
    architecture="chada_vit", channels=STAINS, crop_size=SIZE, patch_size=16, width=384, depth=12, heads=6
)
"""ViT-S/16: 320 tokens of a crop of five stains."""


def bare(encoder: VisionTransformer, batches: Sequence[CropBatch]) -> tuple[NDArray[np.float32], float]:
    """(N, D) mean of the final patch tokens, and seconds."""
    started = time.perf_counter()
    with torch.inference_mode():
        means = [encoder.features(batch)[1] for batch in batches]
    return torch.cat(means).numpy(), time.perf_counter() - started


def whole_path(root: Path, pack: Pack, checkpoint: Path) -> tuple[NDArray[np.float32], float, float]:
    """(N, D) mean of the final block as the table has it, seconds, and seconds until the first crops were back."""
    catalog = cytolake.catalog.open(root, create=True)
    first: list[float] = []
    started = time.perf_counter()

    def note(what: str, done: int, total: int) -> None:
        if done and not first:
            first.append(time.perf_counter() - started)

    config = EmbedConfig(minibatch_size=MINIBATCH, actors=THREADS)
    rows = embed_pack(catalog, pack, {"trained": checkpoint}, config, note)
    seconds = time.perf_counter() - started
    (last,) = [row for row in rows if (row["block"], row["pooling"]) == (MODEL.depth - 1, "mean")]
    of_last = [last["representation_id"]]
    stored = catalog.table("embeddings", where="representation_id = ?", parameters=of_last).sort_by("crop_id")
    return np.asarray(stored["embedding"].to_pylist(), np.float32), seconds, first[0]


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    torch.set_num_threads(THREADS)
    ratios = []
    shown = Table("crops", "bare s", "whole path s", "of it, first crops back after s", "ratio", box=None)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as name, ray_session(RayConfig(cpus=THREADS)):
        folder = Path(name)
        pack = Pack.open(write_pack(folder / "pack", N_CROPS, SIZE))
        encoder = build_encoder(MODEL, 0).eval()
        checkpoint = folder / "encoder.safetensors"
        save_encoder(encoder, checkpoint)
        identities = MODEL.channel_indices(STAINS)
        batches = [
            collate(pack.read(rows), [identities] * len(rows))
            for rows in np.array_split(np.arange(N_CROPS), max(1, N_CROPS // MINIBATCH))
        ]
        bare(encoder, batches[:2])  # warm
        for number in range(ROUNDS):
            expected, bare_s = bare(encoder, batches)
            found, whole_s, first_s = whole_path(folder / f"catalog{number}", pack, checkpoint)
            difference = float(np.abs(found - expected).max())
            if found.shape != expected.shape or difference > 1e-3:
                raise RuntimeError(f"vectors differ by {difference}: the timing would mean nothing")
            ratios.append(bare_s / whole_s)
            shown.add_row(f"{N_CROPS:,}", f"{bare_s:.1f}", f"{whole_s:.1f}", f"{first_s:.1f}", f"{ratios[-1]:.2f}")
    console.print(shown)
    figure = statistics.median(ratios)
    print(
        f"embed: figure={figure:.2f} bar={BAR} crops={N_CROPS} threads={THREADS} {'ok' if figure >= BAR else 'short'}"
    )
    return 0 if figure >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
