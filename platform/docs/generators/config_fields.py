"""The pages of recipes and of every field that a recipe has, from the dataclasses and the texts under their fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from generators.markdown import anchor, cell, code, first_line, table


def recipes_page() -> str:
    """Markdown of the page of recipes: what each is for, and its whole config."""
    import yaml
    from pydantic import TypeAdapter

    from cytolake.recipes import RECIPES, build_recipe

    parts = [
        "# Recipes\n",
        "A recipe is a Python function that returns one complete, typed config. Every job takes its name by "
        "`--recipe`, and `--set path.to.field=value` changes any field of it. A recipe of your own is a YAML file with "
        "`based_on` and the fields that differ; `cytolake init` writes one. The fields are on the page "
        "[Config fields](config.md).\n",
        table(
            ["recipe", "purpose"],
            ([f"[`{name}`](#{anchor(name)})", cell(first_line(build.__doc__))] for name, build in RECIPES.items()),
        ),
    ]
    for name, build in RECIPES.items():
        recipe = build_recipe(name)
        whole = yaml.safe_dump(TypeAdapter(type(recipe)).dump_python(recipe, mode="json"), sort_keys=False, width=100)
        parts += [
            f"## `{name}` {{ #{anchor(name)} }}\n",
            f"{inspect.cleandoc(build.__doc__ or '')}\n",
            f'??? note "The whole config, as `--recipe {name} --show` prints it"\n',
            textwrap.indent(f"```yaml\n{whole}```\n", "    "),
        ]
    return "\n".join(parts)


def fields_page() -> str:
    """Markdown of the page of config fields: a section for each dataclass, in the order in which a recipe has them."""
    from cytolake.recipes import build_recipe

    whole = type(build_recipe("demo"))
    places: dict[type, list[str]] = {}
    for owner, path in _configs(whole, ""):
        places.setdefault(owner, []).append(path)
    parts = [
        "# Config fields\n",
        "Every field that a recipe has. The path in front of a table is what `--set` takes before the field's name: "
        "`--set pretrain.model.width=256`. In a recipe file the same fields are nested YAML. A value is checked "
        "against the field's type before anything runs, and an unknown field is refused with the nearest name.\n",
    ]
    for owner, paths in places.items():
        title = paths[0] or "top level of a recipe"
        parts += [f"## {code(title) if paths[0] else 'Top level'} {{ #{anchor(owner.__name__)} }}\n"]
        also = [code(path) for path in paths[1:]]
        also_at = f" Also at {', '.join(also)}." if also else ""
        parts += [f"`{owner.__name__}`: {cell(_about(owner))}{also_at}\n", _fields_table(owner, places)]
    return "\n".join(parts)


def _about(owner: type) -> str:
    """The docstring's first paragraph; a dataclass without one has its signature there, which is on the page anyway."""
    text = inspect.cleandoc(owner.__doc__ or "")
    return "" if text.startswith(f"{owner.__name__}(") else text.split("\n\n")[0]


def _configs(owner: type, path: str) -> Iterator[tuple[type, str]]:
    """Dataclasses below one, each with the path of the fields that lead to it, from the top down."""
    yield owner, path
    for field, hint in _fields(owner):
        for inner in _dataclasses_in(hint):
            yield from _configs(inner, f"{path}.{field.name}" if path else field.name)


def _fields(owner: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(owner)
    return [(field, hints[field.name]) for field in dataclasses.fields(owner)]


def _dataclasses_in(hint: Any) -> list[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for inner in typing.get_args(hint) for found in _dataclasses_in(inner)]


def _fields_table(owner: type, places: dict[type, list[str]]) -> str:
    texts = field_texts(owner)
    rows = []
    for field, hint in _fields(owner):
        inner = [each for each in _dataclasses_in(hint) if each in places]
        kind = ", ".join(f"[{each.__name__}](#{anchor(each.__name__)})" for each in inner) or code(_type(hint))
        about = texts.get(field.name) or next(map(_about, _dataclasses_in(hint)), "")
        rows.append([code(field.name), kind, _default(field), cell(about)])
    return table(["field", "type", "default", "meaning"], rows)


def _type(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(each) for each in typing.get_args(hint))
    if isinstance(hint, type) and not typing.get_args(hint):
        return {"str": "text"}.get(hint.__name__, hint.__name__)
    arguments = typing.get_args(hint)
    if not arguments:
        return str(hint).replace("typing.", "")
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return f"[{', '.join(_type(each) for each in arguments)}]"
    if typing.get_origin(hint) in (dict,) or "Mapping" in str(typing.get_origin(hint)):
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    return " | ".join(_type(each) for each in arguments)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _shown(field.default)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
        return "its defaults"
    if field.name == "root":  # read from the environment
        return code("cytolake_data")
    made = field.default_factory()
    return "" if dataclasses.is_dataclass(made) else _shown(made)


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "its defaults"
    if value == "":
        return "empty"
    if isinstance(value, bool) or value is None:
        return code({True: "true", False: "false", None: "null"}[value])
    if isinstance(value, (tuple, list, frozenset, set)):
        return code(f"[{', '.join(_plain(each) for each in value)}]")
    return code(value)


def _plain(value: Any) -> str:
    return f"[{', '.join(_plain(each) for each in value)}]" if isinstance(value, (tuple, list)) else str(value)


def field_texts(owner: type) -> dict[str, str]:
    """Field -> the text under it, of a dataclass and those that it inherits from."""
    texts: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                texts[statement.target.id] = re.sub(r"\s+", " ", following.value.value).strip()
    return texts
