"""Minibatches from a pack in training order, against raw reads of the pack's own files and against three other loaders.

Everybody holds the same 40,000 crops of 5 x 64 x 64 uint16 (1.64 GB), in the same order, uncompressed, the fastest for
each; everybody delivers shuffled (256, 5, 64, 64) uint16 tensors of torch, and has two threads or two worker processes,
or none where that is faster. Each loader lives in a process of its own; a first epoch, not timed, checks that every
crop comes and leaves the files in the page cache. Then the loaders take turns. An epoch is timed from its first
minibatch to its last, so that starting workers counts for nobody.

The raw read is what `dd bs=1M` does: the pack's shard files one after the other into one buffer, which stays in the
processor's cache. The bar is on it. A loader has to put the same bytes into memory, in another order. Two raw reads
side by side, and one of whole files into memory, are shown to judge that by. Their buffers begin at a page, which
doubles their speed.

Last, the latency of browsing: one crop, requested by its id, with the pack in the page cache.

MosaicML Streaming needs an older NumPy than cytolake: it runs in `.venv-peers`, which `make bench-loader` makes.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BAR = 0.5
N_CROPS, SHAPE, MINIBATCH = 40_000, (5, 64, 64), 256
CROP_BYTES = int(np.prod(SHAPE)) * 2
ROUNDS = 5
CHECKOUT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = CHECKOUT / ".venv-peers" / "bin" / "python"
OURS, RAW = "cytolake", "raw read"


def main() -> int:
    if not PEERS_PYTHON.is_file():
        print(f"{PEERS_PYTHON}: no environment with MosaicML Streaming there. Run it as: make bench-loader")
        return 1
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as name:
        folder = Path(name)
        total = write_all(folder)
        shards = [path for path in (folder / "pack").rglob("c/*/0/0/0") if path.is_file()]
        n_bytes = sum(path.stat().st_size for path in shards)
        print(f"{N_CROPS:,} crops, {N_CROPS * CROP_BYTES / 1e6:,.0f} MB of pixels; {n_bytes / 1e6:,.0f} MB in shards")
        raw = {
            RAW: (read_raw, 1),
            f"{RAW}, two side by side": (read_raw, 2),
            f"{RAW}, whole files": (read_whole_files, 1),
        }
        rates: dict[str, list[float]] = {name: [] for name in [*raw, *LOADERS]}
        loaders: dict[str, Loader] = {}
        try:
            for name in LOADERS:
                loaders[name] = Loader(name, folder, total)
            for epoch in range(1, ROUNDS + 1):
                for name, (read, threads) in raw.items():
                    rates[name].append(n_bytes / seconds_of(read, shards, threads) / 1e6)
                for name, loader in loaders.items():
                    rates[name].append(loader.epoch(epoch)["crops_per_s"] * CROP_BYTES / 1e6)
        finally:
            for loader in loaders.values():
                loader.close()
        by_id_ms = milliseconds_by_id(folder / "pack")
    middle = {name: statistics.median(found) for name, found in rates.items()}
    for name in sorted(middle, key=lambda each: -middle[each]):
        low, high = min(rates[name]), max(rates[name])
        per_s = f"{middle[name] * 1e6 / CROP_BYTES:8,.0f} crops/s"
        print(f"{name:32} {per_s}  {middle[name]:7,.0f} MB/s ({low:,.0f} to {high:,.0f})")
    middle_ms, slow_ms = np.percentile(by_id_ms, (50, 99))
    print(f"one crop by id: median {middle_ms:.3f} ms, 99th percentile {slow_ms:.3f} ms of {len(by_id_ms)} random ids")
    figure = middle[OURS] / middle[RAW]
    ahead = [name for name in LOADERS if name != OURS and middle[name] >= middle[OURS]]
    if ahead:
        print(f"ahead of the pack: {', '.join(ahead)}")
    is_ok = figure >= BAR and not ahead
    print(f"loader: figure={figure:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def seconds_of(read: Callable[[list[Path]], None], shards: list[Path], threads: int) -> float:
    """Time to read the files once, shared out among threads."""
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(read, [shards[i::threads] for i in range(threads)]))
        return time.perf_counter() - started


def read_raw(paths: list[Path], buffer_bytes: int = 1 << 20) -> None:
    buffer = mmap.mmap(-1, buffer_bytes)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_whole_files(paths: list[Path]) -> None:
    read_raw(paths, max(path.stat().st_size for path in paths))


def milliseconds_by_id(path: Path, n: int = 500) -> list[float]:
    """Time to read one crop by its id, for n random ids. All are read once before: index sorted, page cache warm."""
    from cytolake.packs import Pack

    pack = Pack.open(path)
    rows = np.random.default_rng(0).choice(pack.n_crops, n, replace=False)
    crop_ids = pack.index.column("crop_id").take(rows).to_pylist()
    for crop_id in crop_ids:
        pack.crop(crop_id)
    found = []
    for crop_id in crop_ids:
        started = time.perf_counter()
        pack.crop(crop_id)
        found.append((time.perf_counter() - started) * 1e3)
    return found


class Loader:
    """One loader in a process of its own, ready when this returns."""

    def __init__(self, name: str, folder: Path, total: int) -> None:
        python = str(PEERS_PYTHON) if "Streaming" in name else sys.executable
        self.name = name
        self._process = subprocess.Popen(
            [python, __file__, name, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        checked = self.epoch(0)
        if (checked["n_crops"], checked["total"]) != (N_CROPS, total):
            raise RuntimeError(
                f"{name}: {checked['n_crops']} crops whose counts sum up to {checked['total']}; expected {N_CROPS} "
                f"and {total}."
            )

    def epoch(self, number: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(number, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith('{"n_crops"'):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.name}: its process ended with {self._process.wait()}; see above.")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def run_loader(name: str, folder: Path) -> None:
    """The process of one loader: an epoch for each number on the standard input, 0 for one that checks."""
    epochs = LOADERS[name](folder)
    for line in sys.stdin:
        number, n_crops, total = int(line), 0, 0
        first = last = 0.0
        for batch in epochs(number):
            last = time.perf_counter()
            if not n_crops:
                first, n_first = last, len(batch)
            n_crops += len(batch)
            if number == 0:
                assert batch.dtype == torch.uint16
                assert tuple(batch.shape[1:]) == SHAPE
                total += int(batch.numpy().sum(dtype=np.int64))
        rate = (n_crops - n_first) / (last - first)
        print(json.dumps({"n_crops": n_crops, "total": total, "crops_per_s": rate}), flush=True)


Epochs = Callable[[int], Iterator[Tensor]]


def cytolake_epochs(folder: Path) -> Epochs:
    """Every order of the crops equally likely, the same for any number of workers."""
    from cytolake.packs import Pack, minibatches, read_ahead

    pack = Pack.open(folder / "pack")

    def epoch(number: int) -> Iterator[Tensor]:
        first = number * pack.n_crops
        parts = minibatches(pack.n_crops, 0, MINIBATCH, first=first, end=first + pack.n_crops)
        rows = (part.rows for part in parts)
        for _, crops in read_ahead(pack.stack, rows, threads=2, depth=2):
            yield torch.from_numpy(crops)

    return epoch


def webdataset_epochs(folder: Path, workers: int) -> Epochs:
    """Tar files in another order each epoch, and a buffer of 1,000 crops; minibatches are made in the workers."""
    import webdataset as wds

    def stack(crops: list[tuple[bytes]]) -> Tensor:
        whole = bytearray().join(crop for (crop,) in crops)
        return torch.frombuffer(whole, dtype=torch.uint16).reshape(-1, *SHAPE)

    tars = sorted(str(path) for path in (folder / "webdataset").glob("*.tar"))
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None)
        .shuffle(1000)
        .to_tuple("bin")
        .batched(MINIBATCH, collation_fn=stack)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda number: iter(loader)


def streaming_epochs(folder: Path, workers: int) -> Epochs:
    """Its default shuffle, py1e."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    def stack(crops: list[dict[str, np.ndarray]]) -> Tensor:
        return torch.from_numpy(np.stack([crop["pixels"] for crop in crops]))

    dataset = StreamingDataset(local=str(folder / "streaming"), shuffle=True, batch_size=MINIBATCH)
    loader = DataLoader(
        dataset, batch_size=MINIBATCH, num_workers=workers, persistent_workers=workers > 0, collate_fn=stack
    )
    return lambda number: iter(loader)


