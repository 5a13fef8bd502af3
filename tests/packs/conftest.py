from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.packs.small_pack import write_pack

from cytolake.packs.shards import Compression


@pytest.fixture
def pack_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small pack, see `write_pack`, and returns its folder."""

    def write(compression: Compression = "none", **described: Any) -> Path:
        folder = tmp_path / f"pack_{compression}"
        folder.mkdir()
        write_pack(folder, compression, **described)
        return folder

    return write
