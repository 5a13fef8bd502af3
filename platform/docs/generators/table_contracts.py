"""The page of table contracts, from catalog/tables/*.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from generators.markdown import cell, code, table

TABLES = Path(__file__).resolve().parents[3] / "catalog" / "tables"


def page() -> str:
    """Markdown of the page."""
    contracts = [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(TABLES.glob("*.yaml"))]
    parts = [
        "# Tables\n",
        "The catalog is a set of Delta tables. Each has a contract in `catalog/tables/`, which every commit is checked "
        "against. An optional column may be missing in a catalog of an earlier version; it then reads as null. "
        "`cytolake sql` and `Catalog.sql` query the tables by these names.\n",
        table(
            ["table", "one row"],
            ([f"[`{path.stem}`](#{path.stem})", cell(_about(path)[0])] for path, _ in contracts),
        ),
    ]
    for path, contract in contracts:
        parts += _section(path, contract)
    return "\n".join(parts)


def _about(path: Path) -> list[str]:
    """Paragraphs of the comment at the top of a contract."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    text = " ".join(lines)
    first, _, rest = text.partition(". ")
    return [f"{first.rstrip('.')}.", rest] if rest else [text]


def _section(path: Path, contract: dict[str, Any]) -> list[str]:
    about = " ".join(_about(path)).replace("plates.yaml", "[plates](#plates)")
    facts = f"Key: {', '.join(code(each) for each in contract['key'])}."
    if contract.get("partition_by"):
        facts += f" Partitioned by {', '.join(code(each) for each in contract['partition_by'])}."
    rows = (
        [
            code(name),
            code(column["type"]) + (" optional" if column.get("optional") else ""),
            _linked(cell(column["about"])),
        ]
        for name, column in contract["columns"].items()
    )
    parts = [f"## `{path.stem}` {{ #{path.stem} }}\n", f"{about}\n", f"{facts}\n"]
    parts.append(table(["column", "type", "meaning"], rows))
    if contract.get("constraints"):
        parts.append("Every row meets these conditions:\n")
        parts.append(table(["constraint", "SQL"], ([code(k), code(v)] for k, v in contract["constraints"].items())))
    return parts


def _linked(text: str) -> str:
    """`plates.plate_id` as a link to that table."""
    names = "|".join(path.stem for path in TABLES.glob("*.yaml"))
    return re.sub(rf"(?<![`\w.])({names})\.([a-z_]+)", r"[`\1.\2`](#\1)", text)
