"""Commands that score stored representations and rank them."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, set_option
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT

if TYPE_CHECKING:
    import pyarrow as pa

Parquet = Annotated[Path | None, typer.Option(help="Write the rows, with all columns, to this file too.")]


def score(
    representation: Annotated[list[str], typer.Argument(metavar="ID_OR_NAME...", help="Or the name of an import.")],
    set_: Annotated[list[str] | None, set_option("Of ProfileBenchmarkConfig: --set alignments=none,centre.")] = None,
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
    parquet: Parquet = None,
    page: Annotated[Path | None, typer.Option(help="Write them as an HTML page too.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Score the well profiles of any representations, and print the rankings that they are in."""
    from pyarrow.parquet import write_table as write_parquet

    import cytolake.catalog
    from cytolake.benchmark.leaderboard import LeaderboardFilter
    from cytolake.benchmark.leaderboard import leaderboard as ranked
    from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig, names_in
    from cytolake.benchmark.profiles.score import score_profiles
    from cytolake.catalog.representations import find_representation
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.pipeline.session import RayConfig, ray_session
    from cytolake.pipeline.summaries import print_caveats
    from cytolake.reports.leaderboard_page import write_leaderboard

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input():
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
        ids = [str(each["representation_id"]) for each in found]
        console.print(f"score: {count(len(ids), 'representation')}, tasks {escape(', '.join(config.tasks))}")
        # one representation is one task, which needs no Ray
        with ray_session(RayConfig()) if len(ids) > 1 else nullcontext(), stage_progress("score", console) as report:
            scores = score_profiles(catalog, ids, config, report, of_any_pooling=True)
        console.print(f"{count(len(scores.rows), 'score')} of well profiles in the scores table")
        print_caveats(console, scores)
        rows = ranked(catalog, LeaderboardFilter(representation_ids=tuple(ids)))
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


