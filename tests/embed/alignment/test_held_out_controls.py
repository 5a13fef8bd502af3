"""Which controls an alignment does not see."""

from __future__ import annotations

import numpy as np

from cytolake.embed.alignment.held_out_controls import hold_out_controls


def test_half_of_each_batch_is_held_out_as_long_as_two_remain():
    n_controls = {"a": 9, "b": 4, "c": 3, "d": 2, "e": 1, "f": 0}
    batches = [name for name, n in n_controls.items() for _ in range(n + 5)]
    is_control = np.concatenate([np.arange(n + 5) < n for n in n_controls.values()])
    held_out = hold_out_controls(is_control, batches)
    assert not (held_out & ~is_control).any()
    of_batch = {name: int(held_out[np.asarray(batches) == name].sum()) for name in n_controls}
    assert of_batch == {"a": 4, "b": 2, "c": 1, "d": 0, "e": 0, "f": 0}
    np.testing.assert_array_equal(held_out, hold_out_controls(is_control, batches))
    assert (held_out != hold_out_controls(is_control, batches, seed=1)).any()