def ray_epochs(folder: Path) -> Epochs:
    """Files in another order each epoch, and a buffer of 1,000 crops."""
    import ray
    import ray.data

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=2 * 10**9)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def epoch(number: int) -> Iterator[Tensor]:
        dataset = ray.data.read_parquet(str(folder / "parquet"), shuffle="files")
        for batch in dataset.iter_torch_batches(
            batch_size=MINIBATCH, prefetch_batches=2, local_shuffle_buffer_size=1000, local_shuffle_seed=number
        ):
            yield batch["pixels"]

    return epoch


LOADERS: dict[str, Callable[[Path], Epochs]] = {
    OURS: cytolake_epochs,
    "WebDataset, in the process": lambda folder: webdataset_epochs(folder, 0),
    "WebDataset, 2 workers": lambda folder: webdataset_epochs(folder, 2),
    "MosaicML Streaming, in process": lambda folder: streaming_epochs(folder, 0),
    "MosaicML Streaming, 2 workers": lambda folder: streaming_epochs(folder, 2),
    "Ray Data from Parquet": ray_epochs,
}


def write_all(folder: Path) -> int:
    """The same crops in every layout; returns the sum of all their counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import webdataset as wds
    from ray.data.extensions import ArrowTensorArray

    from cytolake.packs.checksums import write_checksums
    from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE
    from cytolake.packs.shards import create_array, write_shard

    pack = folder / "pack"
    for name in ("pack", "webdataset", "parquet"):
        (folder / name).mkdir()
    per_shard = 64_000_000 // CROP_BYTES  # what PackConfig gives
    create_array(pack, (N_CROPS, *SHAPE), "uint16", per_shard)
    total, written = 0, []
    with wds.ShardWriter(str(folder / "webdataset" / "%05d.tar"), maxsize=10**8, verbose=0) as tars:
        for number, crops in enumerate(simulated(per_shard)):
            total += int(crops.sum(dtype=np.int64))
            written.append(write_shard(pack, SHAPE[0], number, crops))
            pixels = pa.table({"pixels": ArrowTensorArray.from_numpy(crops)})
            pq.write_table(
                pixels, folder / "parquet" / f"{number:05d}.parquet", compression="none", use_dictionary=False
            )
            for i, crop in enumerate(crops, number * per_shard):
                tars.write({"__key__": f"{i:08d}", "bin": crop.tobytes()})
    names = pa.array([f"{i:032x}" for i in range(N_CROPS)])
    stains = pa.array([["DNA", "ER", "RNA", "AGP", "Mito"]] * N_CROPS)
    columns = [names, names, names, pa.array([SHAPE[0]] * N_CROPS), pa.array(range(N_CROPS)), stains]
    pq.write_table(pa.table(columns, INDEX_SCHEMA.names).cast(INDEX_SCHEMA), pack / INDEX_FILE)
    described = {"format": FORMAT, "pack_id": "bench", "curation_id": "bench", "table_versions": {}}
    (pack / PACK_FILE).write_text(json.dumps(described | {"crop_size": SHAPE[1], "n_crops": N_CROPS}))
    write_checksums(pack, written)
    subprocess.run([PEERS_PYTHON, __file__, "write streaming", folder], check=True)
    return total


def simulated(at_once: int) -> Iterator[np.ndarray]:
    """Round cells under shot noise and an offset, as a camera counts them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    cell = np.exp(-((y - 31.5) ** 2 + (x - 31.5) ** 2) / 300)
    for first in range(0, N_CROPS, at_once):
        n = min(at_once, N_CROPS - first)
        expected = cell * rng.uniform(300, 1500, (n, SHAPE[0], 1, 1)) + 200
        noise = rng.standard_normal(expected.shape, np.float32) * np.sqrt(expected)  # Poisson's, but for its skew
        yield np.rint(expected + noise).clip(0, 65535).astype(np.uint16)


def write_streaming(folder: Path) -> None:
    """Copy the pack's crops, read by Zarr itself, into MosaicML's own files."""
    import zarr
    from streaming import MDSWriter

    array = zarr.open_array(str(folder / "pack" / "crops_c5.zarr"), mode="r")
    shape = ",".join(map(str, SHAPE))
    with MDSWriter(out=str(folder / "streaming"), columns={"pixels": f"ndarray:uint16:{shape}"}) as out:
        for first in range(0, N_CROPS, array.shards[0]):
            for crop in array[first : first + array.shards[0]]:
                out.write({"pixels": crop})


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.argv[1] == "write streaming":
        write_streaming(Path(sys.argv[2]))
    else:
        run_loader(sys.argv[1], Path(sys.argv[2]))
