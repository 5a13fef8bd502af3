"""Ingest: every pixel of a plate is read once, and rows go into the catalog. Pixels stay in their source.

Ray Data reads wells side by side; a worker holds one site at a time and stages the rows of each well (see `staging`).
When a plate's last well is staged, the driver commits it: one transaction for each table, streamed from the staged
files, `plates` last. Rows of a plate show only once `plates` has it, so a run that is killed leaves nothing to be
seen, and the next one goes on with the wells that are missing. Memory is that of the sites in work, whatever the
screen's size.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import ids
from cytolake.catalog.declared import channel_vocabulary, layout_presets, table_contract
from cytolake.catalog.errors import CatalogError, ClaimedError
from cytolake.catalog.ingest.plate_content import content_hash, content_number, has_content
from cytolake.catalog.ingest.screen_problems import image_of_plate, quarantine_of_screens, quarantine_rows
from cytolake.catalog.ingest.site_rows import SiteRows, read_site_rows
from cytolake.catalog.ingest.staging import Staging
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.screens.plate import WELLS_ONLY, Plate, Problem, ScreenError, SiteImage
from cytolake.screens.sources import ScreenSource, list_screen
from cytolake.screens.storage import is_uri

Progress = Callable[[str, int, int], None]
"""What is worked on, how much is done, how much there is."""

STAGED_TABLES = ("sites", "crops", "qc_metrics")
STAGING = "staging"
"""Folder beside the catalog's tables that holds the wells of plates in work."""

