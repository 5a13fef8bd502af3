"""Help is instant because nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cytolake

HEAVY = {
    "anndata", "deltalake", "duckdb", "faiss", "fastapi", "matplotlib", "mlflow", "numba", "numpy", "pandas", "pyarrow",
    "pydantic", "ray", "scipy", "sklearn", "sqlglot", "timm", "torch", "umap", "yaml", "zarr",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n' + ' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(cytolake.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_help_imports_nothing_heavy():
    code = "from cytolake.cli.main import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) & HEAVY == set()


def test_opening_a_catalog_imports_no_framework():
    loaded = loaded_by("import cytolake.catalog")
    assert loaded & {"torch", "ray", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "anndata", "zarr"} == set()
