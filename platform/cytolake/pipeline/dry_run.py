"""`pretrain --dry-run`: what the recipe's training would cost, on the pack that it would take or on none."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

import cytolake.catalog
from cytolake.catalog import CatalogError
from cytolake.packs.pack import Pack
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.dry_run_tables import dry_run_tables
from cytolake.pipeline.inputs import MissingInputError, built_pack
from cytolake.train.dry_run import dry_run


def pretrain_dry_run(config: PipelineConfig, console: Console) -> None:
    """Print parameters, memory, speed, GPU-hours and the FSDP plan; nothing is started and nothing written."""
    pack, why = _pack(config)
    console.print(f"[bold]{escape(config.name)}[/]")
    if pack is None:
        console.print(f"[dim]pack[/] none yet, so what depends on its crops is left open\n     [dim]{escape(why)}[/]\n")
    else:
        console.print(f"[dim]pack[/] {escape(f'{pack.pack_id}, {pack.n_crops:,} crops: {pack.path}')}\n")
    console.print(dry_run_tables(dry_run(config.pretrain, pack=pack)))


def _pack(config: PipelineConfig) -> tuple[Pack | None, str]:
    """The pack that `pretrain` would train on, or why there is none."""
    try:
        catalog = cytolake.catalog.open(config.root_path)
        return built_pack(config, catalog, for_training=bool(config.hold_out_plates)), ""
    except (CatalogError, MissingInputError) as error:
        return None, str(error)