def linear_probe(
    representation: Annotated[list[str], typer.Argument(metavar="ID_OR_NAME...", help="Or the name of an import.")],
    label: Annotated[str, typer.Option(help="Column of wells to predict.")] = "perturbation",
    set_: Annotated[list[str] | None, set_option("Of ProbeConfig: --set split=well.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Predict a label of wells on held-out plates from stored representations, such as imports, with a linear probe."""
    import cytolake.catalog
    from cytolake.benchmark.linear_probe import PROBE_METRICS, ProbeConfig
    from cytolake.benchmark.stored_probe import probe_stored
    from cytolake.catalog.representations import find_representation
    from cytolake.pipeline.overrides import apply_overrides

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input():
        config = apply_overrides(ProbeConfig(label=label), set_ or [])
        catalog = cytolake.catalog.open(root)
        console.print(f"linear probe: {count(len(representation), 'representation')}, label {escape(config.label)}")
        for each in representation:
            result = probe_stored(catalog, str(find_representation(catalog, each)["representation_id"]), config)
            scores = [f"{metric} {result.summary[metric].value:.3f}" for metric in PROBE_METRICS]
            console.print(f"{escape(each)}: {', '.join(scores)} ({result.n_classes} classes of {escape(config.label)})")


def recall(
    representation: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="Of an import by gene or perturbation.")],
    relations: Annotated[list[Path], typer.Option(help="Tables of known pairs, as for relation_recall.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Report how many known pairs are in the tails of an imported map of genes; for wells, see `score`."""
    import cytolake.catalog
    from cytolake.benchmark.relations.recall import relationship_recall
    from cytolake.benchmark.relations.relation_files import read_relations
    from cytolake.exchange.perturbation_profiles import read_perturbations

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input():
        found = read_perturbations(cytolake.catalog.open(root), representation)
        rows = relationship_recall(found.vectors, found.names, [read_relations(path) for path in relations])
    for row in rows:
        console.print(
            f"{escape(row.source)}, thresholds {row.thresholds}: recall {row.recall.value:.3f} "
            f"[{row.recall.low:.3f}, {row.recall.high:.3f}], shuffled {row.random:.3f}, {row.n_pairs:,} pairs"
        )


def leaderboard(
    root: Root = DEFAULT_ROOT,
    benchmark: Annotated[str, typer.Option(help="Only this one, such as relation_recall.")] = "",
    label: Annotated[str, typer.Option(help="Only this label or source of relations.")] = "",
    metric: Annotated[str, typer.Option(help="Only this metric.")] = "",
    alignment: Annotated[str, typer.Option(help="Only profiles aligned so.")] = "",
    all_blocks: Annotated[bool, typer.Option("--all-blocks", help="Every block, not each encoder's best.")] = False,
    parquet: Parquet = None,
) -> None:
    """Rank all encoders by every benchmark in the scores table."""
    from pyarrow.parquet import write_table as write_parquet

    import cytolake.catalog
    from cytolake.benchmark.leaderboard import LeaderboardFilter
    from cytolake.benchmark.leaderboard import leaderboard as ranked
    from cytolake.catalog.stale import stale_artefacts

    with exits_on_bad_input():
        wanted = LeaderboardFilter(
            benchmark=benchmark, label=label, metric=metric, alignment=alignment, all_blocks=all_blocks
        )
        catalog = cytolake.catalog.open(root)
        rows = ranked(catalog, wanted)
        if parquet is not None:
            write_parquet(rows, parquet)
        n_stale = sum(each.kind == "score" for each in stale_artefacts(catalog))
        is_empty = not catalog.sql("SELECT score_id FROM scores LIMIT 1").num_rows
    if not rows.num_rows:
        print(
            "There are no scores yet. `cytolake benchmark` scores the representations of a recipe, `cytolake score` "
            "stored ones, such as imports."
            if is_empty
            else "No score fits. Leave out an option of this command, or `cytolake benchmark` adds scores."
        )
        return
    _print_rankings(rows)
    if n_stale:
        print(
            f"{count(n_stale, 'score')} {'is' if n_stale == 1 else 'are'} stale: labels or pixels were corrected "
            "since. `cytolake plates` lists them."
        )


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
    set_: Annotated[list[str] | None, set_option("Of TranscriptomicsConfig: --set perplexity=30.")] = None,
    name: Annotated[str, typer.Option(help="What rankings call the screen; the file's name where empty.")] = "",
    parquet: Parquet = None,
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
    from pyarrow.parquet import write_table as write_parquet

    import cytolake.catalog
    from cytolake.benchmark.leaderboard import LeaderboardFilter
    from cytolake.benchmark.leaderboard import leaderboard as ranked
    from cytolake.benchmark.relations.relation_files import read_relations
    from cytolake.benchmark.transcriptomics import TASKS, ScreenSpec, TranscriptomicsConfig, few_rows
    from cytolake.benchmark.transcriptomics.perturbation_signal import write_targets
    from cytolake.benchmark.transcriptomics.scores import score_expression_screen
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.reports.page import REPORT_FOLDER
    from cytolake.reports.transcriptomics_page import FOLDER, file_stem, transcriptomics_text, write_transcriptomics
    from cytolake.storage.files import is_uri

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input():
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
        config = apply_overrides(few_rows() if is_small else TranscriptomicsConfig(), set_ or [])
        related = [read_relations(each) for each in relations or ()]
        catalog = cytolake.catalog.open(root, create=True)  # such a screen needs no ingest
        embeddings = [*(embedding or ("pca", "random", "scrambled_pca")), *spec.embeddings]
        tasks = task or [each for each in TASKS if related or each != "known_relations"]
        seeds, post_processed = tuple(seed or (0, 1, 2)), tuple(post_processing or ("centred",))
        console.print(
            f"transcriptomics: {len(embeddings)} embeddings ({escape(', '.join(embeddings))}), {len(tasks)} tasks, "
            f"{len(seeds)} seeds, {escape(', '.join(post_processed))}; reading {escape(str(path))}"
        )
        with stage_progress("transcriptomics", console) as report:
            try:
                scored = score_expression_screen(
                    catalog,
                    path,
                    spec,
                    embeddings,
                    tasks,
                    seeds,
                    post_processing=post_processed,
                    relations=related,
                    config=config,
                    name=name,
                    progress=report,
                )
            except ImportError as error:  # an extra that is not installed; the text says which
                raise ValueError(str(error)) from error
        rows = ranked(catalog, LeaderboardFilter(pack_id=scored.pack_id))
        if parquet is not None:
            write_parquet(rows, parquet)
        stem = file_stem(name or path.stem)
        folder = Path(FOLDER) if is_uri(str(root)) else catalog.root / REPORT_FOLDER / FOLDER
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
    console.print(f"{count(scored.n_new, 'new score')} in {escape(catalog.place)}")
    if of_targets:
        console.print(f"perturbations {escape(str(targets))}")
    console.print(f"page {escape(str(page))}")


def _print_rankings(rows: pa.Table) -> None:
    from cytolake.reports.leaderboard_page import leaderboard_text

    Console(width=None if sys.stdout.isatty() else 160).print(leaderboard_text(rows))
