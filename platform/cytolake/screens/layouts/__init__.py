"""Layouts of screens on disk: declared presets, and the readers that list plates by them."""

from cytolake.screens.layouts.preset import LayoutPreset, PathRule, TableRule, parse_preset, path_rule
from cytolake.screens.layouts.reading import (
    BUILT_IN,
    Trial,
    has_zarr_groups,
    list_by_layout,
    screen_files,
    try_layout,
)

__all__ = [
    "BUILT_IN",
    "LayoutPreset",
    "PathRule",
    "TableRule",
    "Trial",
    "has_zarr_groups",
    "list_by_layout",
    "parse_preset",
    "path_rule",
    "screen_files",
    "try_layout",
]
