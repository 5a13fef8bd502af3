"""Pages of the example scripts: cells of platform/docs/examples/*.py as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from generators.markdown import cell, table

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def pages() -> dict[str, str]:
    """Address -> Markdown."""
    made = {}
    rows = []
    for path in sorted(EXAMPLES.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        made[f"examples/{path.stem}.md"] = rendered(source, path.name)
        title, _, about = cells(source)[0][1].removeprefix("# ").partition("\n\n")
        if not about:
            raise RuntimeError(f"{path.name}: expected a first cell of Markdown with a title and a paragraph.")
        rows.append([f"[{title}]({path.stem}.md)", cell(about)])
    made["examples/index.md"] = "\n".join(
        [
            "# Examples\n",
            "Scripts to start from, in `platform/docs/examples/`. Each runs as it is on the catalog of `make demo`; "
            "set `CYTOLAKE_ROOT` to use another one. Jupyter opens them as notebooks through jupytext, and editors "
            "show their cells (`# %%`).\n",
            table(["example", "contents"], rows),
        ]
    )
    return made


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, where kind is `markdown` or `code`; comment marks of Markdown are taken off."""
    found = []
    for part in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip("\n").splitlines()]
            found.append(("markdown", "\n".join(lines).strip()))
        else:
            found.append(("code", body.strip("\n")))
    return found


def rendered(source: str, name: str) -> str:
    """Markdown of one script."""
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(source)]
    parts.append(
        f'!!! note "Run it"\n    `python platform/docs/examples/{name}` in a checkout where `make demo` has run. '
        "A test runs this script on a small catalog."
    )
    return "\n\n".join(parts) + "\n"
