"""Finds the folder of a pack by what a person gives: the folder, a pack's id, or the beginning of either."""

from __future__ import annotations

from pathlib import Path

from cytolake.catalog.ids import whole_id
from cytolake.packs.pack import PACK_FILE
from cytolake.packs.shards import PackError


def pack_folder(given: str, root: str | Path) -> Path:
    """Folder of a pack.

    Args:
        given: A folder, whose last part may be the beginning of a pack's id; or a pack_id or its beginning.
        root: Of the catalog, where an id alone is looked for.

    Raises:
        PackError: There is none. Lists the packs next to it.
        CatalogError: Several ids begin so.
    """
    path = Path(given)
    if path.is_dir():
        return path
    folder = path.parent if path.name != given else Path(root) / "packs"
    there = sorted(each.parent.name for each in folder.glob(f"[!.]*/{PACK_FILE}"))
    found = whole_id(path.name, there, "pack")
    if not found:
        raise PackError(
            f"{folder / path.name}: no pack. There are in {folder}: {', '.join(there) or 'none'}. Give the folder of a "
            "pack or its id, or make one: `cytolake curate`."
        )
    return folder / found
