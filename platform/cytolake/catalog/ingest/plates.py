"""Ingests plates: reads every pixel once and writes rows into the catalog. Pixels stay in their source.

Ray Data reads wells side by side; a worker holds one site at a time and stages the rows of each well (see `staging`).
When a plate's last well is staged, the driver commits it: one transaction for each table, streamed from the staged
files, `plates` last. Rows of a plate show only once `plates` has it, so a run that is killed leaves nothing to be
seen, and the next one goes on with the wells that are missing. Memory is that of the sites in work, whatever the
screen's size.

It is one file because which plates are read, and how, is one sequence of steps from the listing to the report.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from cytolake.catalog.declared import channel_vocabulary, layout_presets, table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import PlateIds, content_id
from cytolake.catalog.ingest import differences
from cytolake.catalog.ingest.commit import (
    STAGED_TABLES,
    STAGING,
    Incoming,
    commit_incoming,
    free_ids,
    ids_of,
    sites_of_wells,
)
from cytolake.catalog.ingest.differences import Difference, difference, labels_difference
from cytolake.catalog.ingest.plate_content import PlateContent, content_number, has_content, plate_content
from cytolake.catalog.ingest.screen_problems import image_of_plate, quarantine_of_screens, quarantine_rows
from cytolake.catalog.ingest.site_rows import SiteRows, read_site_rows
from cytolake.catalog.ingest.staging import Staging
from cytolake.catalog.tables import Catalog
from cytolake.screens.plate import Plate, Problem, ScreenError, SiteImage
from cytolake.screens.sources import ScreenSource, list_screen

Progress = Callable[[str, int, int], None]
"""Called with a unit of work, the number done and the total."""

_DONE = pa.schema([("plate", pa.int64()), ("well", pa.string()), ("n_sites", pa.int64()), ("error", pa.string())])
_TEXT = pa.schema([(name, pa.string()) for name in Problem.__dataclass_fields__])  # of a problem, in its order


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """How plates are cut into crops, and how the reading is shared out."""

    crop_size: int = 64
    """Edge of the square crops that tile each site, pixels."""
    sites_per_task: int = 32
    """A Ray task reads wells, one site after the other, until it has about so many sites; towards the end, fewer."""
    verify: Literal["mtime", "checksum"] = "mtime"
    """How a plate in the catalog is compared with its files: by names, sizes and modification times (where a time
    differs, pixels are read again), or by checksums of all pixels, which takes as long as an ingest."""

    def __post_init__(self) -> None:
        for name in ("crop_size", "sites_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"ingest.{name}: found {getattr(self, name)}, expected 1 or more.")
        if self.verify not in ("mtime", "checksum"):
            raise ValueError(f"ingest.verify: found {self.verify!r}, expected mtime or checksum.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What an ingest did."""

    ingested: tuple[str, ...]
    """Ids of plates that were added."""
    skipped: tuple[str, ...]
    """Ids of plates that were there already, unchanged."""
    refused: tuple[Problem, ...]
    """Plates that are in the catalog with other content, that occur twice, or that moved."""
    n_sites: int
    n_crops: int
    n_quarantined: int
    """Rows added to `quarantine`, for the ingested plates and their screens."""
    left_out: tuple[Problem, ...] = ()
    """Plates that were retracted or purged and stay hidden."""
    without_sites: tuple[str, ...] = ()
    """Names, as screen/plate, of plates that came in without a single readable site, now or before; not among
    `ingested` or `skipped`."""
    without_crops: tuple[str, ...] = ()
    """Names of plates with readable sites and not one crop, now or before; also among `ingested` or `skipped`."""


_WELLS_IN_FLIGHT = 4096  # of one Ray Data run: what the driver holds of a screen's plan


