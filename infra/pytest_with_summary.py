"""Runs pytest, and reports where it ended without a summary: killed, or ended by a library below Python.

    python infra/pytest_with_summary.py COMMAND [ARGUMENT ...]

Ray's core ends its driver with status 1, the status of a failed test, once it has not reached its control store for a
minute; a kernel that is short of memory kills without a message.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import deque

N_LAST_LINES = 12
_SUMMARY = re.compile(r"\b(passed|failed|error|errors|skipped|deselected|no tests ran)\b.* in \d+(\.\d+)?s\b")


def main(command: list[str]) -> int:
    """The command's exit status, 128 + N for signal N as in a shell, and never 0 without a summary."""
    last: deque[str] = deque(maxlen=N_LAST_LINES)
    has_summary = False
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if line.strip():
                last.append(line.rstrip("\n"))
            has_summary = has_summary or _SUMMARY.search(line) is not None
    status = run.returncode if run.returncode >= 0 else 128 - run.returncode
    if has_summary:
        return status
    lines = "\n".join(f"    {line}" for line in last) or "    (none)"
    print(
        f"\n{' '.join(command)}\nended with {_named(run.returncode)}, without a summary: killed, or ended by a library "
        "below Python, before all tests ran. Check the kernel's log for a lack of memory (dmesg) and Ray's logs "
        f"(/tmp/ray/session_latest/logs), and run it again. Its last lines:\n{lines}",
        flush=True,
    )
    return status or 1


def _named(returncode: int) -> str:
    if returncode >= 0:
        return f"status {returncode}"
    return f"status {128 - returncode} (signal {-returncode}, {signal.Signals(-returncode).name})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
