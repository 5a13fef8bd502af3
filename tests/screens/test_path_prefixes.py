from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolake.screens.path_prefixes import below_screen

ROOT = "/data/screen"


@pytest.mark.parametrize(
    ("path", "prefixes", "expected"),
    [
        ("images/a.tif", (), "images/a.tif"),
        ("/data/screen/images/a.tif", (), "images/a.tif"),
        ("/home/x/images/a.tif", ("/home/x",), "images/a.tif"),
        ("/home/x/images/a.tif", ("/home/x/",), "images/a.tif"),
        ("/home/xy/a.tif", ("/home/x",), "/home/xy/a.tif"),  # another folder that begins alike
        ("D:\\x\\images\\a.tif", ("D:\\x",), "images/a.tif"),
        ("file:///home/x/a%20b.tif", ("/home/x",), "a b.tif"),
        ("file:/home/x/a.tif", ("/home/x",), "a.tif"),
        ("s3://other/screen/a.tif", ("s3://other/screen",), "a.tif"),
        ("/home/x/a.tif", ("/home/x -> raw/week1",), "raw/week1/a.tif"),
        ("/home/x/a.tif", ("/home/y", "/home/x"), "a.tif"),
        ("/etc/passwd", ("/home/x",), "/etc/passwd"),
    ],
)
def test_paths_below_a_prefix_are_below_the_screen_and_no_others(path, prefixes, expected):
    assert below_screen(path, ROOT, prefixes) == expected


@given(st.text(max_size=30), st.lists(st.text(max_size=10), max_size=2))
def test_any_path_and_prefix_give_a_path(path, prefixes):
    assert isinstance(below_screen(path, ROOT, prefixes), str)
