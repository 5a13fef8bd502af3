"""Settings of a config as they are stored and hashed; fields added later do not change existing ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ADDED_LATER: Mapping[str, bool] = MappingProxyType({"added_later": True})
"""`metadata` of a field that was added after ids of the config had been stored."""


def stored_fields(config: Any) -> dict[str, Any]:
    """Fields of a dataclass as `dataclasses.asdict` gives them, nested ones too, without new fields at their default.

    Encoders and runs from before a field existed keep their id: a field marked `ADDED_LATER` is stored and hashed only
        where its value is not the default.
    """
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.metadata.get("added_later") and value == _default(each):
            continue
        fields[each.name] = stored_fields(value) if dataclasses.is_dataclass(value) else value
    return fields


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
