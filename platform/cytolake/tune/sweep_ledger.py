"""Record the trials of a sweep in a file, so that a killed sweep can continue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolake.tune.trials import Settings


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """One training of the search, complete or stopped."""

    settings: Settings
    scores: dict[int, float]
    """Mean recall of classes after each rung's step."""
    failure: str = ""
    """Why it has no score, such as a loss that is not finite."""

    @property
    def step(self) -> int:
        """Step at which it ended."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float:
        """At its last rung; 0 where it failed."""
        return 0.0 if self.failure else self.scores.get(self.step, 0.0)


class Ledger:
    """Trials of a sweep, one line each as they begin and end; readable after a kill."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "trials.jsonl"

    def begin(self, settings: Settings) -> None:
        """Record that a trial began."""
        self._add({"begun": settings})

    def end(self, trial: SweepTrial) -> None:
        """Record that a trial was trained to its end, stopped, or failed."""
        self._add({"ended": trial.settings, "scores": trial.scores, "failure": trial.failure})

    def ended(self) -> list[SweepTrial]:
        """Trials that ended, in the order of their end."""
        return [
            SweepTrial(row["ended"], {int(step): score for step, score in row["scores"].items()}, row["failure"])
            for row in self._rows()
            if "ended" in row
        ]

    def interrupted(self) -> list[Settings]:
        """Settings of trials that began and did not end."""
        ended = [trial.settings for trial in self.ended()]
        begun = [row["begun"] for row in self._rows() if "begun" in row and row["begun"] not in ended]
        return [settings for place, settings in enumerate(begun) if settings not in begun[:place]]

    def _add(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _rows(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        rows = []
        for place, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if place < len(lines) - 1:
                    raise  # only the last line can be torn by a kill
        return rows
