"""Queries of README, pages and examples mean the same in a catalog that holds several versions of a thing."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fences import CHECKOUT, PAGES, command_lines, fences
from generators.example_pages import EXAMPLES

import cytolake.catalog

FILES = [CHECKOUT / "README.md", *sorted(PAGES.rglob("*.md"))]

VERSIONED = {
    "curations": ("curation_id", "curated_at", "is_kept"),
    "curation_runs": ("curation_id", "curated_at", ""),
    "qc_verdicts": ("qc_id", "judged_at", "is_pass"),
    "profiles": ("representation_id", "", ""),
    "embeddings": ("representation_id", "", ""),
    "scores": ("score_id", "scored_at", ""),
}
"""Tables that keep older versions of the same thing -> id of the version, its time, and a claim that differs."""

NAMED_BY = {
    "profiles": {"representation_id"},
    "embeddings": {"representation_id"},
    "scores": {"representation_id", "alignment"},
}
"""Columns that a condition on a table names, where Python reads it whole."""


def python_sources() -> dict[str, str]:
    """The Python of the pages, by place, and the example scripts."""
    found = {block.place: block.text for path in FILES for block in fences(path) if block.language == "python"}
    return found | {path.name: path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.py"))}


def calls(source: str, method: str) -> list[tuple[ast.Call, dict[str, Any]]]:
    """Calls of `catalog.<method>`, each with the texts that were assigned to names in the same source."""
    tree = ast.parse(source)
    texts = {
        node.targets[0].id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    return [
        (node, texts)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"catalog.{method}"
    ]


def queries() -> dict[str, str]:
    """Every query of the documentation, by its place."""
    found = {}
    for path in FILES:
        for block in fences(path):
            if block.language == "bash" and block.mark != "not parsed":
                for words in command_lines(block.text):
                    if words[:2] == ["cytolake", "sql"]:
                        found[f"{block.place}: {words[2][:40]}"] = words[2]
    for place, source in python_sources().items():
        for call, texts in calls(source, "sql"):
            query = eval(compile(ast.Expression(call.args[0]), place, "eval"), {}, dict(texts))
            found[f"{place}, line {call.lineno}"] = query
    return found


def add_older_versions(root: Path) -> None:
    """To every versioned table, add its rows again under another id, older and with the opposite claim."""
    catalog = cytolake.catalog.open(root)
    for name, (identity, time, claim) in VERSIONED.items():
        rows = catalog.table(name)
        assert rows.num_rows, name
        changed = {identity: pc.binary_join_element_wise(rows[identity], "older", "-")}
        if time:
            changed[time] = pc.subtract(rows[time], pa.scalar(datetime.timedelta(days=1), pa.duration("us")))
        if claim:
            changed[claim] = pc.invert(rows[claim])
        if name == "curations":
            changed["reason"] = pc.if_else(changed[claim], "", "an older reason")
        for column, values in changed.items():
            rows = rows.set_column(rows.column_names.index(column), column, values)
        assert catalog.append(name, rows, transaction=f"older {name}")


def test_every_query_gives_the_same_after_older_versions_are_added(lake: Path):
    asked = queries()
    assert sum("curations" in query for query in asked.values()) >= 4
    assert sum("qc_verdicts" in query for query in asked.values()) >= 4
    before = {place: cytolake.catalog.open(lake).sql(query) for place, query in asked.items()}
    add_older_versions(lake)
    after = {place: cytolake.catalog.open(lake).sql(query) for place, query in asked.items()}
    other = [place for place in asked if sorted_rows(before[place]) != sorted_rows(after[place])]
    assert not other


def sorted_rows(table: pa.Table) -> list[str]:
    return sorted(str(row) for row in table.to_pylist())


def test_python_that_reads_a_versioned_table_says_which_version():
    n_read = 0
    for place, source in python_sources().items():
        for call, texts in calls(source, "table"):
            columns = NAMED_BY.get(ast.literal_eval(call.args[0]), set())
            where = next((each.value for each in call.keywords if each.arg == "where"), None)
            condition = (
                str(texts.get(where.id, "")) if isinstance(where, ast.Name) else ast.unparse(where) if where else ""
            )
            assert all(column in condition for column in columns), f"{place}, line {call.lineno}"
            n_read += bool(columns)
    assert n_read >= 3


def test_the_contract_of_a_versioned_table_says_so():
    for name in ("curations", "qc_verdicts", "profiles", "embeddings", "scores"):
        text = (CHECKOUT / "catalog" / "tables" / f"{name}.yaml").read_text(encoding="utf-8")
        head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
        key = "representation_id" if name == "scores" else VERSIONED[name][0]
        assert f"so a query names one {key}" in head or f"so a query names the {key}" in head, name
