from __future__ import annotations

import hashlib
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from cytolake.catalog import ids

PARTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4)


@given(PARTS, PARTS)
def test_different_parts_have_different_ids(one, other):
    assert (ids.content_id(*one) == ids.content_id(*other)) == (one == other)


def test_an_id_is_blake2b_of_length_prefixed_parts():
    expected = hashlib.blake2b(b"\x02\0\0\0\0\0\0\0\xc3\xa9\x01\0\0\0\0\0\0\0" + b"7", digest_size=16).hexdigest()
    assert ids.content_id("é", 7) == expected


def test_ids_are_the_same_in_another_process():
    code = "from cytolake.catalog import ids; print(ids.crop_id('s', 'p', 'B03', '1', 0, '', y=0, x=64, size=64))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert other.stdout.strip() == ids.crop_id("s", "p", "B03", "1", y=0, x=64, size=64)


def test_every_part_of_a_place_is_in_its_id():
    place = {
        "screen": "s", "plate": "p", "well": "B03", "site": "1", "timepoint": 0, "z": "", "y": 0, "x": 0, "size": 8,
    }  # fmt: skip
    changed = [place | {name: f"{value}9" if isinstance(value, str) else 9} for name, value in place.items()]
    assert len({ids.crop_id(**at) for at in [place, *changed]}) == len(place) + 1


def test_a_plate_a_well_and_a_site_of_one_name_differ():
    assert (
        len(
            {ids.plate_id("a", "b"), ids.content_id("a", "b"), ids.well_id("a", "b", ""), ids.site_id("a", "b", "", "")}
        )
        == 4
    )


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    import cytolake

    return os.environ | {"PYTHONPATH": str(Path(cytolake.__file__).parents[1]), "PYTHONHASHSEED": "7"}
