"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from cytolake.storage.atomic_write import atomic_file, atomic_folder, write_text


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    write_text(path, "first\r\n")
    with atomic_file(path) as part:
        part.write_text("second")
        assert path.read_bytes() == b"first\r\n"
    assert path.read_text() == "second"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as part:
        part.write_text(str(1 / 0))
    assert path.read_text() == "second"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_a_file_has_the_permissions_of_any_new_file_whatever_wrote_it(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_file(tmp_path / "weights.safetensors") as part:
        save_file({"weight": np.zeros(2, np.float32)}, part)
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_of_one_file_both_succeed_and_the_last_stays(tmp_path):
    path = tmp_path / f"{'long' * 60}.txt"  # the hidden name is no longer than file systems allow
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ended last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("building", [False, True])
def test_of_two_processes_that_make_one_folder_the_first_result_stays(tmp_path, building):
    path = tmp_path / "plate.zarr"

    def make(text: str) -> None:
        with atomic_folder(path, tmp_path / "building" if building else None) as part:
            assert part.suffix == ".zarr" or building
            assert part != path
            assert not path.exists() or (path / "a").read_text() == "first"
            (part / "a").write_text(text)

    make("first")
    make("second")
    assert (path / "a").read_text() == "first"
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other"):
        _ = 1 / 0
    with pytest.raises(OSError, match="missing"), atomic_folder(tmp_path / "missing" / "deep", tmp_path / "building"):
        pass
    assert list(tmp_path.iterdir()) == [path]
