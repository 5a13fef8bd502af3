from __future__ import annotations

import pytest

from cytolake.screens.channel_names import alias_table, canonical, canonical_names

VOCABULARY = alias_table(
    {"DNA": ["hoechst 33342", "hoechst", "dapi"], "GFP": ["egfp"], "Mito": ["mitotracker-deep red"]}
)


@pytest.mark.parametrize("name", ["DNA", "dna", "Hoechst 33342", "hoechst_33342", "w1 Hoechst", " DAPI "])
def test_spellings_of_one_stain_give_its_declared_name(name):
    assert canonical(name, VOCABULARY) == "DNA"


def test_an_unknown_stain_keeps_its_spelling():
    assert canonical(" w2 Channel X ", VOCABULARY) == "w2 Channel X"


def test_a_declared_name_is_its_own_name():
    assert [canonical(name, VOCABULARY) for name in ("DNA", "GFP", "Mito")] == ["DNA", "GFP", "Mito"]


def test_two_channels_of_a_plate_never_become_one():
    assert canonical_names(["Hoechst", "GFP", "EGFP"], VOCABULARY) == {"Hoechst": "DNA", "GFP": "GFP", "EGFP": "EGFP"}


def test_a_spelling_under_two_names_is_refused():
    with pytest.raises(ValueError, match=r"'Green'.*both GFP and AGP"):
        alias_table({"GFP": ["green"], "AGP": ["Green"]})
