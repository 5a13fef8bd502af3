"""Every step is recorded once, also after a kill."""

from __future__ import annotations

import numpy as np

from cytolake.train.seen import SeenWriter, cut_seen, read_seen


def test_steps_of_all_workers_are_put_together(tmp_path):
    for rank in (0, 1):
        writer = SeenWriter(tmp_path, 0, rank, 2)
        for step in (1, 2, 3):
            writer.add(step, np.array([10 * step + rank]))
        writer.flush()
    assert [rows.tolist() for rows in read_seen(tmp_path)] == [[10, 11], [20, 21], [30, 31]]


def test_what_was_seen_after_the_checkpoint_is_seen_again_and_counted_once(tmp_path):
    killed = SeenWriter(tmp_path, 0, 0, 1)
    for step in (1, 2, 3, 4):
        killed.add(step, np.array([step]))
    killed.flush()
    half = next((tmp_path / "seen").iterdir())
    half.write_text(half.read_text() + '{"step": 5, "ro')
    cut_seen(tmp_path, 2)
    for rank in (0, 1):
        writer = SeenWriter(tmp_path, 2, rank, 2)
        writer.add(3, np.array([30 + rank]))
        writer.flush()
    assert [rows.tolist() for rows in read_seen(tmp_path)] == [[1], [2], [30, 31]]


def test_a_run_that_recorded_nothing_has_seen_nothing(tmp_path):
    cut_seen(tmp_path, 0)
    assert read_seen(tmp_path) == []


def test_a_missing_step_shows_as_one_without_crops(tmp_path):
    writer = SeenWriter(tmp_path, 0, 0, 1)
    writer.add(1, np.array([1]))
    writer.add(3, np.array([3]))
    writer.flush()
    assert [rows.tolist() for rows in read_seen(tmp_path)] == [[1], [], [3]]
