"""`jobs/pretrain.py --dry-run`: what the recipe's training would cost, on the pack that is there or on none."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cytolake.line.config import Line
from cytolake.packs.pack import PACK_FILE, Pack
from cytolake.train.dry_run import dry_run, dry_run_tables


def pretrain_dry_run(line: Line, console: Console) -> None:
    """Print parameters, memory, speed, GPU-hours and the FSDP plan; nothing is started and nothing written."""
    pack = _newest_pack(line)
    told = "none yet" if pack is None else f"{pack.pack_id}, {pack.n_crops:,} crops: {pack.path}"
    console.print(f"[bold]{escape(line.name)}[/]  [dim]pack[/] {escape(told)}\n")
    console.print(dry_run_tables(dry_run(line.pretrain, pack=pack)))


def _newest_pack(line: Line) -> Pack | None:
    """The last pack built of the recipe's curation under its root, or None. Reads no table."""
    built: list[tuple[str, Path]] = []
    for file in (line.root_path / "packs").glob(f"*/{PACK_FILE}"):
        described = json.loads(file.read_text(encoding="utf-8"))
        if described.get("curation") == line.curate.name:
            built.append((described.get("built_at", ""), file.parent))
    return Pack.open(max(built)[1]) if built else None
