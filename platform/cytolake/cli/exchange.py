"""Commands that import and export the embeddings of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT

if TYPE_CHECKING:
    import cytolake.catalog


def export(
    path: Annotated[
        Path, typer.Argument(help="A .h5ad file, or a .parquet or .csv file of Metadata_* and feature columns.")
    ],
    representation: Annotated[
        list[str] | None,
        typer.Option(help="Id of a representation, or its beginning; several for .h5ad, each a key of obsm."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Every block and pooling of this model_id, or of its beginning, too (.h5ad).")
    ] = "",
    pack_id: Annotated[str, typer.Option(help="Of --model, where several packs were embedded with it.")] = "",
    level: Annotated[
        Literal["well", "crop", "guide", "perturbation"],
        typer.Option(help="One row for each of these; of guides and perturbations the mean of their wells (no .h5ad)."),
    ] = "well",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write embeddings for other tools: AnnData with a block in each obsm key, or a profiling table."""
    import cytolake.catalog
    from cytolake.catalog.representations import find_representation
    from cytolake.exchange.export import export_anndata, export_csv, export_parquet, representations_of

    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        of_model = representations_of(catalog, model, pack_id=pack_id) if model else []
        named = [str(find_representation(catalog, each)["representation_id"]) for each in representation or ()]
        ids = list(dict.fromkeys([*of_model, *named]))
        if path.suffix == ".h5ad" and level in ("guide", "perturbation"):
            raise ValueError(f"{path}: --level {level} goes into .parquet, .csv or .csv.gz, .h5ad has wells or crops.")
        if path.suffix == ".h5ad" and ids:
            export_anndata(catalog, ids, path, level="crop" if level == "crop" else "well")
        elif path.suffix == ".parquet" and len(ids) == 1:
            export_parquet(catalog, ids[0], path, level=level)
        elif path.name.lower().endswith((".csv", ".csv.gz")) and len(ids) == 1:
            export_csv(catalog, ids[0], path, level=level)
        else:
            raise ValueError(
                f"{path}: found {len(ids)} representations, expected one or more for .h5ad and exactly one for "
                ".parquet, .csv and .csv.gz. Give --representation ID, as in the table representations."
            )
    printed = f"{count(len(ids), 'representation')} in {escape(str(path))}"
    Console(highlight=False, soft_wrap=True).print(printed)


def import_(
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
    import cytolake.catalog
    from cytolake.catalog.ingest.published_wells import import_wells
    from cytolake.exchange.external import import_embeddings, read_external, wells_matched
    from cytolake.exchange.published_screens import Release, read_release, read_wells_of_plate_map
    from cytolake.screens.rxrx import CONFLICTS

    console = Console(highlight=False, soft_wrap=True)
    if by != "well":
        from cytolake.exchange.perturbation_profiles import import_perturbations, read_perturbation_table

        with exits_on_bad_input():
            if len(paths) != 1 or rxrx3_core or rxrx1 or wells or pack_id:
                raise ValueError(f"--by {by}: expected one file, and no wells or pack. Leave the other options out.")
            profiles = read_perturbation_table(paths[0], by)
            made = import_perturbations(cytolake.catalog.open(root, create=True), profiles, name, screen=screen)
        console.print(f"{escape(name)} is representation {made}: {len(profiles.names):,} {by}s")
        return
    releases: dict[Release, Path | None] = {"rxrx3-core": rxrx3_core, "rxrx1": rxrx1}
    given = [(release, path) for release, path in releases.items() if path is not None]
    with exits_on_bad_input():
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
            console.print(
                f"{count(n_wells, 'well')} without images came in, {of_wells.num_rows - n_wells:,} were there"
            )
            if n_wells:
                _print_quarantine(console, catalog, set(of_wells["screen"].to_pylist()))
            if CONFLICTS in of_wells.column_names:
                n_conflicts = sum(bool(each) for each in of_wells[CONFLICTS].to_pylist())
                console.print(f"  [yellow]beware[/] {n_conflicts:,} wells lack labels that their sites disagree on")
        made = import_embeddings(catalog, table, name, screen=screen, pack_id=pack_id)
        matched = wells_matched(catalog, made)
    console.print(f"{escape(name)} is representation {made}")
    if label_objects:
        labels, of_row, problems = table.object_labels
        n_kinds = len({labels[i].perturbation for i in of_row.tolist() if i >= 0} - {""})
        n_labelled = int((of_row >= 0).sum())
        console.print(f"  {n_labelled:,} of {len(of_row):,} cells have labels, of {n_kinds:,} perturbations")
        for problem in problems[:8]:
            console.print(f"  [yellow]{escape(str(problem))}[/]")
    for plates, n_matched, n_wells in matched:
        console.print(f"  {escape(plates)}: vectors of {n_matched:,} of {n_wells:,} wells")
    if any(n_matched < n_wells for _, n_matched, n_wells in matched):
        console.print(
            "  [yellow]beware[/] wells without a vector: rankings of profiles compare representations of the same "
            "wells, so this one has rankings of its own"
        )


def _print_quarantine(console: Console, catalog: cytolake.catalog.Catalog, screens: set[str]) -> None:
    """What was not understood in imported tables of wells of these screens."""
    import pyarrow as pa

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
