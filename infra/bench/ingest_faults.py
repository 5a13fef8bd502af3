"""Drivers of an ingest are killed with SIGKILL at every step, again and again, alone and in pairs, also while four of
them write to one catalog; then an undisturbed run finishes, and every row is compared with those of an ingest that was
never disturbed. Then every correction of a plate is killed at each of its writes: see `inputs/correction_faults`.
Called by `make faults-ingest`.

A driver is a process of its own. In the first rounds it has a local Ray, which is killed with it, as if the machine had
stopped; in the others it uses a Ray cluster, which outlives it and ends its tasks by itself. Steps are seen from
outside, in the catalog's folder: a driver is killed at the first staged well, halfway through the wells, when a table's
Parquet file appears (before its commit), when a commit appears in a table's log, when `plates` is committed, and at
random.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from deltalake import DeltaTable
from inputs.correction_faults import correction_faults, counts_of_others
from rich.console import Console
from rich.table import Table

import cytolake.catalog
from cytolake.catalog import table_contract, table_names
from cytolake.catalog.corrections.vacuum import vacuum
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen

INGEST_KILLS = 40
KILLS_MIN = 80
"""Of ingests and corrections together."""
LOCAL_CATALOGS = 1
"""Catalogs whose drivers have a local Ray, killed with them."""
DRIVER = """
import sys
import cytolake.catalog
from cytolake.catalog.ingest.plates import IngestConfig, ingest_screens
from cytolake.pipeline.session import RayConfig, ray_session
from cytolake.screens.sources import ScreenSource
root, *screens = sys.argv[1:]
catalog = cytolake.catalog.open(root, create=True)
with ray_session(RayConfig(cpus=1, object_store_mb=100)):
    print("ready", flush=True)
    sources = [ScreenSource(screen=path.rsplit("/", 1)[1], path=path) for path in screens]
    report = ingest_screens(catalog, sources, IngestConfig(crop_size=64, sites_per_task=1))
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A moment at which a driver is killed."""

    name: str
    has_come: Callable[[Path, set[Path], float], bool]
    """Called repeatedly, with the catalog's folder, the files that were there before, and seconds since the start."""


def staged(n: int) -> Callable[[Path, set[Path], float], bool]:
    return lambda root, before, _: len(set((root / "staging").glob("*/*.arrow")) - before) >= n


def file_of(table: str) -> Callable[[Path, set[Path], float], bool]:
    return lambda root, before, _: bool(set((root / "tables" / table).rglob("*.parquet")) - before)


def commit_of(table: str) -> Callable[[Path, set[Path], float], bool]:
    """A commit that adds rows: a claim of a plate adds none."""

    def has_come(root: Path, before: set[Path], _: float) -> bool:
        new = set((root / "tables" / table / "_delta_log").glob("*.json")) - before
        return any('"add"' in path.read_text() for path in new)

    return has_come


def claim(root: Path, before: set[Path], _: float) -> bool:
    return bool(set((root / "tables" / "plates" / "_delta_log").glob("*.json")) - before)


def after(seconds: float) -> Callable[[Path, set[Path], float], bool]:
    return lambda _root, _before, since: since >= seconds


