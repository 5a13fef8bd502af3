"""The rules of the house that a test can hold: what lies where, and what may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "cytolake"
SOURCES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
OURS = [*SOURCES, *JOBS, *sorted((ROOT / "serve").rglob("*.py")), *sorted((ROOT / "infra").rglob("*.py"))]

FOLDERS = {".ci", "catalog", "infra", "jobs", "platform", "serve", "tests"}
"""Top-level folders; what git ignores does not count."""

SUBJECTS = {
    "benchmark", "catalog", "client", "commands", "embed", "line", "models", "packs", "performance_prediction",
    "recipes", "screens", "serving", "statistics", "train", "tune",
}  # fmt: skip

RANK = {
    "screens": 0, "client": 0, "statistics": 0,
    "models": 1, "catalog": 1, "packs": 1, "tracking": 1,
    "train": 2, "embed": 2, "benchmark": 2, "serving": 2, "performance_prediction": 2,
    "tune": 3,
    "line": 4,
    "recipes": 5,
    "commands": 6,
    "cli": 7,
}  # fmt: skip
"""recipes -> line -> tune -> train, embed, benchmark, serving -> models, packs, catalog, tracking
-> screens, statistics"""

WITHIN_A_RANK = {
    ("packs", "catalog"), ("catalog", "tracking"), ("benchmark", "embed"), ("performance_prediction", "benchmark"),
    ("serving", "performance_prediction"), ("packs", "models"),
}  # fmt: skip
"""Who may import whom on its own level: a pack is built from a curation, and read as a model takes crops; `champion`
names a representation; what is benchmarked is aligned first; what is predicted is a benchmark's score; a search tells
how well it will do."""

LOOKS_UP = {("line", "recipes")}
"""Inside a function only: a command is given a recipe's name."""

MODELS_MAY_IMPORT = {"torch", "timm", "numpy", "safetensors"}
FORBIDDEN_NAMES = {"utils", "helpers", "base", "util", "helper", "misc", "common"}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of what a file imports, with the line; those under TYPE_CHECKING do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree) if not top_level_only else tree.body:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def subject(module: str) -> str:
    """`cytolake.packs.build` -> `packs`; "" for `cytolake` itself."""
    return [*module.split("."), ""][1]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_platform_is_a_source_root_and_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow Python's own platform module"


def test_top_level_folders_are_the_declared_ones():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line} <= FOLDERS
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


def test_subjects_of_the_package_are_the_declared_ones():
    found = {path.parent.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}
    assert found <= SUBJECTS


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_a_file_is_named_after_its_subject(path):
    assert path.stem not in FORBIDDEN_NAMES
    if path.parent in (ROOT / "jobs", ROOT / "serve"):  # found by bare name: would replace Python's own module
        assert path.stem not in sys.stdlib_module_names
    assert path.stem in {"__init__", "__main__"} or re.fullmatch(r"_?[a-z][a-z0-9_]*", path.stem)


def test_a_subject_has_no_name_of_the_standard_library():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    # `cytolake.statistics` is a folder of the package, never a bare name that could replace Python's own module.
    assert names & set(sys.stdlib_module_names) - {"__main__", "statistics"} == set()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        own = ""
    at_import = set(imports(path, top_level_only=True))
    for module, line in imports(path):
        if module.split(".")[0] != "cytolake" or not subject(module) or subject(module) == "__version__":
            continue
        other = subject(module)
        where = f"{relative(path)}:{line} imports {module}"
        if (own, other) in LOOKS_UP:
            assert (module, line) not in at_import, f"{where} when it is itself imported"
            continue
        assert other in RANK, where
        assert own, f"{where}: the package itself imports nothing"
        assert other == own or RANK[other] < RANK[own] or (own, other) in WITHIN_A_RANK, where


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=relative)
def test_models_need_torch_timm_numpy_and_safetensors_alone(path):
    roots = {module.split(".")[0] for module, _ in imports(path)}
    assert roots - MODELS_MAY_IMPORT - {"cytolake", "__future__"} - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "statistics").rglob("*.py")), ids=relative)
def test_statistics_need_numpy_and_scipy_alone(path):
    roots = {module.split(".")[0] for module, _ in imports(path) if not module.startswith("cytolake.statistics")}
    assert roots - {"numpy", "scipy", "__future__"} - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "client").rglob("*.py")), ids=relative)
def test_the_client_needs_numpy_and_httpx_alone(path):
    """So that its two files can be carried to a machine that will never train or serve."""
    modules = {module for module, _ in imports(path)}
    roots = {module.split(".")[0] for module in modules if not module.startswith("cytolake.client")}
    assert roots - {"numpy", "httpx", "__future__"} - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("folder", ["screens", "catalog", "packs", "statistics"])
def test_data_folders_know_no_torch(folder):
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        assert not {"torch", "timm"} & {module.split(".")[0] for module, _ in imports(path)}, relative(path)


def test_every_folder_of_the_package_has_its_tests():
    folders = {path.parent.relative_to(PACKAGE) for path in SOURCES if path.parent != PACKAGE}
    without = [str(folder) for folder in folders if not list((ROOT / "tests" / folder).glob("test_*.py"))]
    assert sorted(without) == []


def test_tests_are_no_package_and_have_names_of_their_own():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_nothing_is_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & {
        module.split(".")[0] for module, _ in imports(path)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load":
            assert arguments.get("weights_only") == "True", f"{relative(path)}:{node.lineno}"
        assert arguments.get("allow_pickle", "False") == "False", f"{relative(path)}:{node.lineno}"
        assert called != "yaml.load", f"{relative(path)}:{node.lineno}: yaml.safe_load"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_runs_at_import(path):
    """Only definitions, imports and assignments at the top of a module; the command line registers its commands."""
    allowed = (
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Import,
        ast.ImportFrom,
        ast.Assign,
        ast.AnnAssign,
    )
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_guard = isinstance(node, ast.If) and re.search(
            r"TYPE_CHECKING|__name__|sys\.version", ast.unparse(node.test)
        )
        is_command = path.name == "cli.py" and re.search(r"\.command\(|\.add_typer\(", ast.unparse(node))
        where = f"{relative(path)}:{node.lineno} runs when imported"
        assert isinstance(node, allowed) or is_text or is_guard or is_command, where


@pytest.mark.parametrize("path", sorted((ROOT / "catalog").rglob("*.yaml")), ids=relative)
def test_declared_files_can_be_read(path):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    assert document
    if path.parent.name == "tables":
        assert document["table"] == path.stem
        assert set(document["key"]) <= set(document["columns"])
        assert all(column["about"] and column["type"] for column in document["columns"].values())


def test_a_job_is_thin():
    for path in JOBS:
        assert len(path.read_text().splitlines()) <= 30, relative(path)
