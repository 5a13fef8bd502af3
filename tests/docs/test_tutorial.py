"""The tutorial and the README's Python, run block by block on the golden lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fences import CHECKOUT, PAGES, Fence, command_lines, fences
from typer.testing import CliRunner

TUTORIAL = PAGES / "tutorial.md"

DEMO_REPRESENTATION = "0f633e68149f60bc709c4b66dea693fa"
"""The promoted representation's id that the tutorial shows; the catalog of a test has another."""


def run_commands(block: Fence, representation_id: str) -> str:
    """Run the commands of a block in this process, and return what they print."""
    from cytolake.cli.main import app

    printed = []
    for words in command_lines(block.text):
        assert words[0] == "cytolake", f"{block.place}: {words[0]} is not run by this test; mark the block."
        given = [representation_id if word == DEMO_REPRESENTATION else word for word in words[1:]]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert result.exit_code == 0, f"{block.place}: cytolake {' '.join(given)}\n{result.output}{result.exception}"
        printed.append(result.output)
    return "".join(printed)


def test_the_tutorial_runs(lake: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    printed = ""
    n_run = 0
    for block in fences(TUTORIAL):
        if block.language == "text":
            head = next(line for line in block.text.splitlines() if line.strip())
            if "representation" not in head and DEMO_REPRESENTATION not in head and "[" not in head:
                missing = [word for word in head.split() if word.isalpha() and word not in printed]
                assert not missing, f"{block.place}: the page shows {missing}, which was not printed:\n{printed}"
            continue
        if block.mark:
            continue
        if block.language == "bash":
            printed = run_commands(block, names["champion"].representation_id if "champion" in names else "")
        else:
            assert block.language == "python", block.place
            exec(compile(block.text, block.place, "exec"), names)
            printed = capsys.readouterr().out
        n_run += 1
    assert n_run >= 8
    assert len(names["hits"]) > 3
    assert set(names["hits"].columns) == {"consistency", "q of consistency", "magnitude", "q of magnitude"}


def test_the_python_of_the_readme_runs(lake: Path):
    for block in fences(CHECKOUT / "README.md"):
        if block.language == "python" and not block.mark:
            names: dict[str, Any] = {}
            text = block.text.replace(
                "cytolake_screen", "cytolake_data"
            )  # of `lake`; the README goes on with own plates
            exec(compile(text, block.place, "exec"), names)
            assert names["cells"].n_obs > 0
            assert names["kept"].num_rows > 0


def test_the_commands_of_the_readme_run_on_plates_of_ones_own(
    lake: Path, golden_lake: Path, monkeypatch: pytest.MonkeyPatch
):
    """Layout, recipe and query; the ingest between them is Ray's and is tested in tests/catalog/ingest."""
    monkeypatch.setenv("CYTOLAKE_ROOT", str(lake))
    (block,) = (
        each for each in fences(CHECKOUT / "README.md") if each.language == "bash" and "cytolake init" in each.text
    )
    screen = next(path for path in (golden_lake / "screens").iterdir() if path.is_dir())
    from cytolake.cli.main import app

    n_run = 0
    for words in command_lines(block.text):
        if words[0] == "cytolake" and words[1] != "ingest":
            given = [str(screen) if word == "/path/to/screen" else word for word in words[1:]]
            result = CliRunner().invoke(app, given)
            assert result.exit_code == 0, f"cytolake {' '.join(given)}\n{result.output}"
            n_run += 1
    assert n_run == 3
    assert Path("cytolake.yaml").is_file()


def test_the_readme_opens_the_catalog_that_its_own_init_names():
    from cytolake.pipeline.first_recipe import recipe_name

    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    root = f"cytolake_{recipe_name('/path/to/screen')}"
    assert f'cytolake.catalog.open("{root}")' in text
    assert f"CYTOLAKE_ROOT={root} " in text
