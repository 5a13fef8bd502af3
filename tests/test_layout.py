"""The rules of the house that a test can hold: what lies where, and what may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
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

ONLY = {
    "models": {"torch", "timm", "numpy", "safetensors"},
    "statistics": {"numpy", "scipy", "threadpoolctl"},
    "client": {"numpy", "httpx"},  # its files can be carried to a machine that will never train or serve
}
"""Rooms that import these packages, the standard library and, but for `models`, themselves alone."""

NOT_IN = {
    "torch": ("screens", "catalog", "packs", "statistics", "storage", "client"),
    "timm": ("screens", "catalog", "packs", "statistics", "storage", "client"),
}
"""Packages, and rooms with their folders that import none of it."""

SHOWN_BY = {"rich": ("cli", "pipeline", "reports"), "jinja2": ("reports",), "matplotlib": ("reports",)}
"""Packages that draw what a person reads, and the rooms that may import them."""

HTML = r"<(!doctype|html|body|table|tr|td|div|section|figure|details|h[1-6])\b"

MOST_LINES = 400
WHY_LONG = r"\bone file\b[^.]*\bbecause\b"
"""A sentence such as "Writer and reader stay in one file because they share the layout." in the docstring of a module
of more lines."""

SAFE_ARGUMENTS = {"weights_only", "allow_pickle"}
FORBIDDEN_NAMES = {"utils", "helpers", "base", "util", "helper", "misc", "common"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The parts of a file that some rule looks at: one walk through it for all rules."""
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    kinds = (*definitions, ast.Import, ast.ImportFrom, ast.If, ast.Call, ast.Constant)
    return tuple(node for node in ast.walk(parsed(path)) if isinstance(node, kinds))


@cache
def imports(path: Path, *, top_level_only: bool = False) -> tuple[tuple[str, int], ...]:
    """Absolute names of what a file imports, with the line; those under TYPE_CHECKING do not count."""
    return tuple(_imports(path, top_level_only))


