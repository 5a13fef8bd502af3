"""Processes for tests of what happens when one is killed or several write at once."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.catalog.small_plate import CONFIG, commit, commit_plate, stage, write_plate
from tests.fork_server import fork_server

import cytolake.catalog
from cytolake.catalog import table_contract
from cytolake.catalog.ingest.plate_content import content_hash


def run_at_once(function: Callable[..., Any], each: Sequence[Sequence[Any]]) -> tuple[list[int | None], list[Any]]:
    """Call a function in as many processes as there are arguments, all at the same moment.

    Returns:
        Exit codes (-9: killed), and what those that ended gave back, in the order in which they ended.
    """
    context = fork_server(__name__)
    start, results = context.Barrier(len(each)), context.SimpleQueue()
    processes = [context.Process(target=_call, args=(start, results, function, arguments)) for arguments in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    return codes, [results.get() for code in codes if code == 0]


def _call(start: Any, results: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    start.wait(120)
    results.put(function(*arguments))


def commit_one(root: str, source: str, name: str) -> None:
    """Commit one plate."""
    commit(cytolake.catalog.open(root), write_plate(Path(source), name))


def commit_and_die(root: str, source: str, commits: int, seed: int = 0) -> None:
    """Commit a plate; killed by its own hand at the Delta commit after so many."""
    catalog = cytolake.catalog.open(root)
    left = commits

    def count(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return method(*arguments, **named)

        return counted

    catalog.write_plate, catalog.show_plate = count(catalog.write_plate), count(catalog.show_plate)
    commit(catalog, write_plate(Path(source), seed=seed))


def ingest_on_full_disk(root: str, source: str, moment: str, limit: int) -> str:
    """Ingest a plate while no file may be longer than `limit` bytes; the error's type and text."""
    catalog = cytolake.catalog.open(root)
    plate = write_plate(Path(source))
    if moment == "commit":
        stage(catalog, plate)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes then fail with EFBIG, as they would with ENOSPC
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        if moment == "stage":
            stage(catalog, plate)
        commit_plate(catalog, plate, content_hash(plate), CONFIG)
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return ""


def append_own_and_shared(root: str, me: int) -> int:
    """Create the catalog, append six own rows and six that every process appends; how many of those it committed."""
    catalog = cytolake.catalog.open(root, create=True)
    committed = 0
    for i in range(6):
        text = dict.fromkeys(("site_id", "well_id", "plate_id", "screen", "plate", "batch", "well", "site"), "shared")
        numbers = {"n_channels": 5, "y": 0, "x": 0, "size": 64, "foreground_share": 0.5}
        own = table_contract("crops").rows([{"crop_id": f"{me}-{i}"} | text | numbers])
        shared = table_contract("crops").rows([{"crop_id": f"shared-{i}"} | text | numbers])
        assert catalog.append("crops", own, transaction=f"{me}-{i}")
        committed += catalog.append("crops", shared, transaction=f"shared-{i}")
    return committed