STEPS = (
    Step("claim of a plate", claim),
    Step("first well staged", staged(1)),
    Step("some wells staged", staged(3)),
    Step("file of sites, no commit", file_of("sites")),
    Step("commit of sites", commit_of("sites")),
    Step("file of crops, no commit", file_of("crops")),
    Step("commit of crops", commit_of("crops")),
    Step("commit of qc_metrics", commit_of("qc_metrics")),
    Step("commit of wells", commit_of("wells")),
    Step("commit of quarantine", commit_of("quarantine")),
    Step("commit of plates", commit_of("plates")),
)


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "PYTHONPATH": str(Path(cytolake.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",  # all drivers join one cluster
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
}


CLUSTER = """
import sys
from cytolake.pipeline.session import RayConfig, ray_session
with ray_session(RayConfig(cpus=2, object_store_mb=200)):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of two CPUs, of this bench alone."""
    head = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        yield head.stdout.readline().strip()
    finally:
        head.stdin.close()
        head.wait(60)


def start(root: Path, screens: list[Path], address: str) -> subprocess.Popen[str]:
    """A driver, with a local Ray where no address is given."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root), *map(str, screens)],
        env=ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def kill_at(root: Path, screens: list[Path], steps: list[Step], address: str) -> list[str]:
    """Start a driver for each step and kill each at its step; what became of them."""
    drivers = [start(root, screens, address) for _ in steps]
    for driver in drivers:
        assert driver.stdout is not None
        driver.stdout.readline()
    before = {path for path in root.rglob("*") if path.is_file()}
    ready = time.monotonic()
    outcome = [""] * len(drivers)
    while not all(outcome):
        for number, (driver, step) in enumerate(zip(drivers, steps, strict=True)):
            if outcome[number]:
                continue
            if driver.poll() is not None:
                outcome[number] = "finished"
            elif step.has_come(root, before, time.monotonic() - ready):
                os.killpg(driver.pid, signal.SIGKILL)  # a local Ray with it
                driver.wait()
                outcome[number] = "killed"
        time.sleep(0.0005)
    return outcome


def finish(root: Path, screens: list[Path], address: str) -> None:
    driver = start(root, screens, address)
    driver.communicate(timeout=300)
    if driver.returncode:
        raise RuntimeError(f"an undisturbed ingest into {root} failed with exit code {driver.returncode}")


def rows_of(root: Path) -> dict[str, Counter[str]]:
    """How many times each row is in each table, times of writing left out."""
    catalog = cytolake.catalog.open(root)
    found = {}
    for name in ("plates", "wells", "sites", "crops", "qc_metrics", "quarantine"):
        rows = catalog.table(name).drop_columns([c for c in table_contract(name).schema.names if c.endswith("_at")])
        found[name] = Counter(json.dumps(row, sort_keys=True) for row in rows.to_pylist())
    return found


def unreadable_versions(root: Path) -> int:
    """Versions of any table that cannot be read to the last row."""
    count = 0
    for name in table_names():
        path = str(root / "tables" / name)
        for version in range(DeltaTable(path).version() + 1):
            try:
                DeltaTable(path, version=version).to_pyarrow_table()
            except Exception as error:  # whatever it is, the version is unreadable
                print(f"{name} version {version}: {error}")
                count += 1
    return count


def is_half_visible(root: Path, expected: dict[str, Counter[str]]) -> bool:
    """Whether any plate that is visible lacks a row, or DuckDB or Polars count other rows than the catalog does."""
    found = {name: rows for name, rows in rows_of(root).items() if name != "quarantine"}
    ours = {name: rows.total() for name, rows in found.items()}
    if any({name: each[name] for name in ours} != ours for each in counts_of_others(root)):
        return True
    visible = {json.loads(row)["plate_id"] for row in found["plates"]}
    return any(
        rows != Counter({row: n for row, n in expected[name].items() if json.loads(row)["plate_id"] in visible})
        for name, rows in found.items()
    )


def rounds(rng: np.random.Generator) -> Iterator[list[Step]]:
    """Drivers that run at once and where each is killed: one at every step, pairs, random moments, four at once."""
    for step in STEPS[::2]:  # with a local Ray
        yield [step]
    for step in STEPS:
        yield [step]
    for first, second in zip(STEPS, STEPS[::-1], strict=True):
        yield [first, second]
    for seconds in rng.uniform(0.2, 4.0, 8).tolist():
        yield [Step(f"after {seconds:.1f} s", after(seconds))]
    yield [STEPS[i] for i in (1, 3, 5, 9)]
    for step in itertools.cycle(STEPS):
        yield [step]


def main() -> int:
    console = Console(width=120)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="cytolake-faults-ingest-") as name, cluster() as address:
        folder = Path(name)
        screens = []
        for seed in range(2):
            config = SimulatedScreen(
                screen=f"s{seed}", seed=seed, n_plates=2, n_pathways=1, genes_per_pathway=2, guides_per_gene=1,
                n_compounds=1, doses=(1.0,), n_negative_controls=2, n_positive_controls=1, sites_per_well=1,
            )  # fmt: skip
            screens.append(simulate_screen(config, folder / "screens")[0].parent)
        undisturbed = folder / "undisturbed"
        finish(undisturbed, screens, address)
        expected = rows_of(undisturbed)
        n_crops = sum(expected["crops"].values())
        console.print(f"{sum(expected['plates'].values())} plates, {n_crops:,} crops; catalogs, each with kills:")

        kills: Counter[str] = Counter()
        lost = duplicated = unreadable = half_visible = 0
        number = 0
        plan = rounds(rng)
        while sum(kills.values()) < INGEST_KILLS:
            root = folder / f"catalog{number}"
            number += 1
            before = sum(kills.values())
            for steps in itertools.islice(plan, 5):
                outcomes = kill_at(root, screens, steps, "" if number <= LOCAL_CATALOGS else address)
                half_visible += is_half_visible(root, expected)
                for step, outcome in zip(steps, outcomes, strict=True):
                    if outcome == "killed":
                        kills[step.name.split(" s")[0] if step.name.startswith("after") else step.name] += 1
            finish(root, screens, address)
            report = vacuum(cytolake.catalog.open(root), 0)
            found = rows_of(root)
            lost += sum((expected[table] - found[table]).total() for table in expected)
            extra = {table: found[table] - expected[table] for table in expected}
            duplicated += sum(rows.total() for rows in extra.values())
            unreadable += unreadable_versions(root)
            console.print(
                f"  {root.name}: {sum(kills.values()) - before} kills; {len(report.files)} orphaned files and "
                f"{len(report.staged)} staging folders vacuumed; rows lost {lost}, duplicated {duplicated}, "
                f"unreadable versions {unreadable} so far"
            )
        console.print("corrections, each killed at every write:")
        (folder / "corrections").mkdir()
        corrected = correction_faults(folder / "corrections", lambda line: console.print(f"  {line}"))
        kills += Counter({f"{verb}, at a write": n for verb, n in corrected.kills.items()})
        lost, duplicated = lost + corrected.lost, duplicated + corrected.doubled
        unreadable, half_visible = unreadable + corrected.unreadable, half_visible + corrected.half_visible
    shown = Table("killed at", "times", box=None)
    for step, count in kills.most_common():
        shown.add_row(step, str(count))
    console.print(shown)
    wrong = lost + duplicated + unreadable + half_visible
    is_ok = wrong == 0 and sum(kills.values()) >= KILLS_MIN
    print(
        f"faults-ingest: kills={sum(kills.values())} lost={lost} duplicated={duplicated} unreadable={unreadable} "
        f"half_visible={half_visible} figure={wrong} bar=0 {'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
