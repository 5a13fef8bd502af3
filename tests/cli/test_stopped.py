from __future__ import annotations

import pytest
import typer
from ray.exceptions import OutOfMemoryError
from tests.catalog.test_ray_memory import KILLED, WANTED

from cytolake.cli.bad_input import EXIT_STOPPED, exits_on_bad_input
from cytolake.train.pretrain import PretrainError


@pytest.mark.parametrize("error", [OutOfMemoryError(KILLED), PretrainError(f"{WANTED} ended workers.")])
def test_work_that_was_stopped_ends_in_a_sentence_and_not_in_a_stack(error, capsys):
    with pytest.raises(typer.Exit) as ended, exits_on_bad_input(traceback=False):
        raise error
    assert ended.value.exit_code == EXIT_STOPPED
    printed = capsys.readouterr().err
    assert printed.startswith(f"error {WANTED}")
    assert "Traceback" not in printed
    assert "RAY_" not in printed


def test_the_stack_is_shown_on_request_and_of_a_fault_of_ours():
    with pytest.raises(OutOfMemoryError), exits_on_bad_input(traceback=True):
        raise OutOfMemoryError(KILLED)
    with pytest.raises(ZeroDivisionError), exits_on_bad_input():
        raise ZeroDivisionError
