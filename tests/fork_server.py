"""Processes that fork from a server which has made the imports and done nothing else.

Such a process starts in milliseconds; a new interpreter takes seconds of CPU to import the same.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any


def fork_server(*modules: str) -> ForkServerContext:
    """The context of processes with some modules imported, of this checkout and none that is installed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def run_two_workers(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes that are one gloo group."""
    import torch.multiprocessing

    fork_server(function.__module__, "torch._dynamo")  # which the first optimiser of a process imports, for seconds
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_in_group, (port, function, arguments), nprocs=2, start_method="forkserver")


def _in_group(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    function(rank, *arguments)
    torch.distributed.destroy_process_group()
