"""Numbers of things in the texts that commands and stages print."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """`1 plate`, `1,200 plates`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