def _imports(path: Path, top_level_only: bool) -> Iterator[tuple[str, int]]:
    typing_only = {
        id(inner)
        for node in nodes(path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes(path) if not top_level_only else parsed(path).body:
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


def at(path: Path, line: int, what: str) -> str:
    return f"{relative(path)}:{line} {what}"


def packages(path: Path) -> dict[str, int]:
    """Top-level packages that a file imports, with a line; not the standard library's."""
    found = {module.split(".")[0]: line for module, line in imports(path)}
    return {name: line for name, line in found.items() if name not in sys.stdlib_module_names | {"__future__"}}


def in_room(path: Path, rooms: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(PACKAGE / each) for each in rooms)


def test_an_installed_package_names_no_file_of_jobs():
    """What is installed has the command `cytolake` for every job, and no folder `jobs`."""
    installed = [*SOURCES, *(ROOT / "serve" / "page").rglob("*.js"), *(ROOT / "serve" / "page").rglob("*.html")]
    named = {relative(path): re.findall(r"jobs/[\w{}]+\.py", path.read_text(encoding="utf-8")) for path in installed}
    assert {path: found for path, found in named.items() if found} == {}


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


def test_a_file_is_named_after_its_subject():
    stems = {path: path.stem for path in OURS}
    assert [relative(path) for path, stem in stems.items() if stem in FORBIDDEN_NAMES] == []
    assert [
        relative(path)
        for path, stem in stems.items()
        if stem not in {"__init__", "__main__"} and not re.fullmatch(r"_?[a-z][a-z0-9_]*", stem)
    ] == []


def test_a_subject_has_no_name_of_the_standard_library():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    # `cytolake.statistics` is a folder of the package, never a bare name that could replace Python's own module.
    assert names & set(sys.stdlib_module_names) - {"__main__", "statistics"} == set()
    # Jobs and the Serve application are found by bare name.
    bare = {path.stem for path in OURS if path.parent in (ROOT / "jobs", ROOT / "serve")}
    assert bare & set(sys.stdlib_module_names) == set()


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
                wrong.append(at(path, line, f"imports {module}"))
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    remaining = imported_modules()
    while leaves := {name for name, imported in remaining.items() if not imported & remaining.keys()}:
        for name in leaves:
            del remaining[name]
    assert {name: sorted(imported & remaining.keys()) for name, imported in remaining.items()} == {}


def test_models_statistics_and_client_import_few_packages():
    """By file, below the room too."""
    wrong = []
    for name, allowed in ONLY.items():
        for path in sorted((PACKAGE / name).rglob("*.py")):
            wrong += [at(path, line, f"imports {each}") for each, line in packages(path).items()
                      if each not in allowed | {"cytolake"}]  # fmt: skip
            wrong += [at(path, line, f"imports {module}") for module, line in imports(path)
                      if module.startswith("cytolake.") and room(module) != name and name != "models"]  # fmt: skip
    assert wrong == []


def test_data_folders_know_no_torch():
    assert [
        at(path, packages(path)[name], f"imports {name}")
        for name, rooms in NOT_IN.items()
        for path in SOURCES
        if in_room(path, rooms) and name in packages(path)
    ] == []


def test_what_a_person_sees_is_drawn_in_cli_pipeline_and_reports():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in SOURCES
        for name, rooms in SHOWN_BY.items()
        if name in packages(path) and not in_room(path, rooms)
    }
    assert sorted(found) == []
    pages = [relative(path) for path in PACKAGE.rglob("*.j2") if not in_room(path, ("reports",))]
    assert pages == []


def test_html_is_in_templates():
    wrong = []
    for path in SOURCES:
        documented = {id(node.body[0].value) for node in nodes(path) if _has_docstring(node)}
        for node in nodes(path):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if id(node) not in documented and re.search(HTML, text, re.IGNORECASE):
                wrong.append(at(path, node.lineno, f"{text[:40]!r}"))
    assert wrong == []


def test_a_long_file_says_why_it_is_one():
    long = [path for path in OURS if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    silent = {
        relative(path)
        for path in long
        if not re.search(WHY_LONG, " ".join((ast.get_docstring(parsed(path)) or "").split()))
    }
    assert sorted(silent) == []


def test_every_folder_of_the_package_has_its_tests():
    folders = {path.parent.relative_to(PACKAGE) for path in SOURCES if path.parent != PACKAGE}
    without = [str(folder) for folder in folders if not list((ROOT / "tests" / folder).glob("test_*.py"))]
    assert sorted(without) == []


def test_tests_are_no_package_and_have_names_of_their_own():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_nothing_is_unpickled():
    wrong = []
    for path in OURS:
        unsafe = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        wrong += [
            at(path, line, f"imports {module}") for module, line in imports(path) if module.split(".")[0] in unsafe
        ]
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func) if getattr(node.func, "attr", "") == "load" else ""
            arguments = {each.arg: ast.unparse(each.value) for each in node.keywords if each.arg in SAFE_ARGUMENTS}
            if called == "torch.load" and arguments.get("weights_only") != "True":
                wrong.append(at(path, node.lineno, "torch.load without weights_only=True"))
            if arguments.get("allow_pickle", "False") != "False":
                wrong.append(at(path, node.lineno, "allow_pickle"))
            if called == "yaml.load" and not ast.unparse(node.args[-1]).endswith("SafeLoader"):
                wrong.append(at(path, node.lineno, "yaml.load without a SafeLoader"))
    assert wrong == []


def test_nothing_runs_at_import():
    """Only definitions, imports and assignments at the top of a module; the command line registers its commands."""
    allowed = (
        ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    wrong = []
    for path in SOURCES:
        for node in parsed(path).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_guard = isinstance(node, ast.If) and re.search(
                r"TYPE_CHECKING|__name__|sys\.version", ast.unparse(node.test)
            )
            is_command = in_room(path, ("cli",)) and re.search(r"\.command\(|\.add_typer\(", ast.unparse(node))
            if not (isinstance(node, allowed) or is_text or is_guard or is_command):
                wrong.append(at(path, node.lineno, "runs when imported"))
    assert wrong == []


def test_declared_files_can_be_read():
    paths = sorted((ROOT / "catalog").rglob("*.yaml"))
    documents = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    assert [relative(path) for path, found in documents.items() if not (isinstance(found, dict) and found)] == []
    tables = {path.stem: found for path, found in documents.items() if path.parent.name == "tables"}
    assert [name for name, found in tables.items() if found["table"] != name] == []
    assert [name for name, found in tables.items() if not set(found["key"]) <= set(found["columns"])] == []
    assert [
        f"{name}.{column}"
        for name, found in tables.items()
        for column, declared in found["columns"].items()
        if not (declared["about"] and declared["type"])
    ] == []


def test_a_job_is_thin():
    assert [relative(path) for path in JOBS if len(path.read_text().splitlines()) > 30] == []


def _has_docstring(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None
