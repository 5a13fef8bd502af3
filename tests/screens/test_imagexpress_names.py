"""Names of ImageXpress files: what is written into a name is read back, whatever the plate is called."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cytolake.screens.imagexpress_names import ImageName, parse_image_name
from cytolake.screens.positions import N_COLUMNS_MAX, N_ROWS_MAX, name_of_well

GUIDS = st.uuids().map(str).flatmap(lambda text: st.sampled_from(["", text, text.upper()]))
WELLS = st.tuples(st.integers(0, N_ROWS_MAX - 1), st.integers(0, N_COLUMNS_MAX - 1)).map(lambda at: name_of_well(*at))
WORDS = st.one_of(
    st.from_regex(r"[A-Za-z0-9 .\-]{1,8}", fullmatch=True),
    WELLS,
    st.sampled_from(["s1", "s10", "w1", "w10", "t10", "S10", "W12", "thumb", "2024-01-01", "A01", "a01", "plate"]),
)
PLATES = st.lists(WORDS, min_size=1, max_size=4).map("_".join)
NUMBERS = st.integers(1, 9999)


@given(
    plate=PLATES,
    well=WELLS,
    site=st.one_of(st.none(), NUMBERS),
    wavelength=st.one_of(st.none(), NUMBERS),
    is_small=st.booleans(),
    is_thumbnail=st.booleans(),
    guid=GUIDS,
    suffix=st.sampled_from(["tif", "TIF", "tiff"]),
)
def test_a_name_says_what_was_written_into_it(plate, well, site, wavelength, is_small, is_thumbnail, guid, suffix):
    well = well.lower() if is_small else well
    # `_A01_s10` is site 10 of well A01, and no well s10: MetaXpress writes wells in capitals and marks in small letters
    assume(not (site is None and well[0] in "sw"))
    assume(not (site is None and wavelength is None and well[0] in "SW"))
    name = f"{plate}_{well}"
    if site is not None:
        name += f"_s{site}"
    if wavelength is not None:
        name += f"_w{wavelength}"
    name += f"{'_thumb' if is_thumbnail else ''}{guid}.{suffix}"
    assert parse_image_name(name) == ImageName(
        plate, well, "" if site is None else str(site), wavelength or 1, is_thumbnail, bool(guid)
    )


@pytest.mark.parametrize(
    ("name", "plate", "well", "site", "wavelength"),
    [
        ("240124d3_B05_s22A31C13E-3314-476F-B62C-5CDC65915F2B.tif", "240124d3", "B05", "2", 1),
        ("240124d3_B05_s151E1E486E-D339-44E8-9990-9A8894C2D5CA.tif", "240124d3", "B05", "15", 1),
        ("240124d3_D05_s2866465035-BBD2-4C57-BF9C-185859741902.tif", "240124d3", "D05", "28", 1),
        ("P1_A01_s10.tif", "P1", "A01", "10", 1),
        ("P1_A01_s10_w10.tif", "P1", "A01", "10", 10),
        ("P1_A01_S10_W10.TIF", "P1", "A01", "10", 10),
        ("P1_A01_S1_W2.TIF", "P1", "A01", "1", 2),
        ("P1_A01_w12.tif", "P1", "A01", "", 12),
        ("P1_A01_B02_s3_w1.tif", "P1_A01", "B02", "3", 1),
        ("P1_s10_B02_s3_w1.tif", "P1_s10", "B02", "3", 1),
        ("P1_S10.tif", "P1", "S10", "", 1),
        ("P1_AF48_s1_w1.tif", "P1", "AF48", "1", 1),
        ("mcf-z_a01_s1_w1d6a3b8c4-1d5e-4c52-8ae2-6b4c3c0a3b1e.tif", "mcf-z", "a01", "1", 1),
    ],
)
def test_names_as_they_are_found(name, plate, well, site, wavelength):
    found = parse_image_name(name)
    assert (found.plate, found.well, found.site, found.wavelength) == (plate, well, site, wavelength)


@pytest.mark.parametrize("name", ["P1.tif", "A01.tif", "P1_A1x_s1.tif", "P1_A01_s1_w1.png", "P1_A01_s1_w1_mip.tif"])
def test_other_names_are_none(name):
    assert parse_image_name(name) is None