_DONE = pa.schema([("plate", pa.int64()), ("well", pa.string()), ("n_sites", pa.int64()), ("error", pa.string())])
_TEXT = pa.schema([(name, pa.string()) for name in Problem.__dataclass_fields__])  # of a problem, in its order


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """How plates are cut into crops, and how the reading is shared out."""

    crop_size: int = 64
    """Edge of the square crops that tile each site, pixels."""
    sites_per_task: int = 32
    """A Ray task reads wells, one site after the other, until it has about so many sites; towards the end, fewer."""

    def __post_init__(self) -> None:
        for name in ("crop_size", "sites_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"ingest.{name}: found {getattr(self, name)}, expected 1 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What an ingest did."""

    ingested: tuple[str, ...]
    """Ids of plates that came into the catalog."""
    skipped: tuple[str, ...]
    """Ids of plates that were there already, unchanged."""
    refused: tuple[Problem, ...]
    """Plates that are there with other content, under the same name twice, or no longer where they were."""
    n_sites: int
    n_crops: int
    n_quarantined: int
    """Rows that the ingested plates, and what is wrong with their screens, put into quarantine."""


_RUNS_NOW = "other files, from an ingest that runs now"
_WELLS_IN_FLIGHT = 4096  # of one Ray Data run: what the driver holds of a screen's plan


def ingest_screens(
    catalog: Catalog, sources: Sequence[ScreenSource], config: IngestConfig, progress: Progress | None = None
) -> IngestReport:
    """Ingest every plate of the screens, with stains spelled as in catalog/channels.yaml where that knows them.

    Raises:
        ScreenError: A screen's folder is missing, cannot be read or holds nothing usable. The other screens were
            ingested, and `quarantine` has why.
    """
    spellings = channel_vocabulary().aliases
    plates: list[Plate] = []
    of_screens: list[Problem] = []
    failed: list[Problem] = []
    for source in sources:
        try:
            listing = list_screen(source, spellings, layout_presets(), image_of_plate(catalog, source.screen))
            plates += listing.plates
            of_screens += listing.problems
        except ScreenError as error:
            failed += error.problems
    if failed and not plates:
        raise ScreenError(*failed)
    report = ingest_plates(catalog, plates, config, progress, of_screens)
    if failed:
        _quarantine_refused(catalog, failed)
        raise ScreenError(*failed)
    return report


def ingest_plates(
    catalog: Catalog,
    plates: Sequence[Plate],
    config: IngestConfig,
    progress: Progress | None = None,
    of_screens: Sequence[Problem] = (),
) -> IngestReport:
    """Ingest plates that their source has listed. Uses the Ray that runs, or starts a local one.

    A plate that is in the catalog with the same files and plate map is skipped; one that is there with others is
    refused with a reason in the report and in `quarantine`, and the rest go on.

    Args:
        catalog: Where the rows go.
        plates: As `list_plates` gives them.
        config: The crop grid.
        progress: Called with the number of sites read.
        of_screens: What is wrong with the screens outside of these plates; a second run of a plate is refused.
    """
    fresh: list[tuple[Plate, str]] = []
    skipped: list[str] = []
    refused = [problem for problem in of_screens if problem.problem == "duplicate_plate"]
    known = {row["plate_id"]: row for row in catalog.table("plates").to_pylist()}
    seen: dict[str, Plate] = {}
    for plate in plates:
        identity = ids.plate_id(plate.screen, plate.plate)
        if identity in seen:
            refused.append(_twice(plate, seen[identity]))
            continue
        seen[identity] = plate
        content = content_hash(plate)
        if identity not in known:
            fresh.append((plate, content))
            continue
        if has_content(plate, known[identity]["content_hash"], of_screens):
            content = known[identity]["content_hash"]
        problem = _difference(catalog, plate, content, known[identity], config)
        if problem is None:
            skipped.append(identity)
            staging_of(catalog, plate, content, config).remove()  # of a run that was killed right after its commit
        else:
            refused.append(problem)

    counts = {"n_sites": 0, "n_crops": 0, "n_quarantined": 0}
    ingested: list[str] = []
    for plate, content in _staged(catalog, fresh, config, progress):
        outcome = commit_plate(catalog, plate, content, config)
        if isinstance(outcome, Problem):
            refused.append(outcome)
            continue
        ingested.append(ids.plate_id(plate.screen, plate.plate))
        for name in counts:
            counts[name] += outcome[name]
    counts["n_quarantined"] += quarantine_of_screens(catalog, of_screens)
    _quarantine_refused(catalog, [problem for problem in refused if problem not in of_screens])
    return IngestReport(ingested=tuple(ingested), skipped=tuple(skipped), refused=tuple(refused), **counts)


def staging_of(catalog: Catalog, plate: Plate, content: str, config: IngestConfig) -> Staging:
    """Where the wells of a plate with this content are staged."""
    identity, number = ids.plate_id(plate.screen, plate.plate), content_number(content, config.crop_size)
    return Staging(f"{catalog.place}/{STAGING}/{identity}-{number:x}")


def stage_well(staging: Staging, sites: Sequence[SiteImage], batch: str, crop_size: int) -> None:
    """Read the sites of one well, one after the other, and stage their rows.

    Raises:
        CatalogError: The rows cannot be written. A site that cannot be read raises nothing: its problem is staged.
    """
    staging.write(sites[0].well, _as_part([read_site_rows(site, batch, crop_size) for site in sites]))


def commit_plate(catalog: Catalog, plate: Plate, content: str, config: IngestConfig) -> dict[str, Any] | Problem:
    """Commit one plate whose wells are all staged, `plates` last. Again, or from two processes, it changes nothing.

    Returns:
        The row of `plates`, or why the plate was refused: another process ingested other content under its name.

    Raises:
        CatalogError: Staged rows are damaged or missing, or the commit failed; nothing of the plate shows then.
    """
    identity = ids.plate_id(plate.screen, plate.plate)
    staging = staging_of(catalog, plate, content, config)
    try:
        _commit_tables(catalog, plate, staging, content, config)
    except ClaimedError:
        return _changed(plate, _RUNS_NOW)
    except Exception:
        # two drivers on one plate: the other one may have committed it all and removed what was staged
        if _row_of_plate(catalog, identity) is None:
            raise
    there = _row_of_plate(catalog, identity)
    if there is None:
        return _changed(plate, _RUNS_NOW)
    staging.remove()
    return there if there["content_hash"] == content else _changed(plate, f"content {there['content_hash']}")


def _row_of_plate(catalog: Catalog, identity: str) -> dict[str, Any] | None:
    found = catalog.dataset("plates").to_table(filter=pc.field("plate_id") == identity).to_pylist()
    return found[0] if found else None


def _commit_tables(catalog: Catalog, plate: Plate, staging: Staging, content: str, config: IngestConfig) -> None:
    """One transaction for each table; `plates` only where this content is what all of them hold."""
    identity = ids.plate_id(plate.screen, plate.plate)
    number = content_number(content, config.crop_size)
    order = list(_sites_of_wells(plate))
    now = datetime.datetime.now(datetime.UTC)
    problems: list[Problem] = []
    with_images: set[str] = set()
    n_rows = dict.fromkeys(STAGED_TABLES, 0)
    for parts in staging.read_together(order, (*STAGED_TABLES, "problems")):
        problems += [Problem(**row) for row in parts["problems"].to_pylist()]
        with_images.update(parts["sites"].column("well").to_pylist())
        for name in STAGED_TABLES:
            n_rows[name] += parts[name].num_rows
    wells, map_problems = well_rows(plate, frozenset(with_images))
    quarantine = quarantine_rows(identity, [*plate.problems, *map_problems, *problems], now)
    catalog.claim_plate(identity, number)
    for name in STAGED_TABLES:
        catalog.write_plate(name, partial(staging.read, order, name), plate_id=identity, content=number)
    small = {"wells": table_contract("wells").rows(wells), "quarantine": quarantine}
    for name, table in small.items():
        catalog.write_plate(name, table, plate_id=identity, content=number)
    if any(catalog.plate_content(name, identity) != number for name in (*n_rows, *small)):
        return
    row = {
        "plate_id": identity,
        "screen": plate.screen,
        "plate": plate.plate,
        "batch": plate.batch,
        "source": plate.source,
        "reader": plate.reader,
        "content_hash": content,
        "channels": list(plate.channels),
        "pixel_size_um": plate.pixel_size_um,
        "n_wells": len(wells),
        "n_sites": n_rows["sites"],
        "n_crops": n_rows["crops"],
        "n_quarantined": quarantine.num_rows,
        "ingested_at": now,
    }
    catalog.show_plate(table_contract("plates").rows([row]), plate_id=identity, content=number)


def _sites_of_wells(plate: Plate) -> dict[str, list[SiteImage]]:
    """Sites of each well, in the order of the listing."""
    wells: dict[str, list[SiteImage]] = defaultdict(list)
    for site in plate.sites:
        wells[site.well].append(site)
    return wells


def _staged(
    catalog: Catalog, plates: Sequence[tuple[Plate, str]], config: IngestConfig, progress: Progress | None
) -> Iterator[tuple[Plate, str]]:
    """Each plate, with its content, as soon as its last well is staged."""
    total, done = sum(len(plate.sites) for plate, _ in plates), 0
    waiting: dict[int, set[str]] = {}
    tasks: list[dict[str, Any]] = []

    def run() -> Iterator[tuple[Plate, str]]:
        nonlocal done, tasks
        for result in _read_wells(tasks, config) if tasks else ():
            done += result["n_sites"]
            waiting[result["plate"]].discard(result["well"])
            if progress is not None:
                progress("sites", done, total)
            if not waiting[result["plate"]]:
                del waiting[result["plate"]]
                yield plates[result["plate"]]
        tasks = []

    for index, (plate, content) in enumerate(plates):
        staging = staging_of(catalog, plate, content, config)
        there = staging.wells()
        wells = _sites_of_wells(plate)
        missing = [well for well in wells if well not in there]
        done += sum(len(sites) for well, sites in wells.items() if well in there)
        if not missing:
            yield plate, content
            continue
        waiting[index] = set(missing)
        for well in missing:
            sites = [json.dumps(asdict(site)) for site in wells[well]]
            tasks.append(
                {"plate": index, "well": well, "batch": plate.batch, "staging": staging.folder, "sites": sites}
            )
            if len(tasks) == _WELLS_IN_FLIGHT:
                yield from run()
    yield from run()


def _read_wells(tasks: list[dict[str, Any]], config: IngestConfig) -> Iterator[dict[str, Any]]:
    """Stage the wells; which plate and well each was, and its number of sites, in the order they are done."""
    import ray.data  # takes seconds, and a run that skips every plate needs none of it

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    n_workers = int(resources.get("CPU", 1))
    portions = [pa.Table.from_pylist(part) for part in _portions(tasks, config.sites_per_task, n_workers)]
    dataset = ray.data.from_arrow(portions).map_batches(
        partial(_stage_wells, crop_size=config.crop_size), batch_format="pyarrow", batch_size=None
    )
    batches: Iterator[Any] = iter(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    for batch in batches:
        for done in batch.to_pylist():
            if done["error"]:
                raise CatalogError(done["error"])
            yield done


def _portions(tasks: list[dict[str, Any]], most: int, n_workers: int) -> Iterator[list[dict[str, Any]]]:
    """The wells that each Ray task reads.

    Between two tasks a worker waits for Ray Data, 0.2 s, so they are large; at the end they are ever smaller, down to
    a well, so that all workers end at about the same time (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """
    left = sum(len(task["sites"]) for task in tasks)
    portion: list[dict[str, Any]] = []
    size = 0
    for task in tasks:
        portion.append(task)
        size += len(task["sites"])
        if size >= min(most, left / (2 * n_workers)):
            yield portion
            left -= size
            portion, size = [], 0


def _stage_wells(tasks: pa.Table, *, crop_size: int) -> pa.Table:
    """Run in a Ray task: read the wells of these rows."""
    done = []
    for task in tasks.to_pylist():
        sites = [_site_from_json(site) for site in task["sites"]]
        told = {"plate": task["plate"], "well": task["well"], "n_sites": len(sites), "error": ""}
        try:
            stage_well(Staging(task["staging"]), sites, task["batch"], crop_size)
        except CatalogError as error:  # as a row: raised here, it would reach the driver under pages of Ray's own trace
            told["error"] = f"plate {sites[0].plate}, {error}"
        done.append(told)
    return pa.Table.from_pylist(done, schema=_DONE)


def _site_from_json(text: str) -> SiteImage:
    fields: dict[str, Any] = json.loads(text)
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return SiteImage(**(fields | lists))


def _as_part(found: Sequence[SiteRows]) -> pa.Table:
    """One row for each site: lists of the rows it gives to each table."""
    columns = {}
    for name in STAGED_TABLES:
        rows_type = pa.list_(pa.struct(list(table_contract(name).schema)))
        columns[name] = pa.array([getattr(rows, name) for rows in found], rows_type)
    problems = [[asdict(problem) for problem in rows.problems] for rows in found]
    columns["problems"] = pa.array(problems, pa.list_(pa.struct(list(_TEXT))))
    return pa.table(columns)


def _quarantine_refused(catalog: Catalog, refused: Sequence[Problem]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for problem in refused:
        rows = quarantine_rows(ids.plate_id(problem.screen, problem.plate), [problem], now)
        catalog.append("quarantine", rows, transaction=f"refused/{rows.column('quarantine_id')[0].as_py()}")


def _difference(
    catalog: Catalog, plate: Plate, content: str, known: dict[str, Any], config: IngestConfig
) -> Problem | None:
    """Why a plate that is in the catalog cannot simply be skipped; None where it can."""
    if known["reader"] == WELLS_ONLY:
        return _refusal(
            plate,
            "plate_without_images",
            f"images of the plate, at {plate.source}",
            f"none: the plate's wells came from a published table, {known['source']}",
            "Give the screen of the images another name, or ingest them into another catalog root: the wells of the "
            "table have embeddings and scores of their own.",
        )
    if known["content_hash"] != content:
        return _changed(plate, f"content {known['content_hash']}, ingested {known['ingested_at']:%Y-%m-%d %H:%M} UTC")
    sizes = catalog.sql(f"SELECT DISTINCT size FROM crops WHERE plate_id = '{known['plate_id']}'").column(0).to_pylist()
    if sizes and sizes != [config.crop_size]:
        return _refusal(
            plate,
            "other_crop_size",
            f"crop size {config.crop_size}",
            f"crop size {sizes[0]}, which the plate was ingested with",
            f"Set ingest.crop_size={sizes[0]}, or ingest into another catalog root.",
        )
    if not is_uri(known["source"]) and known["source"] != plate.source and not Path(known["source"]).exists():
        return _refusal(
            plate,
            "plate_moved",
            plate.source,
            f"{known['source']}, where the catalog reads its pixels",
            "Put the plate back or leave a link there, or ingest into another catalog root.",
        )
    return None


def _changed(plate: Plate, there: str) -> Problem:
    return _refusal(
        plate,
        "plate_changed",
        f"files or a plate map other than before, at {plate.source}",
        there,
        "Restore the plate; or give the new one a name of its own; or ingest into another catalog root. "
        "Crops and embeddings of the old content would otherwise pass for the new.",
    )


def _twice(plate: Plate, first: Plate) -> Problem:
    return _refusal(
        plate,
        "duplicate_plate",
        f"{plate.source}, a second plate of this name",
        f"one plate of this name in a screen, which is {first.source}",
        "Rename one of them, or put it into a screen of its own.",
    )


def _refusal(plate: Plate, problem: str, found: str, expected: str, next_step: str) -> Problem:
    return Problem(
        screen=plate.screen,
        plate=plate.plate,
        file=plate.source,
        problem=problem,
        found=found,
        expected=expected,
        next_step=next_step,
    )
