"""The example scripts run on the golden lake, and are rendered into pages."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from generators.example_pages import EXAMPLES, cells, pages
from tests.fast_cases import fast_cases

SCRIPTS = sorted(EXAMPLES.glob("*.py"))
WITHOUT_SCANPY = [path for path in SCRIPTS if path.stem != "anndata_to_scanpy"]

WRITES = {
    "anndata_to_scanpy": {"umap.png", "champion_crops.h5ad"},
    "hit_list": {"hits.csv"},
    "map_and_neighbours": {"map.png", "neighbours.png"},
    "qc_and_plate_maps": {"plate_maps.png"},
    "query_embeddings": set(),
}
"""Files that each script leaves in the working directory."""


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # of scanpy's plots
@pytest.mark.parametrize("script", fast_cases(SCRIPTS, *WITHOUT_SCANPY), ids=lambda path: path.stem)
def test_an_example_runs(script: Path, lake: Path, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(script), run_name="__main__")
    assert {path.name for path in lake.parent.iterdir()} == WRITES[script.stem] | {"cytolake_data"}
    assert capsys.readouterr().out or WRITES[script.stem]


def test_every_example_is_a_page_with_all_of_its_code():
    made = pages()
    for script in SCRIPTS:
        page = made[f"examples/{script.stem}.md"]
        found = cells(script.read_text(encoding="utf-8"))
        assert found[0][0] == "markdown"
        assert all(text in page for _, text in found)
