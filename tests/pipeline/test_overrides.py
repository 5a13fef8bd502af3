from __future__ import annotations

from dataclasses import dataclass

import pytest

from cytolake.pipeline.overrides import RecipeError, apply_overrides


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    epochs: int = 3
    least: int = 2
    rate: float = 0.1
    names: tuple[str, ...] = ()
    note: str | None = None
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.epochs < self.least:
            raise ValueError(f"epochs is {self.epochs}; expected at least {self.least}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("found an empty name, expected one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    root: str = "here"
    is_fast: bool = False
    inner: Inner = Inner()
    extra: Inner | None = None
    parts: tuple[Part, ...] = ()


def test_nested_fields_take_values_of_their_own_type():
    got = apply_overrides(
        Outer(),
        ["inner.epochs=5", "inner.rate=1e-3", "root=../data", "is_fast=true", "inner.names=[a, b]", "inner.note=007"],
    )
    assert got == Outer(root="../data", is_fast=True, inner=Inner(epochs=5, rate=1e-3, names=("a", "b"), note="007"))


def test_a_whole_number_is_a_fraction_but_not_the_reverse():
    assert apply_overrides(Outer(), ["inner.rate=1"]).inner.rate == 1.0
    with pytest.raises(RecipeError, match=r"found '2\.5', expected int"):
        apply_overrides(Outer(), ["inner.epochs=2.5"])


def test_a_list_of_configs_is_set_as_a_whole_and_checked_like_everything_else():
    got = apply_overrides(Outer(), ['parts=[{"name": "a"}, {name: "007", sizes: [2, 3]}]'])
    assert got.parts == (Part(name="a"), Part(name="007", sizes=(2, 3)))
    for wrong, said in (
        ("[{sizes: [1]}]", "Part needs name"),
        ("[{name: a, size: [1]}]", "Did you mean 'sizes'"),
        ("[{name: a, sizes: [x]}]", "expected tuple"),
        ("[{name: ''}]", "expected one"),
    ):
        with pytest.raises(RecipeError, match=said):
            apply_overrides(Outer(), [f"parts={wrong}"])


def test_a_list_may_be_typed_with_commas_alone():
    assert apply_overrides(Outer(), ["inner.names=gene,pathway"]).inner.names == ("gene", "pathway")
    assert apply_overrides(Outer(), ["inner.names=0.75"]).inner.names == ("0.75",)
    assert apply_overrides(Outer(), ["inner.seeds=1,2"]).inner.seeds == (1, 2)
    assert apply_overrides(Outer(), ["inner.seeds=7"]).inner.seeds == (7,)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("inner.epoch=5", "Did you mean 'epochs'"),
        ("inner.epochs", "expected name=value"),
        ("root.deeper=1", "plain value with no fields"),
        ("extra.epochs=1", "is off in this recipe"),
        ("is_fast=perhaps", "expected bool"),
        ("inner.epochs=0", "--set inner.epochs=0: epochs is 0"),
    ],
)
def test_a_wrong_assignment_says_what_would_be_right(assignment, said):
    with pytest.raises(RecipeError, match=said):
        apply_overrides(Outer(), [assignment])


def test_two_fields_that_must_agree_may_change_together():
    got = apply_overrides(Outer(), ["inner.epochs=1", "inner.least=1"])
    assert (got.inner.epochs, got.inner.least) == (1, 1)
