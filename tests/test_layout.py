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

ORDER = (
    ("cli", "recipes"),
    ("pipeline",),
    ("reports", "tune", "serving"),
    ("benchmark", "performance_prediction", "exchange"),
    ("train", "embed", "qc", "curation", "catalog.ingest", "catalog.corrections"),
    ("packs",),
    ("models", "cropping", "catalog", "tracking"),
    ("screens", "statistics"),
    ("storage", "client"),
)
"""The rooms of the package from the top down: a room imports from those below its own row."""

ACROSS_A_ROW = {
    ("cli", "recipes"),  # a command is given a recipe's name
    ("reports", "tune"),  # pages of studies, audits and block searches
    ("performance_prediction", "benchmark"),  # the performance that is predicted is a benchmark's score
    ("curation", "qc"),  # rules exclude by verdicts
    ("catalog.corrections", "catalog.ingest"),  # new pixels of a plate are ingested
    ("catalog.ingest", "qc"),  # sites are measured while their pixels are read
    ("catalog", "tracking"),  # the alias `champion` names a representation
}
"""(importer, imported) of rooms in one row; none may hold in both directions."""

LOOKS_UP = {("pipeline", "recipes")}
"""Inside a function only: a command is given a recipe's name."""

RANK = {room: -row for row, rooms in enumerate(ORDER) for room in rooms}

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


def room(module: str) -> str:
    """`cytolake.catalog.ingest.plates` -> `catalog.ingest`, `cytolake.packs.build` -> `packs`, `cytolake` -> ""."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in RANK else [*parts, ""][0]


def name_of(path: Path) -> str:
    """The module of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules() -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports, at its top or inside a function."""
    names = {name_of(path) for path in SOURCES}
    found = {}
    for path in SOURCES:
        imported = {module for module, _ in imports(path)} & names - {name_of(path)}
        # `from cytolake.catalog import commits` needs the module; the package is no more than its address.
        found[name_of(path)] = imported - {module.rpartition(".")[0] for module in imported}
    return found


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


def test_rooms_of_the_package_are_the_declared_ones():
    assert {room(name_of(path)) for path in SOURCES} - {""} == set(RANK)


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


def test_imports_point_down():
    wrong = []
    for path in SOURCES:
        own = room(name_of(path))
        at_import = set(imports(path, top_level_only=True))
        for module, line in imports(path):
            other = room(module)
            if module.split(".")[0] != "cytolake" or not other or other in {own, "__version__"}:
                continue
            if (own, other) in LOOKS_UP and (module, line) not in at_import:
                continue
            if not own or other not in RANK or not (RANK[other] < RANK[own] or (own, other) in ACROSS_A_ROW):
                wrong.append(f"{relative(path)}:{line} imports {module}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    remaining = imported_modules()
    while leaves := {name for name, imported in remaining.items() if not imported & remaining.keys()}:
        for name in leaves:
            del remaining[name]
    assert {name: sorted(imported & remaining.keys()) for name, imported in remaining.items()} == {}


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
        is_command = path.is_relative_to(PACKAGE / "cli") and re.search(r"\.command\(|\.add_typer\(", ast.unparse(node))
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
