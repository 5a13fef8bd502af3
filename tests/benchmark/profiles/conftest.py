"""What tests of the profile benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def without_layout_warnings() -> Iterator[None]:
    """Scores without the test of the layout, which takes seconds a call; test_score_profiles.py has tests of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cytolake.benchmark.profiles.score.confounding_warnings", lambda *_, **__: [])
        yield