def ingest_screens(
    catalog: Catalog, sources: Sequence[ScreenSource], config: IngestConfig, progress: Progress | None = None
) -> IngestReport:
    """Ingest every plate of the screens, with the stain names of catalog/channels.yaml where it knows them.

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
    by_screen = {source.screen: source for source in sources}
    report = ingest_plates(catalog, plates, config, progress, sources=by_screen, of_screens=of_screens)
    if failed:
        _quarantine_refused(catalog, failed)
        raise ScreenError(*failed)
    return report


def ingest_plates(
    catalog: Catalog,
    plates: Sequence[Plate],
    config: IngestConfig,
    progress: Progress | None = None,
    *,
    sources: Mapping[str, ScreenSource] | None = None,
    of_screens: Sequence[Problem] = (),
) -> IngestReport:
    """Ingest plates that their source has listed. Uses the Ray that runs, or starts a local one.

    A plate is known by its name among the visible ones. One that is in the catalog with the same pixels and labels is
    skipped; one that is there with others is refused with a reason and the command that settles it, in the report and
    in `quarantine`, and the rest go on.

    Args:
        catalog: Where the rows go.
        plates: As `list_plates` gives them.
        progress: Called with the number of sites read.
        sources: The screens that they were listed from by name, for the commands in reports.
        of_screens: What is wrong with the screens outside of these plates; a second run of a plate is refused.
    """
    visibility = catalog.visibility()  # once: both of one version of `plates`
    rows = visibility.plates.to_pylist()
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_name[row["screen"], row["plate"]].append(row)
    visible = visibility.visible.to_pylist()
    known = {(row["screen"], row["plate"]): row for row in visible}
    taken = {row["plate_id"] for row in rows}
    incoming: list[Incoming] = []
    skipped: list[str] = []
    without_sites: list[str] = []
    without_crops: list[str] = []
    of_screens = [
        problem
        for problem in of_screens
        if not differences.is_hidden_run(problem, by_name[problem.screen, problem.plate])
    ]
    refused = [problem for problem in of_screens if problem.problem == "duplicate_plate"]
    left_out: list[Problem] = []
    seen: dict[tuple[str, str], Plate] = {}
    for plate in plates:
        name = (plate.screen, plate.plate)
        if name in seen:
            refused.append(differences.twice(plate, seen[name]))
            continue
        seen[name] = plate
        content = plate_content(plate)
        source = (sources or {}).get(plate.screen)
        if name not in known:
            hidden = differences.hidden_plate(plate, content, rows)
            copied = differences.files_under_another_name(catalog, plate, visible)
            if hidden is not None:
                left_out.append(hidden)
            elif copied is not None:
                refused.append(copied)
            else:
                of = free_ids(plate.screen, plate.plate, taken)
                taken.add(of.plate_id)
                incoming.append(Incoming(plate, content, of, content.content_hash))
            continue
        row = known[name]
        if row["pixels_hash"] is None and has_content(plate, row["content_hash"], of_screens):
            content = content._replace(content_hash=row["content_hash"])
        by_checksum = config.verify == "checksum"
        found = difference(catalog, plate, content, row, config.crop_size, by_checksum=by_checksum, source=source)
        if found.kind == "read":
            of, key = ids_of(row), content_id("read again", content.content_hash, content.files_hash)
            incoming.append(Incoming(plate, content, of, key, known=row))
            continue
        _settle(catalog, plate, content, row, found, skipped, refused, without_sites)
        staging_of(catalog, plate, content.content_hash, config).remove()  # of a run killed right after its commit

    counts = {"n_sites": 0, "n_crops": 0, "n_quarantined": 0}
    ingested: list[str] = []
    for each in _staged(catalog, incoming, config, progress):
        if each.known is not None:
            source = (sources or {}).get(each.plate.screen)
            found = _read_difference(catalog, each, config, source)
            _settle(catalog, each.plate, each.content, each.known, found, skipped, refused, without_sites)
            continue
        outcome = commit_incoming(catalog, each, _staging(catalog, each, config), config.crop_size)
        if isinstance(outcome, Problem):
            refused.append(outcome)
            continue
        if outcome["n_sites"]:
            ingested.append(each.of.plate_id)
            if not outcome["n_crops"]:
                without_crops.append(f"{each.plate.screen}/{each.plate.plate}")
        else:
            without_sites.append(f"{each.plate.screen}/{each.plate.plate}")
        for name_of_count in counts:
            counts[name_of_count] += outcome[name_of_count]
    counts["n_quarantined"] += quarantine_of_screens(catalog, of_screens)
    _quarantine_refused(catalog, [problem for problem in refused if problem not in of_screens])
    return IngestReport(
        ingested=tuple(ingested),
        skipped=tuple(skipped),
        refused=tuple(refused),
        left_out=tuple(left_out),
        without_sites=tuple(without_sites),
        without_crops=tuple(sorted({*without_crops, *_without_crops(visible, skipped)})),
        **counts,
    )


def _without_crops(rows: Sequence[Mapping[str, Any]], plate_ids: Sequence[str]) -> list[str]:
    """Names of those of these plates that have sites and no crop."""
    chosen = set(plate_ids)
    return [
        f"{row['screen']}/{row['plate']}"
        for row in rows
        if row["plate_id"] in chosen and row["n_sites"] and not row["n_crops"]
    ]


def ingest_acquisition(
    catalog: Catalog, incoming: Incoming, config: IngestConfig, progress: Progress | None = None
) -> dict[str, Any] | Problem:
    """Read one plate and commit it, perhaps in place of an acquisition that is there; see `corrections.replace`."""
    (each,) = _staged(catalog, [incoming], config, progress)
    return commit_incoming(catalog, each, _staging(catalog, each, config), config.crop_size)


def staging_of(catalog: Catalog, plate: Plate, content: str, config: IngestConfig) -> Staging:
    """Where the wells of a plate with this content are staged, at its first acquisition."""
    return _staging_folder(catalog, PlateIds(plate.screen, plate.plate), content, config)


def stage_well(
    staging: Staging, sites: Sequence[SiteImage], batch: str, crop_size: int, plate_ids: PlateIds | None = None
) -> None:
    """Read the sites of one well, one after the other, and stage their rows.

    Raises:
        CatalogError: The rows cannot be written. A site that cannot be read raises nothing: its problem is staged.
    """
    staging.write(sites[0].well, _as_part([read_site_rows(site, batch, crop_size, plate_ids) for site in sites]))


def _staging(catalog: Catalog, incoming: Incoming, config: IngestConfig) -> Staging:
    return _staging_folder(catalog, incoming.of, incoming.key, config)


def _staging_folder(catalog: Catalog, of: PlateIds, key: str, config: IngestConfig) -> Staging:
    return Staging(f"{catalog.place}/{STAGING}/{of.plate_id}-{content_number(key, config.crop_size):x}")


def _read_difference(
    catalog: Catalog, incoming: Incoming, config: IngestConfig, source: ScreenSource | None
) -> Difference:
    """What differs of a plate whose pixels were read again; nothing of what was staged is kept."""
    assert incoming.known is not None
    staging = _staging(catalog, incoming, config)
    staged = []
    for parts in staging.read_together(list(sites_of_wells(incoming.plate)), ("sites", "qc_metrics")):
        means: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in parts["qc_metrics"].to_pylist():
            means[row["site_id"]].append((row["mean"], row["sd"]))
        staged += [
            {name: site[name] for name in ("site_id", "checksum", "channels")} | {"means": means[site["site_id"]]}
            for site in parts["sites"].to_pylist()
        ]
    staging.remove()
    if not differences.same_sites(catalog, incoming.known["plate_id"], staged):
        found = "other pixels in files of the same names and sizes"
        problem = differences.changed_pixels(catalog, incoming.plate, incoming.known, source, found)
        return Difference("refused", problem)
    return labels_difference(catalog, incoming.plate, incoming.known)


def _settle(
    catalog: Catalog,
    plate: Plate,
    content: PlateContent,
    known: Mapping[str, Any],
    found: Difference,
    skipped: list[str],
    refused: list[Problem],
    without_sites: list[str],
) -> None:
    """Report a known plate; where its files changed and its pixels did not, store the new hashes."""
    if found.problem is not None:
        refused.append(found.problem)
        return
    if known["n_sites"]:
        skipped.append(known["plate_id"])
    else:
        without_sites.append(f"{plate.screen}/{plate.plate}")
    now = {**known, "content_hash": content.content_hash, "pixels_hash": content.pixels_hash}
    if known["source"] == plate.source:
        now["files_hash"] = content.files_hash
    if now == known:
        return
    contract = table_contract("plates")
    with contextlib.suppress(CatalogError):  # another process writes the row: the next ingest compares again
        catalog.change_plates(contract.rows([known]), contract.rows([now]))


def _staged(
    catalog: Catalog, plates: Sequence[Incoming], config: IngestConfig, progress: Progress | None
) -> Iterator[Incoming]:
    """Each plate as soon as its last well is staged."""
    total, done = sum(len(each.plate.sites) for each in plates), 0
    waiting: dict[int, set[str]] = {}
    tasks: list[dict[str, Any]] = []

    def run() -> Iterator[Incoming]:
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

    for index, each in enumerate(plates):
        staging = _staging(catalog, each, config)
        there = staging.wells()
        wells = sites_of_wells(each.plate)
        missing = [well for well in wells if well not in there]
        done += sum(len(sites) for well, sites in wells.items() if well in there)
        if not missing:
            yield each
            continue
        waiting[index] = set(missing)
        for well in missing:
            sites = [json.dumps(asdict(site)) for site in wells[well]]
            task = {"plate": index, "well": well, "batch": each.plate.batch, "staging": staging.folder, "sites": sites}
            tasks.append(task | {"of": [each.of.screen, each.of.plate, each.of.acquisition]})
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
        result = {"plate": task["plate"], "well": task["well"], "n_sites": len(sites), "error": ""}
        try:
            stage_well(Staging(task["staging"]), sites, task["batch"], crop_size, PlateIds(*task["of"]))
        except CatalogError as error:  # as a row: raised here, it would reach the driver under pages of Ray's own trace
            result["error"] = f"plate {sites[0].plate}, {error}"
        done.append(result)
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
        rows = quarantine_rows(PlateIds(problem.screen, problem.plate).plate_id, [problem], now)
        catalog.append("quarantine", rows, transaction=f"refused/{rows.column('quarantine_id')[0].as_py()}")
