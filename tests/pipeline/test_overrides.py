from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from cytolake.pipeline.overrides import RecipeError, apply_fields, apply_overrides, read_yaml


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
    pattern: str = ""
    side: Literal["", "left", "no"] = ""
    sizes: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("found an empty name, expected one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    root: str = "here"
    is_fast: bool = False
    inner: Inner = Inner()
    extra: Inner | None = None
    rates: tuple[float, ...] = (0.5,)
    limit: float | None = None
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
        ("[{name: a, sizes: [x]}]", r"entry 1, sizes: found '?\[x\]'?, expected a list of int"),
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


def from_file(text: str) -> Outer:
    return apply_fields(Outer(), read_yaml(text), "mine.yaml")


@pytest.mark.parametrize("spelled", ["2024", "007", "1e5", "1.50", "0x10", "2024-01-31", "12:30", "1_000"])
def test_a_number_for_a_text_is_taken_as_it_was_written(spelled):
    part = f"{{name: {spelled}, names: [{spelled}, a], columns: {{dose: {spelled}}}}}"
    wanted = Part(name=spelled, names=(spelled, "a"), columns={"dose": spelled})
    assert apply_overrides(Outer(), [f"parts=[{part}]"]).parts == (wanted,)
    got = from_file(f"root: {spelled}\ninner: {{note: {spelled}, names: [{spelled}]}}\nparts: [{part}]\n")
    assert got == Outer(root=spelled, inner=Inner(note=spelled, names=(spelled,)), parts=(wanted,))


@pytest.mark.parametrize(
    ("value", "said"),
    [("no", r'found no, which YAML reads as false.*quotes: "no"'), ("null", "found null, expected a text. Leave the")],
)
def test_a_truth_value_or_null_for_a_text_is_refused_with_what_to_write(value, said):
    for given in (f"parts: [{{name: {value}}}]", f"root: {value}", f"parts: [{{name: a, names: [{value}]}}]"):
        with pytest.raises(RecipeError, match=said):
            from_file(given)
    with pytest.raises(RecipeError, match=said):
        apply_overrides(Outer(), [f"parts=[{{name: a, pattern: {value}}}]"])
    assert from_file(f"parts: [{{name: '{value}'}}]").parts[0].name == value


def test_a_choice_may_be_empty_or_a_word_of_yaml_and_others_are_refused_in_plain_words():
    assert [part.side for part in from_file("parts: [{name: a, side: ''}, {name: b, side: no}]").parts] == ["", "no"]
    with pytest.raises(RecipeError) as caught:
        from_file("parts: [{name: a, side: off}]")
    assert str(caught.value) == "mine.yaml, parts: entry 1, side: found off, expected one of '', 'left', 'no'."


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", ".nan", ".inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number):
    for name in ("inner.rate", "rates", "limit"):
        with pytest.raises(RecipeError, match="expected a finite number"):
            apply_overrides(Outer(), [f"{name}={number}"])
    with pytest.raises(RecipeError, match=r"mine.yaml, inner.rate: found .*, expected a finite number\."):
        from_file(f"inner: {{rate: {number}}}")


def test_fields_of_a_config_may_be_given_together_also_where_it_is_off():
    assert apply_overrides(Outer(), ["inner={epochs: 7}"]).inner == Inner(epochs=7)
    assert from_file("extra: {epochs: 7}").extra == Inner(epochs=7)
    assert from_file("extra: null").extra is None
    with pytest.raises(RecipeError, match=r"found '3', expected fields of Inner. Set one of its fields: epochs, "):
        apply_overrides(Outer(), ["inner=3"])


def test_an_error_about_an_entry_repeats_what_was_typed_once():
    for entry in ("{name: '', sizes: [1], pattern: a}", "{name: a, sizes: [1], patern: a}", "{name: a, sizes: [x]}"):
        with pytest.raises(RecipeError) as caught:
            apply_overrides(Outer(), [f"parts=[{entry}]"])
        assert str(caught.value).count("--set") == 1
