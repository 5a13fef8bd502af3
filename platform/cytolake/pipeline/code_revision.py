"""Which code a run was made with."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cytolake


def code_revision() -> dict[str, str]:
    """Tags `code_version`, and `code_revision` where the package runs from a checkout of git: the commit, with
    `-changed` where tracked files differ from it."""
    try:
        tags = {"code_version": version("cytolake")}
    except PackageNotFoundError:  # a job that runs from a checkout without an install
        tags = {}
    folder = Path(cytolake.__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        tags["code_revision"] = commit + ("-changed" if changed else "")
    return tags


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
