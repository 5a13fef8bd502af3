"""`cytolake qc`: verdicts, the page, labels, and the learned detector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, set_option
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT

qc = typer.Typer(help="Quality control: verdicts, the page, labels, the learned detector.", no_args_is_help=True)

DETECTOR = "qc/detector.safetensors"
"""Where `qc train` puts the detector, below the root."""


@qc.command("judge")
def qc_judge(
    set_: Annotated[list[str] | None, set_option("Such as --set profile=default.")] = None,
    detector: Annotated[str, typer.Option(help="Judge with this file of `qc train` instead of declared rules.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Judge every plate that these rules, or this detector, have not judged yet."""
    import cytolake.catalog
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.qc.verdicts import QcConfig, judge_sites

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), stage_progress("qc", console) as report:
        catalog = cytolake.catalog.open(root)
        if detector:
            from cytolake.qc.detector.detector import ArtefactDetector
            from cytolake.qc.detector.learned import judge_with_detector

            qc_id = judge_with_detector(catalog, ArtefactDetector.load(detector), report)
        else:
            qc_id = judge_sites(catalog, apply_overrides(QcConfig(), set_ or []), report)
    rows = catalog.sql(
        "select rule, level, count(*) judged, count(*) filter (not is_pass) failed from qc_verdicts "
        "where qc_id = $qc_id group by rule, level order by failed desc, rule",
        parameters={"qc_id": qc_id},
    ).to_pylist()
    shown = Table("rule", "level", "judged", "failed", box=None, header_style="dim")
    for row in rows:
        shown.add_row(escape(row["rule"]), row["level"] or "site", f"{row['judged']:,}", f"{row['failed']:,}")
    console.print(shown)
    console.print(f"qc_id {qc_id}")


@qc.command("page")
def qc_page(
    qc_id: Annotated[str, typer.Argument(help="Of `qc judge`, or its beginning; the newest where none is given.")] = "",
    folder: Annotated[str, typer.Option(help="Where the page goes; empty means <root>/report.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write the page of plate maps, failed rules and worst sites."""
    import cytolake.catalog
    from cytolake.qc.newest import newest_qc_id, stored_qc_id
    from cytolake.reports.qc_page import write_qc_page

    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        chosen = stored_qc_id(catalog, qc_id) if qc_id else newest_qc_id(catalog)
        page = write_qc_page(catalog, chosen, Path(folder) if folder else catalog.root / "report")
    typer.echo(page)


@qc.command("label")
def qc_label(
    folder: Annotated[Path, typer.Argument(help="Where labels.html and labels.csv go.")],
    set_: Annotated[list[str] | None, set_option("Such as --set n_sites=100 --set choose=uncertain.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write a sheet of sites to label; `qc read` takes the filled-in labels.csv."""
    import cytolake.catalog
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.qc.labels import LabelSheetConfig, export_label_sheet
    from cytolake.reports.label_sheet import write_label_page

    with exits_on_bad_input():
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
    import cytolake.catalog
    from cytolake.qc.labels import read_label_sheet

    with exits_on_bad_input():
        n_sites = read_label_sheet(cytolake.catalog.open(root), sheet, labelled_by)
    typer.echo(f"{count(n_sites, 'site')} labelled")


@qc.command("train")
def qc_train(
    set_: Annotated[list[str] | None, set_option("A field of QcTrainConfig, such as --set detector.head=knn.")] = None,
    out: Annotated[str, typer.Option(help=f"File of the detector; empty means <root>/{DETECTOR}.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Train an artefact detector on the labels of the catalog; `qc judge --detector` uses it."""
    import cytolake.catalog
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.qc.detector.learned import QcTrainConfig, train_detector

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), stage_progress("train", console) as report:
        catalog = cytolake.catalog.open(root)
        detector = train_detector(catalog, apply_overrides(QcTrainConfig(), set_ or []), report)
        path = Path(out) if out else catalog.root / DETECTOR
        detector.save(path)
    classes = ", ".join(detector.classes)
    about = f"{path}: {detector.config.head} on {len(detector.features)} features: {classes}"
    console.print(escape(about))


@qc.command("efficiency")
def qc_efficiency(
    set_: Annotated[list[str] | None, set_option("A field of QcTrainConfig: --set simulated_per_kind=20.")] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="A field of LabelEfficiencyConfig: --curve labels_per_class=1,5,10."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Measure how good a detector is by the number of labels, on plates held out; the curve goes into the report."""
    import cytolake.catalog
    from cytolake.pipeline.label_curve import LabelCurveConfig, measure_label_curve
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
    from cytolake.qc.detector.learned import QcTrainConfig

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), stage_progress("efficiency", console) as report:
        config = LabelCurveConfig(
            train=apply_overrides(QcTrainConfig(), set_ or []),
            curve=apply_overrides(LabelEfficiencyConfig(), curve or []),
        )
        found, path = measure_label_curve(cytolake.catalog.open(root), config, report)
    shown = Table("labels of each class", "AUROC", "95 % interval", box=None, header_style="dim")
    for point in found.curve("auroc"):
        shown.add_row(str(point.n_labels), f"{point.value:.3f}", f"{point.low:.3f} to {point.high:.3f}")
    console.print(shown)
    console.print(escape(str(path)))


@qc.command("compare-encoders")
def qc_compare_encoders(
    encoder: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER...",
            help="resnet18, resnet18=WEIGHTS, encoder.safetensors, champion, a model_id or its beginning.",
        ),
    ],
    labels: Annotated[
        Literal["people", "plate_map", "focus", "simulated"],
        typer.Option(help="Where labels are from: qc_labels, a plate-map column, focal planes, or artefacts put in."),
    ] = "people",
    head: Annotated[
        list[str] | None, typer.Option(help="Head; may be repeated, the first is that of the result. All by default.")
    ] = None,
    set_: Annotated[list[str] | None, set_option("Of EncoderComparisonConfig: --set curve.seeds=0,1,2.")] = None,
    page: Annotated[Path | None, typer.Option(help="The page; report/qc_encoders.html of the root by default.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write every score to this .csv or .parquet file.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Compare encoders as features of the artefact detector with pixel statistics, on plates held out.

    Pixel statistics are always in it. A model of timm without a weights file has random weights and is called
    untrained; nothing is downloaded. An encoder of ours comes with its untrained counterpart.
    """
    import cytolake.catalog
    from cytolake.pipeline.encoder_comparison import run_comparison
    from cytolake.pipeline.progress import stage_progress
    from cytolake.pipeline.session import RayConfig, ray_session

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), ray_session(RayConfig()), stage_progress("compare", console) as report:
        options = [f"labels={labels}", *([f"heads={','.join(head)}"] if head else []), *(set_ or [])]
        written = run_comparison(cytolake.catalog.open(root), encoder, options, page, table, report)
    Console(width=None if sys.stdout.isatty() else 160).print(written.text)
    console.print(escape(written.headline))
    for note in written.notes:
        console.print(f"  [dim]{escape(note)}[/]")
    console.print(f"{count(written.n_scores, 'score')} in the scores table; page {escape(str(written.page))}")
