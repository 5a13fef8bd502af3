"""The `cytolake` command: every job, and what people do with screens and catalogs, without a checkout."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import typer
from pyarrow.parquet import write_table as write_parquet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig, names_in
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.benchmark.profiles.tasks import NUISANCES
from cytolake.benchmark.split import SplitBy
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen, render
from cytolake.catalog.stale import stale_artefacts
from cytolake.cli.catalog import catalog as catalog_commands
from cytolake.cli.command import bad_input_told, job_command
from cytolake.cli.plates import plates as plates_commands
from cytolake.cli.rows_out import Format, write_rows
from cytolake.embed.alignment.variants import AlignmentConfig, Variant
from cytolake.packs.pack import Pack
from cytolake.pipeline import stages
from cytolake.pipeline.catalog_root import Root
from cytolake.pipeline.config import DEFAULT_ROOT
from cytolake.pipeline.dry_run import pretrain_dry_run
from cytolake.pipeline.overrides import apply_overrides
from cytolake.pipeline.progress import stage_progress
from cytolake.pipeline.session import RayConfig, cluster_session, ray_session
from cytolake.recipes import RECIPE_FILE, RECIPES, build_recipe
from cytolake.reports.leaderboard_page import leaderboard_text, write_leaderboard
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource
from cytolake.storage.files import is_uri
from cytolake.tracking import CHAMPION, TrackingConfig, resolve_alias
from cytolake.tune.promotion import untrained_twin

app = typer.Typer(help=cytolake.__doc__, no_args_is_help=True, add_completion=False)
qc = typer.Typer(help="Quality control: verdicts, the page, labels, the learned detector.", no_args_is_help=True)
curation = typer.Typer(help="Curations of a catalog, and what differs between two.", no_args_is_help=True)
pack = typer.Typer(help="Packs of crops.", no_args_is_help=True)
keys = typer.Typer(help="API keys of the Serve application.", no_args_is_help=True)
app.add_typer(qc, name="qc")
app.add_typer(curation, name="curation")
app.add_typer(pack, name="pack")
app.add_typer(keys, name="keys")
app.add_typer(plates_commands, name="plates")
app.add_typer(catalog_commands, name="catalog")

DETECTOR = "qc/detector.safetensors"
"""Where `qc train` puts the detector, below the root."""

for _job in stages.JOBS:
    _estimate = pretrain_dry_run if _job is stages.pretrain else None
    _command = job_command(_job, _job.__doc__, _estimate, can_force=_job is stages.promote)
    app.command(_job.__name__.replace("_", "-"))(_command)


@app.command()
def recipes() -> None:
    """List the recipes that --recipe takes."""
    table = Table("recipe", "what it is for", box=None, header_style="dim")
    for name, build in RECIPES.items():
        table.add_row(name, (build.__doc__ or "").strip().splitlines()[0])
    Console().print(table)


@app.command()
def simulate(
    folder: Annotated[
        Path, typer.Argument(help="Where the plates go: <folder>/<screen>/<plate>.zarr and platemap.csv.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Such as --set n_plates=8 --set seed=1.")
    ] = None,
) -> None:
    """Write a simulated screen with known biology, batch effects and artefacts as OME-Zarr HCS plates."""
    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("simulate", console) as report:
        plates = simulate_screen(apply_overrides(SimulatedScreen(), set_ or []), folder, report)
    console.print(f"{len(plates)} plates in {plates[0].parent}")


@app.command()
def tables(root: Root = DEFAULT_ROOT) -> None:
    """List the tables of a catalog with their rows and Delta versions."""
    with bad_input_told():
        catalog = cytolake.catalog.open(root)
        versions = catalog.versions()
        shown = Table("table", "rows", "version", box=None, header_style="dim")
        for name in cytolake.catalog.table_names():
            rows = catalog.sql(f"select count(*) n from {name}")["n"][0].as_py()
            shown.add_row(name, f"{rows:,}", str(versions.get(name, "-")))
        Console().print(shown)


@app.command()
def sql(
    query: str,
    root: Root = DEFAULT_ROOT,
    rows: Annotated[int, typer.Option(help="Rows of a table to print; the other formats have all.")] = 40,
    format_: Annotated[
        Format | None, typer.Option("--format", help="By default what the output's name ends in, else a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file: .csv, .json (lines) or .parquet.")] = None,
) -> None:
    """Run one read-only SQL query over the tables of a catalog."""
    with bad_input_told():
        write_rows(cytolake.catalog.open(root).sql(query), format_, output, rows)


@app.command()
def score(
    representation: Annotated[list[str], typer.Argument(metavar="ID_OR_NAME...", help="Or the name of an import.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Of ProfileBenchmarkConfig: --set alignments=none,centre."),
    ] = None,
    null_perturbations: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a name a line: perturbations or genes that should do nothing, such as genes that "
            "are not expressed. Consistency and magnitude are then tested against theirs."
        ),
    ] = None,
    chromosome_arms: Annotated[
        Path | None,
        typer.Option(help="Table of gene, arm and unexpressed: what each arm's genes share is taken out first."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Parquet of Metadata_Plate, Metadata_Well and CellProfiler's columns, to be predicted."),
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the rows, with all columns, to this file too.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write them as an HTML page too.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Score the well profiles of any representations, and print the rankings that they are in."""
    from cytolake.exchange.external import find_representation

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told():
        config = apply_overrides(ProfileBenchmarkConfig(), set_ or [])
        if null_perturbations is not None:
            config = dataclasses.replace(config, null_perturbations=tuple(names_in(null_perturbations)))
        config = dataclasses.replace(
            config,
            chromosome_arms=str(chromosome_arms or config.chromosome_arms),
            features=str(features or config.features),
        )
        catalog = cytolake.catalog.open(root)
        found = [find_representation(catalog, each) for each in representation]
        for each in found:
            if each["pooling"] not in config.poolings:
                raise ValueError(
                    f"representation {each['representation_id']}: found pooling {each['pooling']}, expected one of "
                    f"{', '.join(config.poolings)}. Add --set poolings={','.join((*config.poolings, each['pooling']))}."
                )
        ids = [str(each["representation_id"]) for each in found]
        # one representation is one task, which needs no Ray
        with ray_session(RayConfig()) if len(ids) > 1 else nullcontext(), stage_progress("score", console) as report:
            scores = score_profiles(catalog, ids, config, report)
        console.print(f"{len(scores.rows):,} scores of well profiles in the scores table")
        stages.print_caveats(console, scores)
        rows = leaderboard(catalog, LeaderboardFilter(representation_ids=tuple(ids)))
        if parquet is not None:
            write_parquet(rows, parquet)
        if page is not None:
            written = write_leaderboard(
                catalog,
                page,
                title=f"Leaderboard: {', '.join(representation)}",
                representation_ids=ids,
                warnings=scores.warnings,
                left_out=scores.left_out,
            )
            console.print(f"leaderboard {escape(str(written))}")
    _print_rankings(rows)


