"""Every command, option and config field that the documentation names exists."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fences import CHECKOUT, PAGES, Fence, command_lines, fences
from generators.commands import application

FILES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted(PAGES.rglob("*.md"))]
BLOCKS = [block for path in FILES for block in fences(path) if block.language == "bash"]


MAKE_TARGETS = set(
    re.findall(r"^([a-z][a-z-]*)(?= ?[a-z-]*:)", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)


def parse(words: list[str]) -> tuple[str, list[str]]:
    """Full name of the command that words call, and its `--set` values; an unknown command or option raises."""
    command, name = application(), "cytolake"
    rest = words[1:]
    while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {name} {rest[0]}"
        name = f"{name} {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option: each for each in command.params for option in (*each.opts, *each.secondary_opts)}
    settings, positional = [], 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            positional += 1
            continue
        option, _, value = word.partition("=")
        assert option in known or option == "--help", f"{name} has no option {option}"
        if option == "--help" or getattr(known[option], "is_flag", False):
            continue
        value = value or rest.pop(0)
        choices = known[option].type_descriptor.choices if known[option].type_descriptor.is_choice else None
        assert not choices or value in choices, f"{name} {option}: {value} is none of {choices}"
        if option == "--set":
            settings.append(value)
    takes = [each for each in command.params if each.param_type_name == "argument"]
    several = any(each.nargs == -1 for each in takes)
    assert positional <= len(takes) or several, f"{name} takes {len(takes)} arguments, found {positional}"
    return name, settings


def check_settings(recipe: str, settings: list[str], place: str) -> None:
    """Apply `--set` values to a recipe, as a job would."""
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.recipes import build_recipe

    changed = apply_overrides(build_recipe(recipe), settings)
    assert dataclasses.is_dataclass(changed), place


def recipe_of(words: list[str]) -> str:
    """The recipe that a command names; `demo` where it takes the working directory's own."""
    named = words[words.index("--recipe") + 1] if "--recipe" in words else ""
    return "demo" if not named or named.endswith(".yaml") else named


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_commands_of_a_block_exist(block: Fence):
    if block.mark == "not parsed":
        return
    for words in command_lines(block.text):
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables in front of a command
            words = words[1:]
        if "--" in words:  # ray job submit ... -- python jobs/...
            words = words[words.index("--") + 1 :]
        if words[0] == "python":
            assert (CHECKOUT / words[1]).is_file(), f"{block.place}: no {words[1]}"
            settings = [value for option, value in pairwise(words) if option == "--set"]
            check_settings(recipe_of(words), settings, block.place)
        if words[0] == "make":
            assert words[1] in MAKE_TARGETS, f"{block.place}: make has no target {words[1]}"
        if words[0] == "cytolake":
            name, settings = parse(words)
            if any(option in words for option in ("--recipe", "--show")) or name.split()[-1] in ("ingest", "curate"):
                check_settings(recipe_of(words), settings, block.place)


def test_code_in_the_docs_has_no_syntax_error():
    for path in FILES:
        for block in fences(path):
            if block.language == "python":
                compile(block.text, block.place, "exec")


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a Python file, docstrings too, with their lines; values in an f-string are `VALUE`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else " VALUE" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def named_commands(text: str) -> list[list[str]]:
    """Words of every command in a text: all in backquotes, and elsewhere those of known commands up to a full stop."""
    top = "|".join(application().commands)
    quoted = re.findall(r"`cytolake ([a-z][^`]*)`", text)
    bare = re.findall(rf"(?<![\w`/.-])cytolake ((?:{top})\b[^`.;,()\n]*)", text)
    return [each.split() for each in [*quoted, *bare]]


def unknown_words(words: list[str]) -> list[str]:
    """Words of a command that are no command or option of it; a group may stand for itself."""
    command: Any = application()
    while words and re.fullmatch(r"[a-z][a-z-]*", words[0]) and getattr(command, "commands", None):
        if words[0] not in command.commands:
            return [] if getattr(command, "invoke_without_command", False) else [words[0]]
        command, words = command.commands[words[0]], words[1:]
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    named = [re.match(r"--[a-z][a-z-]*", word) for word in words]
    return [found[0] for found in named if found and found[0] not in options]


def test_commands_in_contracts_configs_and_messages_exist():
    places = [(f"{path.name}", path.read_text(encoding="utf-8")) for path in (CHECKOUT / "catalog").rglob("*.yaml")]
    for path in sorted((CHECKOUT / "platform" / "cytolake").rglob("*.py")):
        places += [(f"{path.name}:{line}", " ".join(text.split())) for line, text in literals(path)]
    for path in sorted((CHECKOUT / "platform" / "cytolake").rglob("*.j2")):
        places.append((path.name, re.sub(r"</?code>", "`", path.read_text(encoding="utf-8"))))
    commands = [(place, words) for place, text in places for words in named_commands(text.replace("\n# ", " "))]
    assert len(commands) > 60
    wrong = [f"{place}: cytolake {' '.join(words)}" for place, words in commands if unknown_words(list(words))]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "Written by `cytolake plates annotate --objects`.",
        "Run `cytolake no-such` first.",
        "use cytolake export --nowhere x",
        "`cytolake qc ask`",
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str):
    assert any(unknown_words(words) for words in named_commands(text))
