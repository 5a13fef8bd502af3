"""What a stage needs before it starts: screens, the run of the recipe's curation, its pack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cytolake.catalog import Catalog
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.stale import check_curation
from cytolake.curation.runs import newest_run
from cytolake.packs.build import find_built_pack
from cytolake.packs.pack import Pack
from cytolake.pipeline.config import PipelineConfig
from cytolake.screens.plate import Problem, ScreenError
from cytolake.screens.sources import ScreenSource, list_screen
from cytolake.storage.files import is_uri


class MissingInputError(LookupError):
    """A stage was run alone before the stage that makes its input; the text names the job to run."""


def recipe_run(config: PipelineConfig, catalog: Catalog) -> tuple[dict[str, Any], bool]:
    """The run of the recipe's curation, and whether it has the rules as they are declared now; see `newest_run`.

    Raises:
        MissingInputError: No such curation.
    """
    found = newest_run(catalog, config.curate, modalities=config.qc.modalities)
    if found is None:
        raise MissingInputError(
            f"{config.root_path}: no curation named {config.curate.name!r}. Run `cytolake curate` with the same recipe "
            "and root first."
        )
    return found


def built_pack(config: PipelineConfig, catalog: Catalog, *, for_training: bool = False) -> Pack:
    """The pack of the recipe's curation. Args and Raises: as `recipe_run` and `pack_of_run`."""
    run, _ = recipe_run(config, catalog)
    return pack_of_run(config, catalog, run, for_training=for_training)


def pack_of_run(
    config: PipelineConfig, catalog: Catalog, run: Mapping[str, Any], *, for_training: bool = False
) -> Pack:
    """The pack of a curation's run. Builds none: a pack may be terabytes.

    Args:
        run: Of `recipe_run`.
        for_training: The pack that `pretrain` takes: without the plates that are held out of pretraining.

    Raises:
        MissingInputError: Its pack was not built, or not with these settings.
        CatalogError: Labels or pixels of its plates were corrected since.
    """
    curation_id = run["curation_id"]
    check_curation(catalog, curation_id)
    settings = dataclasses.replace(config.pack, exclude_plates=config.hold_out_plates) if for_training else config.pack
    pack = find_built_pack(catalog, curation_id, settings)
    if pack is None:
        job = "pretrain" if settings.exclude_plates else "curate"
        raise MissingInputError(
            f"{config.root_path}: no pack of curation {config.curate.name!r} ({curation_id[:12]}) with pixels "
            f"{settings.pixels}, shuffle {settings.shuffle_seed}"
            f"{' and without the held-out plates' if settings.exclude_plates else ''}. "
            f"Run `cytolake {job}` with the same recipe, root and --set first: it builds the pack."
        )
    return pack


def screen_sources(config: PipelineConfig) -> list[ScreenSource]:
    """The screens to ingest, with whole paths; the simulated one is the last.

    Raises:
        MissingInputError: There is none.
    """
    sources = [
        source if is_uri(source.path) else dataclasses.replace(source, path=str(config.screens_path / source.path))
        for source in config.screens.sources
    ]
    if config.screens.simulate is not None:
        name = config.screens.simulate.screen
        sources.append(ScreenSource(screen=name, path=str(config.screens_path / name), layout="ome-zarr"))
    if not sources:
        raise MissingInputError(
            f"recipe {config.name}: it names no screen. `cytolake init FOLDER` writes a recipe for the screen in "
            "that folder; or set screens.sources."
        )
    return sources


def check_sources(config: PipelineConfig) -> None:
    """Refuse screens of which nothing can be ingested, before a catalog is made for them.

    Raises:
        MissingInputError: There is no screen.
        ScreenError: Not one screen can be listed.
    """
    problems: list[Problem] = []
    for source in () if config.screens.simulate is not None else screen_sources(config):
        try:
            list_screen(source, channel_vocabulary().aliases, layout_presets())
            return
        except ScreenError as error:
            problems += error.problems
    if problems:
        raise ScreenError(*problems)
