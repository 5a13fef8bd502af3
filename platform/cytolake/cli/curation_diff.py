"""Terminal output of `cytolake curation diff`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.curation.diff import CurationDiff

SHOWN = 15
"""Lines of each table."""


def print_curation_diff(diff: CurationDiff, console: Console) -> None:
    """Print the differences, at most SHOWN lines of each table."""
    for name, run in (("first", diff.first), ("second", diff.second)):
        console.print(
            f"[bold]{name:<7}[/]{escape(run['curation'])} {run['curation_id'][:12]}  "
            f"{run['curated_at']:%Y-%m-%d %H:%M} UTC  keeps {run['n_kept']:,} of {run['n_considered']:,} crops"
        )
    console.print(f"both keep {diff.n_both:,}; {len(diff.added):,} added, {len(diff.removed):,} removed")
    for title, lines in (("rules", diff.rules), ("tables read", diff.tables)):
        for line in lines:
            console.print(f"  [dim]{title}[/] {escape(line)}")
    for title, counts in (
        ("added: excluded before by", diff.added_by_reason),
        ("removed by", diff.removed_by_reason),
    ):
        if counts:
            shown = Table(title, "crops", box=None, header_style="dim", pad_edge=False)
            shown.columns[1].justify = "right"
            for reason, n in list(counts.items())[:SHOWN]:
                shown.add_row(escape(reason), f"{n:,}")
            console.print(shown)
    for title, pairs in (("plate", diff.by_plate), ("perturbation", diff.by_perturbation)):
        if pairs:
            shown = Table(title, "added", "removed", box=None, header_style="dim", pad_edge=False)
            for column in shown.columns[1:]:
                column.justify = "right"
            for name, (added, removed) in list(pairs.items())[:SHOWN]:
                shown.add_row(escape(name) or "[dim]none[/]", f"{added:,}", f"{removed:,}")
            if len(pairs) > SHOWN:
                shown.add_row(f"[dim]and {len(pairs) - SHOWN} more[/]", "", "")
            console.print(shown)
