from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cytolake.models.stored_fields import ADDED_LATER, stored_fields


@dataclass(frozen=True)
class Inner:
    old: int = 1
    new: str = field(default="off", metadata=ADDED_LATER)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    more: Inner = field(default_factory=lambda: Inner(old=3), metadata=ADDED_LATER)


def test_a_field_that_was_added_later_is_stored_where_it_is_not_its_default():
    assert stored_fields(Outer()) == {"inner": {"old": 1}}
    assert stored_fields(Outer(inner=Inner(new="on"))) == {"inner": {"old": 1, "new": "on"}}
    assert stored_fields(Outer(more=Inner())) == {"inner": {"old": 1}, "more": {"old": 1}}


def test_without_such_fields_it_is_asdict():
    @dataclass
    class Plain:
        a: tuple[int, ...] = (1, 2)
        b: float = 0.5

    assert stored_fields(Plain()) == dataclasses.asdict(Plain())
