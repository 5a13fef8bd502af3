from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from cytolake.catalog.ray_tasks import run_tasks


@pytest.fixture
def product() -> Callable[[int, int], int]:
    return lambda a, b: a * b  # Ray sends a lambda by value: its workers do not find this file


def test_results_come_in_order_and_arguments_are_taken_as_needed(local_ray, product):
    seen: list[tuple[str, int, int]] = []
    taken: list[int] = []
    at_first_result: list[int] = []

    def tasks() -> Iterator[tuple[int, int]]:
        for number in range(40):
            taken.append(number)
            yield number, 10

    def report(*call: object) -> None:
        seen.append(call)
        at_first_result.append(len(taken))

    assert run_tasks(product, tasks(), 40, "numbers", report) == [10 * number for number in range(40)]
    assert seen == [("numbers", done, 40) for done in range(1, 41)]
    assert at_first_result[0] <= 8  # two for each of a few CPUs


def test_without_ray_the_results_are_the_same(monkeypatch, product):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert run_tasks(product, ((number, 10) for number in range(7)), 7, "numbers") == [0, 10, 20, 30, 40, 50, 60]
    assert run_tasks(product, [], 0, "numbers") == []


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_an_error_of_a_task_is_raised(local_ray, product, n_tasks):
    with pytest.raises(TypeError):
        run_tasks(product, [("a", "b")] * n_tasks, n_tasks, "numbers")