@app.command()
def probe(
    representation: Annotated[list[str], typer.Argument(metavar="ID_OR_NAME...", help="Or the name of an import.")],
    label: Annotated[str, typer.Option(help="Column of wells to predict.")] = "perturbation",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Of ProbeConfig: --set split=well.")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Predict a label of wells on held-out plates from any stored representation, such as an import."""
    from cytolake.benchmark.linear_probe import METRICS, ProbeConfig
    from cytolake.benchmark.stored_probe import probe_stored
    from cytolake.exchange.external import find_representation

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told():
        config = apply_overrides(ProbeConfig(label=label), set_ or [])
        catalog = cytolake.catalog.open(root)
        for each in representation:
            result = probe_stored(catalog, str(find_representation(catalog, each)["representation_id"]), config)
            scores = [f"{metric} {result.summary[metric].value:.3f}" for metric in METRICS]
            console.print(f"{escape(each)}: {', '.join(scores)} ({result.n_classes} classes of {config.label})")


@app.command()
def recall(
    representation: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="Of an import by gene or perturbation.")],
    relations: Annotated[list[Path], typer.Option(help="Tables of known pairs, as for relation_recall.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Report how many known pairs are in the tails of an imported map of genes; for wells, see `score`."""
    from cytolake.benchmark.relations.recall import relationship_recall
    from cytolake.benchmark.relations.relation_files import read_relations
    from cytolake.exchange.perturbation_profiles import read_perturbations

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told():
        found = read_perturbations(cytolake.catalog.open(root), representation)
        rows = relationship_recall(found.vectors, found.names, [read_relations(path) for path in relations])
    for row in rows:
        console.print(
            f"{escape(row.source)}, thresholds {row.thresholds}: recall {row.recall.value:.3f} "
            f"[{row.recall.low:.3f}, {row.recall.high:.3f}], shuffled {row.random:.3f}, {row.n_pairs:,} pairs"
        )


@app.command(name="leaderboard")
def show_leaderboard(
    root: Root = DEFAULT_ROOT,
    benchmark: Annotated[str, typer.Option(help="Only this one, such as relation_recall.")] = "",
    label: Annotated[str, typer.Option(help="Only this label or source of relations.")] = "",
    metric: Annotated[str, typer.Option(help="Only this metric.")] = "",
    alignment: Annotated[str, typer.Option(help="Only profiles aligned so.")] = "",
    all_blocks: Annotated[bool, typer.Option("--all-blocks", help="Every block, not each encoder's best.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write the rows, with all columns, to this file too.")] = None,
) -> None:
    """Rank all encoders by every benchmark in the scores table."""
    with bad_input_told():
        wanted = LeaderboardFilter(
            benchmark=benchmark, label=label, metric=metric, alignment=alignment, all_blocks=all_blocks
        )
        catalog = cytolake.catalog.open(root)
        rows = leaderboard(catalog, wanted)
        if parquet is not None:
            write_parquet(rows, parquet)
        n_stale = sum(each.kind == "score" for each in stale_artefacts(catalog))
    _print_rankings(rows)
    if n_stale:
        print(f"{n_stale} scores are stale: labels or pixels were corrected since. `cytolake plates` lists them.")


@app.command()
def transcriptomics(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .h5ad of cells, wells or images.")],
    perturbation: Annotated[str, typer.Option(help="Column of obs: what was done to a row.")],
    control: Annotated[str, typer.Option(help="Its value that says control, such as DMSO.")],
    batch: Annotated[str, typer.Option(help="Column of obs: rows of one batch were measured together.")],
    more_perturbations: Annotated[
        list[str] | None,
        typer.Option("--more-perturbations", help="Further column, such as a second guide; may be repeated."),
    ] = None,
    separator: Annotated[str, typer.Option(help="Between several perturbations in one value, such as |.")] = "",
    several: Annotated[
        Literal["exclude", "combination", "each"],
        typer.Option(help="Rows with several: left out (counted), a perturbation of their own, or counted for each."),
    ] = "exclude",
    values: Annotated[
        Literal["counts", "features", "scaled"],
        typer.Option(help="What the matrix holds; scaled are features of several units, which are standardised."),
    ] = "counts",
    layer: Annotated[str, typer.Option(help="Layer that holds the matrix; X where empty.")] = "",
    matrix_key: Annotated[
        str, typer.Option(help="Key of obsm that is the matrix instead, such as pixel_statistics of an export.")
    ] = "",
    obsm: Annotated[list[str] | None, typer.Option(help="Key of an embedding to score; may be repeated.")] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(help="Built-in: pca, hvg_pca, scvi, random, scrambled_pca, scrambled_pca_within_batch."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="All six where none is given; known_relations where there are --relations.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of splits and draws; 0, 1 and 2 by default.")] = None,
    post_processing: Annotated[
        list[str] | None, typer.Option(help="none, centred (the default), centre_scaled, tvn, or an alignment's name.")
    ] = None,
    relations: Annotated[
        list[Path] | None, typer.Option(help="Table with the columns entity1 and entity2; may be repeated.")
    ] = None,
    is_small: Annotated[
        bool, typer.Option("--few-rows", help="Settings for hundreds of rows, such as wells, not for many cells.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of BenchmarkConfig, such as --set perplexity=30."),
    ] = None,
    name: Annotated[str, typer.Option(help="What rankings call the screen; the file's name where empty.")] = "",
    parquet: Annotated[Path | None, typer.Option(help="Write the rows, with all columns, to this file too.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Where the page goes; report/transcriptomics below the root by default.")
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="Table of each perturbation, .csv or .parquet; by default next to the page."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Score embeddings of a perturbation screen on six tasks, with principal components and noise, and rank them."""
    from cytolake.benchmark.relations.relation_files import read_relations
    from cytolake.benchmark.transcriptomics import TASKS, BenchmarkConfig, ScreenSpec, few_rows
    from cytolake.benchmark.transcriptomics.scores import score_expression_screen
    from cytolake.benchmark.transcriptomics.signal_targets import write_targets
    from cytolake.reports.transcriptomics_page import FOLDER, file_stem, transcriptomics_text, write_transcriptomics

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told():
        spec = ScreenSpec(
            perturbation=perturbation,
            control=control,
            batch=batch,
            values=values,
            layer=layer or None,
            matrix_key=matrix_key or None,
            embeddings=tuple(obsm or ()),
            more_perturbations=tuple(more_perturbations or ()),
            separator=separator,
            several=several,
        )
        if targets is not None and targets.suffix not in (".csv", ".parquet"):
            raise ValueError(f"--targets {targets}: expected a name that ends in .csv or .parquet.")
        config = apply_overrides(few_rows() if is_small else BenchmarkConfig(), set_ or [])
        related = [read_relations(each) for each in relations or ()]
        catalog = cytolake.catalog.open(root, create=True)  # such a screen needs no ingest
        with stage_progress("transcriptomics", console) as report:
            try:
                scored = score_expression_screen(
                    catalog,
                    path,
                    spec,
                    [*(embedding or ("pca", "random", "scrambled_pca")), *spec.embeddings],
                    task or [each for each in TASKS if related or each != "known_relations"],
                    seed or (0, 1, 2),
                    post_processing=post_processing or ("centred",),
                    relations=related,
                    config=config,
                    name=name,
                    progress=report,
                )
            except ImportError as error:  # an extra that is not installed; the text says which
                raise ValueError(str(error)) from error
        rows = leaderboard(catalog, LeaderboardFilter(pack_id=scored.pack_id))
        if parquet is not None:
            write_parquet(rows, parquet)
        stem = file_stem(name or path.stem)
        folder = Path(FOLDER) if is_uri(str(root)) else catalog.root / stages.REPORT_FOLDER / FOLDER
        page = page or folder / f"{stem}.html"
        of_targets = scored.target_rows()
        targets = targets or page.with_name(f"{page.stem}_perturbations.csv")
        if of_targets:
            write_targets(of_targets, targets)
        shown = [row for row in rows.to_pylist() if row["pack_id"] == scored.pack_id]
        write_transcriptomics(
            page,
            f"Transcriptomics: {name or path.stem}",
            shown,
            of_targets,
            notes=scored.notes(),
            left_out=list(scored.reasons()),
            targets_file=targets.name if of_targets else "",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(transcriptomics_text(shown))
    for note in scored.notes():
        console.print(escape(note), style="yellow")
    for what, why in scored.reasons():
        console.print(f"left out: {escape(what)}: {escape(why)}", style="yellow")
    console.print(f"{scored.n_new:,} new scores in {escape(catalog.place)}")
    if of_targets:
        console.print(f"perturbations {escape(str(targets))}")
    console.print(f"page {escape(str(page))}")


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(help="A .h5ad file, or a .parquet or .csv file of Metadata_* and feature columns.")
    ],
    representation: Annotated[
        list[str] | None, typer.Option(help="Id of a representation; several for .h5ad, each a key of obsm.")
    ] = None,
    model: Annotated[str, typer.Option(help="Every block and pooling of this model_id too (.h5ad).")] = "",
    level: Annotated[Literal["well", "crop"], typer.Option(help="Profiles of wells or embeddings of crops.")] = "well",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write embeddings for other tools: AnnData with a block in each obsm key, or a profiling table."""
    from cytolake.exchange.export import export_anndata, export_csv, export_parquet, representations_of

    with bad_input_told():
        catalog = cytolake.catalog.open(root)
        ids = list(dict.fromkeys([*(representations_of(catalog, model) if model else ()), *(representation or ())]))
        if path.suffix == ".h5ad" and ids:
            export_anndata(catalog, ids, path, level=level)
        elif path.suffix == ".parquet" and len(ids) == 1:
            export_parquet(catalog, ids[0], path, level=level)
        elif path.name.lower().endswith((".csv", ".csv.gz")) and len(ids) == 1:
            export_csv(catalog, ids[0], path, level=level)
        else:
            raise ValueError(
                f"{path}: found {len(ids)} representations, expected one or more for .h5ad and exactly one for "
                ".parquet, .csv and .csv.gz. Give --representation ID, as in the table representations."
            )
    Console(highlight=False, soft_wrap=True).print(f"{len(ids)} representations in {path}")


def _print_quarantine(console: Console, catalog: cytolake.catalog.Catalog, screens: set[str]) -> None:
    """What was not understood in imported tables of wells of these screens."""
    rows = catalog.sql(
        "SELECT q.plate, q.well, q.problem, q.found, q.next_step FROM quarantine q JOIN plates p USING (plate_id) "
        "JOIN these ON these.screen = p.screen WHERE p.reader = 'table' ORDER BY q.plate, q.well, q.problem",
        these=pa.table({"screen": sorted(screens)}),
    ).to_pylist()
    for row in rows[:8]:
        place = f"plate {row['plate']}{', well ' + row['well'] if row['well'] else ''}"
        text = f"{place}: {row['problem'].replace('_', ' ')}: {row['found']}. {row['next_step']}"
        console.print(f"  [yellow]{escape(text)}[/]")
    if len(rows) > 8:
        console.print(f"  [dim]{len(rows) - 8:,} more rows of the table quarantine[/]")


@app.command(name="import")
def import_table(
    paths: Annotated[
        list[Path], typer.Argument(help="A .parquet, .csv, .csv.gz or .h5ad file, or DeepProfiler's .npz files.")
    ],
    name: Annotated[str, typer.Option(help="What the leaderboard calls it, such as efficientnet_b0.")],
    key: Annotated[str, typer.Option(help="Of obsm in an .h5ad file; X where empty.")] = "",
    screen: Annotated[str, typer.Option(help="Of all rows, where plates of several screens share a name.")] = "",
    pack_id: Annotated[str, typer.Option(help="Rows with crop ids: the pack whose crops they are.")] = "",
    rxrx3_core: Annotated[
        Path | None,
        typer.Option("--rxrx3-core", help="Its metadata_rxrx3_core.csv: the wells come in too, without images."),
    ] = None,
    rxrx1: Annotated[Path | None, typer.Option("--rxrx1", help="Its metadata.csv: the same.")] = None,
    wells: Annotated[
        Path | None, typer.Option(help="The same of any screen: a plate map with a column plate; with --screen.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="RxRx: leave out wells and vectors without a counterpart.")
    ] = False,
    by: Annotated[
        Literal["well", "gene", "perturbation"],
        typer.Option(
            help="What a row is of; by gene or perturbation there are no wells, and --screen names the study."
        ),
    ] = "well",
    leave_out_missing: Annotated[
        bool, typer.Option("--leave-out-missing", help="Leave out features that lack a value in some row.")
    ] = False,
    label_objects: Annotated[
        bool,
        typer.Option("--label-objects", help="Rows are cells with labels of their own: take these too."),
    ] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Take another tool's embeddings into the catalog, to be ranked with cytolake's own."""
    from cytolake.catalog.ingest.published_wells import import_wells
    from cytolake.exchange.external import import_embeddings, read_external, wells_matched
    from cytolake.exchange.published_screens import Release, read_release, read_wells_of_plate_map
    from cytolake.screens.rxrx import CONFLICTS

    console = Console(highlight=False, soft_wrap=True)
    if by != "well":
        from cytolake.exchange.perturbation_profiles import import_perturbations, read_perturbation_table

        with bad_input_told():
            if len(paths) != 1 or rxrx3_core or rxrx1 or wells or pack_id:
                raise ValueError(f"--by {by}: expected one file, and no wells or pack. Leave the other options out.")
            profiles = read_perturbation_table(paths[0], by)
            made = import_perturbations(cytolake.catalog.open(root, create=True), profiles, name, screen=screen)
        console.print(f"{name} is representation {made}: {len(profiles.names):,} {by}s")
        return
    releases: dict[Release, Path | None] = {"rxrx3-core": rxrx3_core, "rxrx1": rxrx1}
    given = [(release, path) for release, path in releases.items() if path is not None]
    with bad_input_told():
        if len(given) + (wells is not None) > 1 or (given and len(paths) > 1):
            raise ValueError(
                "several sources of wells, or several files of embeddings for one: expected one of --rxrx3-core, "
                "--rxrx1 and --wells, and for the RxRx screens one file. Import them one after the other."
            )
        of_wells = None
        if given:
            ((release, source),) = given
            of_wells, table = read_release(release, source, paths[0], screen=screen, allow_missing=allow_missing)
        else:
            table = read_external(paths, key, leave_out_missing=leave_out_missing, label_objects=label_objects)
            if table.n_left_out:
                console.print(f"{table.n_left_out:,} features that lack values in some rows were left out")
            if wells is not None:
                source, of_wells = wells, read_wells_of_plate_map(wells, screen)
        catalog = cytolake.catalog.open(root, create=of_wells is not None)
        if of_wells is not None:
            n_wells = import_wells(catalog, of_wells, str(source))
            console.print(f"{n_wells:,} wells without images came in, {of_wells.num_rows - n_wells:,} were there")
            if n_wells:
                _print_quarantine(console, catalog, set(of_wells["screen"].to_pylist()))
            if CONFLICTS in of_wells.column_names:
                n_conflicts = sum(bool(each) for each in of_wells[CONFLICTS].to_pylist())
                console.print(f"  [yellow]beware[/] {n_conflicts:,} wells lack labels that their sites disagree on")
        made = import_embeddings(catalog, table, name, screen=screen, pack_id=pack_id)
        matched = wells_matched(catalog, made)
    console.print(f"{name} is representation {made}")
    if label_objects:
        labels, of_row, problems = table.object_labels
        n_kinds = len({labels[i].perturbation for i in of_row.tolist() if i >= 0} - {""})
        n_labelled = int((of_row >= 0).sum())
        console.print(f"  {n_labelled:,} of {len(of_row):,} cells have labels, of {n_kinds:,} perturbations")
        for problem in problems[:8]:
            console.print(f"  [yellow]{problem}[/]")
    for plates, n_matched, n_wells in matched:
        console.print(f"  {plates}: vectors of {n_matched:,} of {n_wells:,} wells")
    if any(n_matched < n_wells for _, n_matched, n_wells in matched):
        console.print(
            "  [yellow]beware[/] wells without a vector: rankings of profiles compare representations of the same "
            "wells, so this one has rankings of its own"
        )


@app.command()
def align(
    representation: Annotated[str, typer.Argument(metavar="REPRESENTATION_ID", help="Of the table representations.")],
    variant: Annotated[Variant, typer.Option(help="Such as tvn_vcb, pca_cs or centre_scale.")],
    level: Annotated[
        Literal["well", "crop"], typer.Option(help="Fitted on, and written for: profiles of wells, or every crop too.")
    ] = "well",
    by: Annotated[Literal["plate", "batch"], typer.Option(help="Whose negative controls.")] = "plate",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of AlignmentConfig, as missing_controls=all_wells."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Align a representation on its negative controls; the result is a representation of its own.

    On a cluster its parts are tasks: `ray job submit --working-dir . -- python -m cytolake.cli align ...`
    """
    from cytolake.embed.aggregate import known_representation
    from cytolake.embed.align import align_representation
    from cytolake.embed.alignment.kept import load_alignment

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), cluster_session(), stage_progress("align", console) as report:
        catalog = cytolake.catalog.open(root)
        config = apply_overrides(AlignmentConfig(variant=variant), set_ or [])
        made = align_representation(catalog, representation, config, level=level, align_by=by, progress=report)
        row = known_representation(catalog, made)
        fitted = load_alignment(catalog.root, row["alignment_id"])
    n_controls = sum(batch.n_controls for batch in fitted.batches)
    console.print(
        f"representation {made}: {row['alignment_variant']}, {row['dim']:,} features; {len(fitted.batches):,} "
        f"{by} groups, {n_controls:,} control {level}s; fitted transform {row['alignment_id']}"
    )
    if fitted.batches_on_all_wells:
        console.print(
            f"[yellow]too few controls, so aligned on all their {level}s[/]: "
            f"{escape(', '.join(fitted.batches_on_all_wells))}"
        )


@app.command()
def audit(
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of wells that must still be predicted; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Nuisance that should not be predicted, such as plate; may be repeated.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias of the promoted representation.")] = CHAMPION,
    page: Annotated[Path | None, typer.Option(help="The page; report/audit.html of the root by default.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Also write every figure there.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Of the audit, as test_crops=1000.")
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """See what the promoted encoder is blind to, compared with the untrained one; propose augmentations.

    No training. --keep perturbation --ignore plate: which knobs would teach an encoder to ignore plates and still
    predict perturbations.
    """
    from cytolake.reports.audit_page import PAGE_FILE, audit_table, audit_text, proposal_text, write_audit
    from cytolake.tune.augmentation_design import propose_augmentations
    from cytolake.tune.invariance_audit import AuditConfig, audit_encoders

    console = Console(highlight=False, soft_wrap=True)
    kept, ignored = tuple(keep or ("perturbation",)), tuple(ignore or ("plate",))
    with bad_input_told():
        catalog = cytolake.catalog.open(root)
        card = resolve_alias(TrackingConfig().at(catalog.root), alias)
        # Nuisances of the layout cannot be held out: a plate that was never seen cannot be told.
        labels: list[tuple[str, SplitBy]] = [
            (name, "well" if name in NUISANCES else "plate") for name in (*kept, *ignored)
        ]
        config = apply_overrides(AuditConfig(labels=tuple(labels)), set_ or [])
        pack = Pack.open(catalog.root / "packs" / card.pack_id)
        encoders = {"trained": card.encoder_path, **untrained_twin(catalog, card)}
        with stage_progress("audit", console) as report:
            found = audit_encoders(catalog, pack, encoders, card.block, card.pooling, config, report)
        proposals = propose_augmentations(found, "trained", kept, ignored)
        about = f"{card.name} version {card.version}, block {card.block}, {card.pooling} pooling."
        place = page or catalog.root / stages.REPORT_FOLDER / PAGE_FILE
        written = write_audit(place, "Audit of invariance", found, about, proposals, kept, ignored)
        if parquet is not None:
            write_parquet(audit_table(found), parquet)
    console.print(audit_text(found, "trained"))
    console.print()
    console.print(proposal_text(proposals))
    for name, why in found.skipped.items():
        console.print(f"  [dim]not tried: {escape(name)}: {escape(why)}[/]")
    console.print(f"page {escape(str(written))}")


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="Folder of a screen, or s3://bucket/folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of ScreenSource, such as --set layout=phenix."),
    ] = None,
    crop_size: Annotated[int, typer.Option(help="Edge of the crops to be counted, pixels.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a screen holds, which layout fits, and what an ingest would take. Writes nothing."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with bad_input_told():
        name = path.rstrip("/").rsplit("/", 1)[-1] if is_uri(path) else Path(path).expanduser().resolve().name
        source = apply_overrides(ScreenSource(screen=name or "screen", path=path), set_ or [])
        found = inspect_screen(source, channel_vocabulary().aliases, layout_presets(), crop_size)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        else:
            render(found, console)
    if not found.can_ingest:
        raise typer.Exit(1)


@app.command()
def init(
    path: Annotated[str, typer.Argument(help="Folder of a screen, or s3://bucket/folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of ScreenSource, such as --set layout=phenix."),
    ] = None,
    recipe_file: Annotated[Path, typer.Option(help="Where the recipe goes.")] = Path(RECIPE_FILE),
) -> None:
    """Look at a screen and write a recipe for it: layout, channels, crop size, label and split."""
    from cytolake.pipeline.first_recipe import propose_recipe, recipe_name, recipe_text, write_recipe

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told():
        folder = path if is_uri(path) else str(Path(path).expanduser().resolve())
        name = recipe_name(folder)
        source = apply_overrides(ScreenSource(screen=name, path=path), set_ or [])
        proposal = propose_recipe(source, name)
        text = recipe_text(proposal, str(recipe_file))
        write_recipe(recipe_file, text)
        build_recipe(str(recipe_file))
    console.print(escape(text), end="")
    for problem in proposal.inspection.problems:
        console.print(f"[yellow]{problem.n:,} x {problem.problem}[/]  {escape(problem.example)}")
    for advice in proposal.inspection.advice:
        console.print(f"[cyan]Hint[/]  {escape(advice)}")
    option = "" if recipe_file == Path(RECIPE_FILE) else f" --recipe {recipe_file}"
    console.print(f"\nwritten to {escape(str(recipe_file))}. Next: cytolake ingest{escape(option)}")


@app.command()
def tag(
    name: Annotated[str, typer.Argument(help="Such as paper-2026.")],
    note: Annotated[str, typer.Option(help="What the tag is for.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Give the catalog as it is now a name: `cytolake.catalog.open(root).at(name)` reads it so for ever."""
    with bad_input_told():
        versions = cytolake.catalog.open(root).tag(name, note)
    Console(highlight=False).print(f"{escape(name)}: {sum(versions.values()):,} commits of {len(versions)} tables")


@app.command()
def vacuum(
    older_than_h: Annotated[float, typer.Option(help="Leave what is younger, hours: a run may be writing it.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Remove what killed runs left behind. Every version of every table stays readable."""
    from cytolake.catalog.corrections.vacuum import vacuum as remove_orphans

    with bad_input_told():
        report = remove_orphans(cytolake.catalog.open(root), older_than_h, is_dry_run=dry_run)
    console = Console(highlight=False, soft_wrap=True)
    for path in (*report.files, *report.staged):
        console.print(f"  {escape(path)}", style="dim")
    console.print(
        f"{len(report.files)} orphaned files and {len(report.staged)} staging folders "
        f"{'would be' if dry_run else 'were'} removed, {report.n_bytes / 1e6:,.1f} MB; {report.n_too_young} more are "
        f"younger than {older_than_h:g} h"
    )


@qc.command("judge")
def qc_judge(
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Such as --set profile=default.")
    ] = None,
    detector: Annotated[str, typer.Option(help="Judge with this file of `qc train` instead of declared rules.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Judge every plate that these rules, or this detector, have not judged yet."""
    from cytolake.qc.verdicts import QcConfig, judge_sites

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("qc", console) as report:
        catalog = cytolake.catalog.open(root)
        if detector:
            from cytolake.qc.detector.detector import ArtefactDetector
            from cytolake.qc.detector.learned import judge_with_detector

            qc_id = judge_with_detector(catalog, ArtefactDetector.load(detector), report)
        else:
            qc_id = judge_sites(catalog, apply_overrides(QcConfig(), set_ or []), report)
    rows = catalog.sql(
        f"select rule, level, count(*) judged, count(*) filter (not is_pass) failed from qc_verdicts "
        f"where qc_id = '{qc_id}' group by rule, level order by failed desc, rule"
    ).to_pylist()
    shown = Table("rule", "level", "judged", "failed", box=None, header_style="dim")
    for row in rows:
        shown.add_row(row["rule"], row["level"] or "site", f"{row['judged']:,}", f"{row['failed']:,}")
    console.print(shown)
    console.print(f"qc_id {qc_id}")


@qc.command("page")
def qc_page(
    qc_id: Annotated[str, typer.Argument(help="Of `qc judge`; empty takes the newest.")] = "",
    folder: Annotated[str, typer.Option(help="Where the page goes; empty means <root>/report.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write the page of plate maps, failed rules and worst sites."""
    from cytolake.qc.newest import newest_qc_id
    from cytolake.reports.qc_page import write_qc_page

    with bad_input_told():
        catalog = cytolake.catalog.open(root)
        page = write_qc_page(
            catalog, qc_id or newest_qc_id(catalog), Path(folder) if folder else catalog.root / "report"
        )
    typer.echo(page)


@qc.command("label")
def qc_label(
    folder: Annotated[Path, typer.Argument(help="Where labels.html and labels.csv go.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Such as --set n_sites=100 --set choose=uncertain."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write a sheet of sites to label; `qc read` takes the filled-in labels.csv."""
    from cytolake.qc.labels import LabelSheetConfig, export_label_sheet
    from cytolake.reports.label_sheet import write_label_page

    with bad_input_told():
        config = apply_overrides(LabelSheetConfig(), set_ or [])
        page = write_label_page(export_label_sheet(cytolake.catalog.open(root), folder, config))
    typer.echo(f"{page}: label there and save its labels.csv, or fill in {page.with_name('labels.csv')} by hand")


@qc.command("read")
def qc_read(
    sheet: Annotated[Path, typer.Argument(help="The filled-in labels.csv.")],
    labelled_by: Annotated[str, typer.Option(help="Who looked.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Take the labels of a sheet into the table qc_labels."""
    from cytolake.qc.labels import read_label_sheet

    with bad_input_told():
        n_sites = read_label_sheet(cytolake.catalog.open(root), sheet, labelled_by)
    typer.echo(f"{n_sites} sites labelled")


@qc.command("train")
def qc_train(
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of QcTrainConfig, such as --set detector.head=knn."),
    ] = None,
    out: Annotated[str, typer.Option(help=f"File of the detector; empty means <root>/{DETECTOR}.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Train an artefact detector on the labels of the catalog; `qc judge --detector` uses it."""
    from cytolake.qc.detector.learned import QcTrainConfig, train_detector

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("train", console) as report:
        catalog = cytolake.catalog.open(root)
        detector = train_detector(catalog, apply_overrides(QcTrainConfig(), set_ or []), report)
        path = Path(out) if out else catalog.root / DETECTOR
        detector.save(path)
    console.print(f"{path}: {detector.config.head} on {len(detector.features)} features: {', '.join(detector.classes)}")


@qc.command("efficiency")
def qc_efficiency(
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of QcTrainConfig: --set simulated_per_kind=20."),
    ] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="A field of LabelEfficiencyConfig: --curve labels_per_class=1,5,10."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Measure how good a detector is by the number of labels, on plates held out; the curve goes into the report."""
    from cytolake.pipeline.label_curve import LabelCurveConfig, measure_label_curve
    from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
    from cytolake.qc.detector.learned import QcTrainConfig

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("efficiency", console) as report:
        config = LabelCurveConfig(
            train=apply_overrides(QcTrainConfig(), set_ or []),
            curve=apply_overrides(LabelEfficiencyConfig(), curve or []),
        )
        found, path = measure_label_curve(cytolake.catalog.open(root), config, report)
    shown = Table("labels of each class", "AUROC", "95 % interval", box=None, header_style="dim")
    for point in found.curve("auroc"):
        shown.add_row(str(point.n_labels), f"{point.value:.3f}", f"{point.low:.3f} to {point.high:.3f}")
    console.print(shown)
    console.print(str(path))


@qc.command("compare-encoders")
def qc_compare_encoders(
    encoder: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER...", help="resnet18, resnet18=WEIGHTS, encoder.safetensors, champion, a model_id."
        ),
    ],
    labels: Annotated[
        Literal["people", "plate_map", "focus", "simulated"],
        typer.Option(help="Where labels are from: qc_labels, a plate-map column, focal planes, or artefacts put in."),
    ] = "people",
    head: Annotated[
        list[str] | None, typer.Option(help="Head; may be repeated, the first is that of the result. All by default.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Of EncoderComparisonConfig: --set curve.seeds=0,1,2."),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="The page; report/qc_encoders.html of the root by default.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write every score to this .csv or .parquet file.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Compare encoders as features of the artefact detector with pixel statistics, on plates held out.

    Pixel statistics are always in it. A model of timm without a weights file has random weights and is called
    untrained; nothing is downloaded. An encoder of ours comes with its untrained counterpart.
    """
    from cytolake.pipeline.encoder_comparison import run_comparison

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), ray_session(RayConfig()), stage_progress("compare", console) as report:
        options = [f"labels={labels}", *([f"heads={','.join(head)}"] if head else []), *(set_ or [])]
        written = run_comparison(cytolake.catalog.open(root), encoder, options, page, table, report)
    Console(width=None if sys.stdout.isatty() else 160).print(written.text)
    console.print(escape(written.headline))
    for note in written.notes:
        console.print(f"  [dim]{escape(note)}[/]")
    console.print(f"{written.n_scores:,} scores in the scores table; page {escape(str(written.page))}")


@curation.command("list")
def curation_list(root: Root = DEFAULT_ROOT) -> None:
    """List the curations of a catalog, newest first."""
    with bad_input_told():
        runs = cytolake.catalog.open(root).table("curation_runs").sort_by([("curated_at", "descending")]).to_pylist()
    shown = Table("curation", "id", "made", "kept", "of", box=None, header_style="dim")
    for run in runs:
        shown.add_row(
            run["curation"],
            run["curation_id"][:12],
            f"{run['curated_at']:%Y-%m-%d %H:%M}",
            f"{run['n_kept']:,}",
            f"{run['n_considered']:,}",
        )
    Console().print(shown)


@curation.command("diff")
def curation_diff(
    first: Annotated[str, typer.Argument(help="Id, its beginning, or a name: the newest of it.")],
    second: Annotated[str, typer.Argument(help="The same; the same name twice compares its newest two.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Say which crops came in and went between two curations, and by which rule."""
    from cytolake.cli.curation_diff import print_curation_diff
    from cytolake.curation.diff import diff_curations

    with bad_input_told():
        print_curation_diff(diff_curations(cytolake.catalog.open(root), first, second), Console(highlight=False))


@pack.command("verify")
def pack_verify(path: Annotated[Path, typer.Argument(help="Folder of a pack.")]) -> None:
    """Compare every file of a pack with its checksum."""
    from cytolake.packs.pack import Pack

    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("verify", console) as report:
        opened = Pack.open(path)
        problems = opened.verify(report)
    for problem in problems:
        console.print(f"[red]damaged[/] {escape(problem)}")
    if problems:
        raise typer.Exit(1)
    console.print(f"{opened.n_crops:,} crops, every file as it was written")


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Option(help="Whose key it is, such as lab; limits and logs use it.")],
    scopes: Annotated[str, typer.Option(help="Such as embed,search; all where left out.")] = "",
    expires: Annotated[str, typer.Option(help="Day from which it is refused, such as 2027-01-01.")] = "",
) -> None:
    """Make a key: print it once, for its holder, and the line for the key file (CYTOLAKE_API_KEYS_FILE)."""
    from cytolake.serving.keys import new_key, parse_day

    with bad_input_told():
        wanted = [scope for scope in scopes.split(",") if scope]
        plain, key = new_key(name, wanted, parse_day(expires) if expires else None)
    typer.echo(f"key, shown this once: {plain}", err=True)
    typer.echo(key.line())


def _print_rankings(rows: pa.Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160).print(leaderboard_text(rows))
