"""Commands that compute with one representation: align it on controls, audit the encoder behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, set_option
from cytolake.embed.alignment.variants import Variant
from cytolake.pipeline.root import DEFAULT_ROOT


def align(
    representation: Annotated[str, typer.Argument(metavar="REPRESENTATION_ID", help="Of the table representations.")],
    variant: Annotated[Variant, typer.Option(help="Such as tvn_vcb, pca_cs or centre_scale.")],
    level: Annotated[
        Literal["well", "crop"], typer.Option(help="Fitted on, and written for: profiles of wells, or every crop too.")
    ] = "well",
    by: Annotated[Literal["plate", "batch"], typer.Option(help="Whose negative controls.")] = "plate",
    set_: Annotated[list[str] | None, set_option("A field of AlignmentConfig, as missing_controls=all_wells.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Align a representation on its negative controls; the result is a representation of its own.

    On a cluster its parts are tasks: `ray job submit --working-dir . -- python -m cytolake.cli align ...`
    """
    import cytolake.catalog
    from cytolake.catalog.representations import find_representation
    from cytolake.embed.align import align_representation
    from cytolake.embed.alignment.stored import load_alignment
    from cytolake.embed.alignment.variants import AlignmentConfig
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.pipeline.session import cluster_session

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), cluster_session(), stage_progress("align", console) as report:
        catalog = cytolake.catalog.open(root)
        config = apply_overrides(AlignmentConfig(variant=variant), set_ or [])
        made = align_representation(catalog, representation, config, level=level, align_by=by, progress=report)
        row = find_representation(catalog, made)
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


def audit(
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of wells that must still be predicted; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Nuisance that should not be predicted, such as plate; may be repeated.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias of the promoted representation.")] = "champion",
    page: Annotated[Path | None, typer.Option(help="The page; report/audit.html of the root by default.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Also write every figure there.")] = None,
    set_: Annotated[list[str] | None, set_option("Of the audit, as test_crops=1000.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """See what the promoted encoder is blind to, compared with the untrained one; propose augmentations.

    No training. --keep perturbation --ignore plate: which knobs would teach an encoder to ignore plates and still
    predict perturbations.
    """
    from pyarrow.parquet import write_table as write_parquet

    import cytolake.catalog
    from cytolake.benchmark.merit import NUISANCES
    from cytolake.benchmark.split import SplitBy
    from cytolake.packs.pack import Pack
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.reports.audit_page import PAGE_FILE, audit_table, audit_text, proposal_text, write_audit
    from cytolake.reports.page import REPORT_FOLDER
    from cytolake.tracking import resolve_promoted
    from cytolake.tune.augmentation_design import propose_augmentations
    from cytolake.tune.invariance_audit import AuditConfig, audit_encoders
    from cytolake.tune.promotion import untrained_twin

    console = Console(highlight=False, soft_wrap=True)
    kept, ignored = tuple(keep or ("perturbation",)), tuple(ignore or ("plate",))
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        card = resolve_promoted(catalog.root, alias)
        # Nuisances of the layout cannot be held out: no probe can predict a plate that it never saw.
        labels: list[tuple[str, SplitBy]] = [
            (name, "well" if name in NUISANCES else "plate") for name in (*kept, *ignored)
        ]
        config = apply_overrides(AuditConfig(labels=tuple(labels)), set_ or [])
        pack = Pack.open(catalog.root / "packs" / card.pack_id)
        encoders = {"trained": card.encoder_path, **untrained_twin(catalog, card)}
        console.print(
            f"audit: {len(encoders)} encoders ({', '.join(encoders)}), {len(config.knobs)} knobs at up to "
            f"{len(config.strengths)} strengths, probes of {escape(', '.join(name for name, _ in config.labels))}; "
            f"{pack.n_crops:,} crops in pack {pack.pack_id[:12]}, at most {config.test_crops:,} of them changed"
        )
        with stage_progress("audit", console) as report:
            found = audit_encoders(catalog, pack, encoders, card.block, card.pooling, config, report)
        proposals = propose_augmentations(found, "trained", kept, ignored)
        about = f"{card.name} version {card.version}, block {card.block}, {card.pooling} pooling."
        place = page or catalog.root / REPORT_FOLDER / PAGE_FILE
        written = write_audit(place, "Audit of invariance", found, about, proposals, kept, ignored)
        if parquet is not None:
            write_parquet(audit_table(found), parquet)
    console.print(audit_text(found, "trained"))
    console.print()
    console.print(proposal_text(proposals))
    for name, why in found.skipped.items():
        console.print(f"  [dim]not tried: {escape(name)}: {escape(why)}[/]")
    console.print(f"page {escape(str(written))}")
