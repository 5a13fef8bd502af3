"""The generated pages hold everything that they are made from."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from fences import CHECKOUT, PAGES
from generators import (
    commands,
    config_fields,
    dependencies,
    example_pages,
    http_interface,
    python_interface,
    repository_pages,
    rooms,
    served_metrics,
    table_contracts,
)


def test_every_room_is_on_the_architecture_page_with_its_purpose():
    declared = {room for row in rooms.layout() for room in row}
    assert declared <= set(rooms.PURPOSE)
    assert declared <= set(rooms.SHORT)
    page = rooms.page()
    counted = {name: int(n) for name, n in re.findall(r"^\| `([\w.]+)` \| (\d+) \|", page, re.MULTILINE)}
    assert counted.keys() == declared
    n_files = sum(1 for path in rooms.PACKAGE.rglob("*.py") if path.parent != rooms.PACKAGE or path.stem in declared)
    assert sum(counted.values()) == n_files
    assert page.count("<rect") == len(declared)


def test_every_option_of_every_command_is_on_the_page():
    page = commands.page()
    for name, command in commands.commands_below(commands.application(), "cytolake"):
        section = page.split(f"## `{name}` {{")[1].split("\n## ")[0]
        for each in command.params:
            if each.param_type_name == "option" and each.name != "help":
                assert each.opts[0] in section, f"{name} {each.opts[0]}"


def test_every_field_of_a_recipe_is_on_the_page_with_its_text():
    page = config_fields.fields_page()
    for field in ("hold_out_plates", "crop_size", "mask_ratio", "minibatch_size", "sources", "regularisation"):
        row = re.search(rf"^\| `{field}` \| .+ \| .+ \| .{{10,}} \|$", page, re.MULTILINE)
        assert row, f"{field} has no row with a text"
    assert "required" in page


def test_every_column_of_every_table_is_on_the_page():
    page = table_contracts.page()
    for path in sorted((CHECKOUT / "catalog" / "tables").glob("*.yaml")):
        section = page.split(f"## `{path.stem}` {{")[1].split("\n## ")[0]
        for column in yaml.safe_load(path.read_text(encoding="utf-8"))["columns"]:
            assert f"| `{column}` |" in section


def test_every_endpoint_and_body_is_on_the_page():
    page = http_interface.page()
    document = json.loads(http_interface.OPENAPI.read_text(encoding="utf-8"))
    for path, methods in document["paths"].items():
        assert all(f"## `{method.upper()} {path}`" in page for method in methods)
    assert all(f"### {name} {{" in page for name in document["components"]["schemas"])


def test_every_metric_of_a_scrape_is_on_the_page():
    from cytolake.serving.metrics import Metrics

    page = served_metrics.page()
    names = set(re.findall(r"^# TYPE (cytolake_\w+) (?!gauge$)?", Metrics().text([]).decode(), re.MULTILINE))
    assert names
    assert {name for name in names if not name.endswith("_created")} <= set(re.findall(r"`(cytolake_\w+)`", page))


def test_every_package_of_an_extra_has_its_purpose_and_version():
    page = dependencies.page()
    assert "| `torch>=2.14` | encoders | `2." in page
    assert "| `httpx>=0.28` | HTTP of the client | `0." in page


def test_python_pages_name_exports_that_exist():
    made = python_interface.pages()
    assert len(made) == len(python_interface.ROOMS) + 1
    assert "::: cytolake.catalog\n" in made["reference/python/catalog.md"]
    assert "        - Client\n" in made["reference/python/client.md"]


def test_every_decision_is_in_the_index():
    made = repository_pages.pages()
    decisions = sorted(path.name for path in repository_pages.DECISIONS.glob("[0-9]*.md"))
    assert decisions
    assert all(f"](decisions/{name})" in made["decisions.md"] for name in decisions)
    assert all(
        re.search(r"\| 20\d\d-\d\d-\d\d \|", line) for line in made["decisions.md"].splitlines() if "](dec" in line
    )


def test_every_page_is_in_the_navigation():
    listed = (PAGES.parent / "mkdocs.yml").read_text(encoding="utf-8")
    left_out = re.search(r"^not_in_nav: (\S+)", listed, re.MULTILINE)[1]
    written = [path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")]
    made = [*python_interface.pages(), *example_pages.pages(), *repository_pages.pages()]
    assert [name for name in (*written, *made) if f" {name}\n" not in listed and not fnmatch(name, left_out)] == []


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_a_network(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="`make docs` installs the extra docs")
    import subprocess
    import sys

    config = PAGES.parent / "mkdocs.yml"  # not --quiet, under which --strict counts no warning
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", tmp_path],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 60
    loads = r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//"""
    assert [path.name for path in pages if re.search(loads, path.read_text(encoding="utf-8"))] == []


def test_arguments_that_may_be_left_out_are_in_brackets_and_no_value_is_named_by_python():
    page = commands.page()
    assert "\ncytolake qc page [OPTIONS] [QC_ID]\n" in page
    assert "\ncytolake export [OPTIONS] PATH\n" in page
    for name, command in commands.commands_below(commands.application(), "cytolake"):
        for each in command.params:
            if each.param_type_name == "argument" and not each.required:
                assert f"[{(each.metavar or each.name).upper()}" in page, name
    assert not re.search(r"LIST\[|`(STR|INT|FLOAT|BOOL)`", page)
    assert "`--task` `TEXT` …" in page or "`--task` `" in page
