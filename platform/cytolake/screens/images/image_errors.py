"""What a refused image file is reported as."""

from __future__ import annotations


class ImageFileError(ValueError):
    """An image file that is refused; the fields of a `Problem`."""

    def __init__(self, problem: str, found: str, expected: str, next_step: str) -> None:
        self.problem, self.found, self.expected, self.next_step = problem, found, expected, next_step
        super().__init__(f"{problem}: found {found}, expected {expected}. {next_step}")
