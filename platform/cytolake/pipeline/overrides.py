"""`--set a.b=value`, and the fields of a recipe file: a recipe changed, checked against the recipe's own types."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

Config = TypeVar("Config")


class RecipeError(ValueError):
    """A recipe or `--set` that cannot be used; the text says what would have been right."""


def apply_overrides(config: Config, assignments: Iterable[str]) -> Config:
    """Return the config with every `path.to.field=value` applied, all at once.

    Values are read as YAML (`3`, `true`, `null`, `[a, b]`), then checked against the field's declared type, so a word
    for a number or a fraction for a count is refused before anything runs. A text is taken as it was typed.

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
    """Return the config with the fields of a nested mapping, as `read_yaml` gives it, checked as `--set` is.

    Args:
        config: A frozen dataclass, possibly of dataclasses.
        fields: Field -> value, or -> a mapping of the fields of the config that it holds.
        source: File of the mapping, for errors.

    Raises:
        RecipeError: An unknown field (with the nearest name), or a value of the wrong type.
    """

    def assigned(config: Any, given: Mapping[str, Any], path: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key, value in given.items():
            name = field_name(key)
            current = getattr(config, name, None)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(current):
                tree[name] = assigned(current, value, f"{path}{name}.")
            else:
                tree[name] = _Assignment(f"{source}, {path}{name}", value)
        return tree

    tree = assigned(config, fields, "")
    return _changed(config, tree) if tree else config


def read_yaml(text: str) -> Any:
    """What a YAML text holds. Numbers, dates and truth values keep how they were written, for fields that are texts.

    To YAML, a plate called 007 is 7, one called 12:30 is 750, and a screen called no is false.

    Raises:
        yaml.YAMLError: Not YAML.
    """
    return yaml.load(text, _SpellingSafeLoader)


@dataclasses.dataclass(frozen=True, slots=True)
class _Scalar:
    """A number, date or truth value of a YAML text."""

    value: bool | int | float | datetime.date
    text: str
    """As it was written."""


def _scalar_of(construct: Any) -> Any:
    return lambda loader, node: _Scalar(construct(loader, node), node.value)


_SCALARS: dict[str | None, Any] = {
    tag: _scalar_of(yaml.SafeLoader.yaml_constructors[tag])
    for tag in (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
}


class _SpellingSafeLoader(yaml.SafeLoader):
    """Gives `_Scalar` for what YAML reads as something other than text."""

    yaml_constructors = {**yaml.SafeLoader.yaml_constructors, **_SCALARS}  # noqa: RUF012


@dataclasses.dataclass(frozen=True, slots=True)
class _Assignment:
    whole: str
    """Where it was given, as the person typed it, for errors."""
    value: Any
    """Text, to be read as the field's type says, or what `read_yaml` made of it."""
    inner: str = ""
    """Which entry and field of the whole, where that is a list or a mapping of fields."""

    @property
    def place(self) -> str:
        return f"{self.whole}: {self.inner}" if self.inner else self.whole

    def part(self, name: str, value: Any) -> _Assignment:
        return _Assignment(self.whole, value, f"{self.inner}, {name}" if self.inner else name)


def _changed(config: Any, tree: Mapping[str, Any]) -> Any:
    """Replace all the fields of one config at once: two that must agree may both change."""
    fields = [field.name for field in dataclasses.fields(config)]
    hints = typing.get_type_hints(type(config))
    values: dict[str, Any] = {}
    for name, branch in tree.items():
        given = _typed(branch)
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(
                f"{given}: {type(config).__name__} has no field {name!r}.{hint} Its fields: {', '.join(fields)}."
            )
        if isinstance(branch, _Assignment):
            values[name] = _read_value(branch, hints[name], getattr(config, name, None))
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
        raise RecipeError(f"{_typed(tree)}: {error}") from error


def _typed(branch: Any) -> str:
    """What the person typed of these fields, each once: the fields of a list's entry were typed as one."""
    return " ".join(dict.fromkeys(_wholes(branch)))


def _wholes(branch: Any) -> Iterator[str]:
    if isinstance(branch, _Assignment):
        yield branch.whole
    else:
        for below in branch.values():
            yield from _wholes(below)


def _read_value(given: _Assignment, hint: Any, current: Any) -> Any:
    value = _as_yaml(given, hint)
    kind = _config_class(hint)
    part_hint = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if kind is not None and isinstance(value, dict):
        tree = _tree(given, value)
        return _built(kind, tree, given.place) if current is None else _changed(current, tree)
    if kind is not None and not (value is None and type(None) in typing.get_args(hint)):
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise RecipeError(
            f"{given.place}: found {_shown(given.value)}, expected fields of {kind.__name__}. Set one of its fields: "
            f"{names}."
        )
    if isinstance(part_hint, type) and dataclasses.is_dataclass(part_hint) and isinstance(value, list):
        return _entries(part_hint, value, given)
    value = _fitted(value, hint, given)
    if "float" in str(hint) and isinstance(value, str):
        value = _number(value)  # YAML 1.1 reads 1e-3 as text
    try:
        read = TypeAdapter(hint).validate_python(value, strict=not _may_widen(hint, value))
    except ValidationError as error:
        reason = "" if "Literal" in str(hint) else f" ({error.errors()[0]['msg'].lower()})"
        raise RecipeError(
            f"{given.place}: found {_shown(given.value)}, expected {_type_text(hint)}{reason}."
        ) from error
    if not _is_finite(read):
        raise RecipeError(f"{given.place}: found {_shown(given.value)}, expected a finite number.")
    return read


def _as_yaml(given: _Assignment, hint: Any) -> Any:
    """The value, read as YAML where it is a text for something else; a list where the type is one."""
    value, is_list = given.value, typing.get_origin(hint) is tuple
    try:
        if isinstance(value, str) and not _takes_text(hint, value):
            value = read_yaml(value)
        if is_list and isinstance(value, dict):
            return [value]
        if is_list and not isinstance(value, list) and given.value is not None:
            # --set probe.seeds=0,1,2, or a single value: YAML needs no brackets round what is a list in any case.
            text = given.value if isinstance(given.value, str) else _as_text(given.value, given)
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return parts if str in typing.get_args(hint) else [read_yaml(part) for part in parts]
    except yaml.YAMLError as error:
        raise RecipeError(f"{given.place}: {given.value!r} is not a YAML value.") from error
    return value


def _takes_text(hint: Any, text: str) -> bool:
    """Whether a text is the value itself: for a text, and for a choice that has it (YAML reads '' as null)."""
    return hint is str or _is_optional_text(hint) or text in _choices(hint)


def _entries(kind: Any, values: list[Any], given: _Assignment) -> tuple[Any, ...]:
    """The configs of a list of them."""
    if texts := [part for part in values if not isinstance(part, dict)]:
        example = getattr(kind, "EXAMPLE", "") or f"the fields of {kind.__name__}"
        raise RecipeError(f"{given.place}: found {_shown(texts[0])}. Write it as {example}.")
    parts = [given.part(f"entry {n}", value) for n, value in enumerate(values, 1)]
    return tuple(_built(kind, _tree(part, part.value), part.place) for part in parts)


def _tree(given: _Assignment, fields: Mapping[Any, Any]) -> dict[str, Any]:
    return {(name := field_name(key)): given.part(name, value) for key, value in fields.items()}


def _built(kind: Any, tree: Mapping[str, Any], place: str) -> Any:
    """A config of which nothing is there yet, from its fields."""
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(needed - tree.keys())
    if missing:
        raise RecipeError(f"{place}: {kind.__name__} needs {', '.join(missing)}.")
    blank = object.__new__(kind)  # its fields are read by `dataclasses.replace` only where they are not given
    for field in dataclasses.fields(kind):
        if field.name not in needed:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            object.__setattr__(blank, field.name, default)
    return _changed(blank, tree)


def _fitted(value: Any, hint: Any, given: _Assignment) -> Any:
    """The value with a text wherever the type has one, and without `_Scalar`."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return _as_text(value, given)
    if _is_optional_text(hint):
        return None if value is None or value in ("", "null") else _as_text(value, given)
    if _choices(hint):
        return value.text if isinstance(value, _Scalar) else value
    if kind is tuple and isinstance(value, list):
        hints = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(hints) == len(value):
            return tuple(_fitted(each, hint, given) for each, hint in zip(value, hints, strict=True))
    if kind is Mapping and isinstance(value, dict):
        return {_fitted(key, parts[0], given): _fitted(each, parts[1], given) for key, each in value.items()}
    return _plain(value)


def _as_text(value: Any, given: _Assignment) -> str:
    """A text of what YAML read: a number or a date as it was written."""
    if isinstance(value, str):
        return value
    plain = _plain(value)
    if isinstance(value, _Scalar) and not isinstance(plain, bool):
        return value.text
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return str(plain)
    if plain is None:
        advice = 'Leave the field out for its default, or write "" for an empty text.'
    elif isinstance(plain, bool):
        found = value.text if isinstance(value, _Scalar) else str(plain).lower()
        raise RecipeError(
            f"{given.place}: found {found}, which YAML reads as {str(plain).lower()}, expected a text. Write it in "
            f'quotes: "{found}".'
        )
    else:
        advice = "Write one text, in quotes where it has brackets or braces."
    raise RecipeError(f"{given.place}: found {_shown(value)}, expected a text. {advice}")


def _plain(value: Any) -> Any:
    if isinstance(value, _Scalar):
        return value.value
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return value


def _shown(value: Any) -> str:
    """A value for an error, as the person wrote it."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, _Scalar):
        return value.text
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=math.inf).removesuffix("\n...\n").rstrip()


def field_name(key: Any) -> str:
    """A key of a mapping that `read_yaml` gave, as it was written."""
    return key.text if isinstance(key, _Scalar) else str(key)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _may_widen(hint: Any, value: Any) -> bool:
    """Whether an int may stand for a float; strict mode would refuse it inside unions and tuples."""
    return isinstance(value, int | tuple) and not isinstance(value, bool) and "float" in str(hint)


def _is_optional_text(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and set(typing.get_args(hint)) == {
        str,
        type(None),
    }


def _choices(hint: Any) -> tuple[str, ...]:
    """Of a Literal of texts; empty for another type."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return choices if all(isinstance(each, str) for each in choices) else ()


def _config_class(hint: Any) -> Any:
    """The dataclass of a field that is one, or may be off; None for another type."""
    kinds = [hint, *typing.get_args(hint)] if typing.get_origin(hint) is not tuple else []
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _type_text(hint: Any) -> str:
    """A type as a person would write it in an error."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(_type_text, parts))
    if kind is tuple:
        return (
            f"a list of {_type_text(parts[0])}" if parts[-1] is Ellipsis else f"[{', '.join(map(_type_text, parts))}]"
        )
    if kind is Mapping:
        return f"a mapping of {_type_text(parts[0])} to {_type_text(parts[1])}"
    return {str: "text", type(None): "null"}.get(hint) or str(getattr(hint, "__name__", hint))
