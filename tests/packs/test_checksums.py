from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cytolake.packs.pack import Pack, PackError

SHARD = "crops_c2.zarr/c/1/0/0/0"


def test_every_file_of_a_whole_pack_agrees_with_its_checksum(pack_folder):
    pack, calls = Pack.open(pack_folder()), []
    assert pack.verify(lambda what, done, total: calls.append((what, done, total))) == []
    files = [path for path in pack.path.rglob("*") if path.is_file()]
    n = len(files) - 1  # but for the checksums themselves
    assert calls == [("files checked", done, n) for done in range(1, n + 1)]


def test_checksums_are_those_of_sha256sum(pack_folder):
    folder = pack_folder("lz4")
    described = json.loads((folder / "checksums.json").read_text())["files"]
    assert SHARD in described
    assert "crops.parquet" in described
    for name, was in described.items():
        content = (folder / name).read_bytes()
        assert was == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def damage(path: Path, how: str) -> str:
    """Damages the file; returns what is to be said of it."""
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return "is missing"
    if how == "truncate":
        path.write_bytes(content[:-1])
        return f"has {len(content) - 1} bytes, expected {len(content)}"
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    return "has SHA-256"


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_a_damaged_shard_is_found_and_named_with_its_rows(pack_folder, compression, how):
    pack = Pack.open(pack_folder(compression))
    said = damage(pack.path / SHARD, how)
    (problem,) = pack.verify()
    assert problem.startswith(f"{pack.path / SHARD}: {said}")
    assert "rows 16 to 29 of the crops with 2 channels" in problem
    assert "`cytolake curate`" in problem


@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("file", ["crops.parquet", "crops_c3.zarr/zarr.json"])
def test_another_damaged_file_is_found_and_named(pack_folder, file, how):
    pack = Pack.open(pack_folder())
    said = damage(pack.path / file, how)
    problems = pack.verify()
    assert len(problems) == 1
    assert problems[0].startswith(f"{pack.path / file}: {said}")


def test_all_damaged_files_are_named_at_once(pack_folder):
    pack = Pack.open(pack_folder())
    for file, how in ((SHARD, "flip"), ("crops_c3.zarr/c/0/0/0/0", "delete"), ("pack.json", "truncate")):
        damage(pack.path / file, how)
    assert [problem.split(": ")[0] for problem in pack.verify()] == [
        str(pack.path / file) for file in (SHARD, "crops_c3.zarr/c/0/0/0/0", "pack.json")
    ]


@pytest.mark.parametrize("how", ["truncate", "delete"])
def test_a_shard_cut_short_or_missing_is_found_when_it_is_first_read(pack_folder, how):
    pack = Pack.open(pack_folder())
    damage(pack.path / SHARD, how)
    rows = [row for row in range(50) if pack.index["group"][row].as_py() == 2]
    pack.read(rows[:16])  # the shard before is whole
    with pytest.raises(PackError, match=f"{SHARD}.*rows 16 to 29"):
        pack.read(rows)
