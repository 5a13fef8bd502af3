"""`--set a.b=value`, and the fields of a recipe file: a recipe changed, checked against the recipe's own types."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

Config = TypeVar("Config")


class RecipeError(ValueError):
    """A recipe or `--set` that cannot be used; the text says what would have been right."""


def apply_overrides(config: Config, assignments: Iterable[str]) -> Config:
    """Return the config with every `path.to.field=value` applied, all at once.

    Values are read as YAML (`3`, `true`, `null`, `[a, b]`), then checked against the field's declared type, so a number
    for a text or a fraction for a count is refused before anything runs.

    Args:
        config: A frozen dataclass, possibly of dataclasses.
        assignments: Texts such as `pretrain.epochs=3`.

    Raises:
        RecipeError: No `=`, an unknown field (with the nearest name), or a value of the wrong type.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        names = path.split(".")
        if not separator or not all(names):
            raise RecipeError(f"--set {assignment}: expected name=value, such as --set pretrain.seed=1.")
        branch = tree
        for name in names[:-1]:
            branch = branch.setdefault(name, {})
            if not isinstance(branch, dict):
                raise RecipeError(f"--set {assignment}: {name!r} was set as a whole before.")
        branch[names[-1]] = _Assignment(f"--set {assignment}", text)
    return _changed(config, tree) if tree else config


def apply_fields(config: Config, fields: Mapping[str, Any], source: str) -> Config:
    """Return the config with the fields of a nested mapping, as YAML gives it, checked as `--set` is.

    Args:
        config: A frozen dataclass, possibly of dataclasses.
        fields: Field -> value, or -> a mapping of the fields of the config that it holds.
        source: File of the mapping, for errors.

    Raises:
        RecipeError: An unknown field (with the nearest name), or a value of the wrong type.
    """

    def assigned(config: Any, given: Mapping[str, Any], path: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, value in given.items():
            place, current = f"{path}{name}", getattr(config, str(name), None)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(current):
                tree[str(name)] = assigned(current, value, f"{place}.")
            else:
                text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
                tree[str(name)] = _Assignment(f"{source}, {place}", text.removesuffix("\n...\n"))
        return tree

    tree = assigned(config, fields, "")
    return _changed(config, tree) if tree else config


@dataclasses.dataclass(frozen=True, slots=True)
class _Assignment:
    whole: str
    """Where it was given, as the person typed it, for errors."""
    value: str


def _changed(config: Any, tree: Mapping[str, Any]) -> Any:
    """Replace all the fields of one config at once: two that must agree may both change."""
    fields = [field.name for field in dataclasses.fields(config)]
    hints = typing.get_type_hints(type(config))
    values: dict[str, Any] = {}
    for name, branch in tree.items():
        given = " ".join(_typed(branch))
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(
                f"{given}: {type(config).__name__} has no field {name!r}.{hint} Its fields: {', '.join(fields)}."
            )
        if isinstance(branch, _Assignment):
            values[name] = _read_value(branch.value, hints[name], branch.whole)
            continue
        current = getattr(config, name)
        if current is None:
            raise RecipeError(f"{given}: {name!r} is off in this recipe, so it has no fields to set.")
        if not dataclasses.is_dataclass(current):
            raise RecipeError(f"{given}: {name!r} is a plain value with no fields; stop the path there.")
        values[name] = _changed(current, branch)
    try:
        return dataclasses.replace(config, **values)
    except RecipeError:
        raise
    except ValueError as error:  # the config's own check in __post_init__
        raise RecipeError(f"{' '.join(_typed(tree))}: {error}") from error


def _typed(branch: Any) -> list[str]:
    if isinstance(branch, _Assignment):
        return [branch.whole]
    return [each for below in branch.values() for each in _typed(below)]


def _read_value(text: str, hint: Any, assignment: str) -> Any:
    if hint is str or _is_optional_text(hint):
        value: Any = None if hint is not str and text in ("", "null") else text
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{assignment}: {text!r} is not a YAML value.") from error
    part_hint = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(part_hint) and isinstance(value, dict):
        value = [value]
    if typing.get_origin(hint) is tuple and not isinstance(value, list):
        # --set probe.seeds=0,1,2, or a single value: YAML needs no brackets round what is a list in any case.
        parts = [part.strip() for part in text.split(",") if part.strip()]
        value = parts if str in typing.get_args(hint) else [yaml.safe_load(part) for part in parts]
    if isinstance(value, list):
        if dataclasses.is_dataclass(part_hint) and (texts := [part for part in value if not isinstance(part, dict)]):
            example = getattr(part_hint, "EXAMPLE", "") or f"the fields of {part_hint.__name__}"  # type: ignore[union-attr]
            raise RecipeError(f"{assignment}: found {texts[0]!r}. Write it as {example}.")
        value = tuple(
            _built(part_hint, part, assignment)
            if isinstance(part, dict) and dataclasses.is_dataclass(part_hint)
            else tuple(part)
            if isinstance(part, list)
            else part
            for part in value
        )
    if hint is float and isinstance(value, str):
        value = _number(value)  # YAML 1.1 reads 1e-3 as text
    try:
        return TypeAdapter(hint).validate_python(value, strict=not _may_widen(hint, value))
    except ValidationError as error:
        problem = error.errors()[0]
        raise RecipeError(
            f"{assignment}: found {text!r}, expected {_type_text(hint)} ({problem['msg'].lower()})."
        ) from error


def _built(kind: Any, given: Mapping[str, Any], assignment: str) -> Any:
    """One config of a list of them, from its fields as YAML gives them."""
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(needed - given.keys())
    if missing:
        raise RecipeError(f"{assignment}: {kind.__name__} needs {', '.join(missing)}.")
    tree = {
        str(name): _Assignment(assignment, value if isinstance(value, str) else yaml.safe_dump(value))
        for name, value in given.items()
    }
    blank = object.__new__(kind)  # its fields are read by `dataclasses.replace` only where they are not given
    for field in dataclasses.fields(kind):
        if field.name not in needed:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            object.__setattr__(blank, field.name, default)
    return _changed(blank, tree)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _may_widen(hint: Any, value: Any) -> bool:
    """Whether an int may stand for a float; strict mode would refuse it inside unions and tuples."""
    return isinstance(value, int | tuple) and not isinstance(value, bool) and "float" in _type_text(hint)


def _is_optional_text(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and set(typing.get_args(hint)) == {
        str,
        type(None),
    }


def _type_text(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) and not typing.get_args(hint) else str(hint)  # type: ignore[return-value]
