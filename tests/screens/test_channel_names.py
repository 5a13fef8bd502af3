from __future__ import annotations

import pytest

from cytolake.catalog.declared import channel_vocabulary
from cytolake.screens.channel_names import alias_table, canonical, canonical_names, fold, renamed, without_cycle

VOCABULARY = alias_table(
    {"DNA": ["hoechst 33342", "hoechst", "dapi"], "GFP": ["egfp"], "Mito": ["mitotracker-deep red"]}
)

LEARNT = (
    *("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield", "Tubulin", "GFP", "RFP", "PH3", "Lysosome", "Membrane"),
    *("Actin", "Golgi", "Green", "Orange", "FarRed", "Red"),
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


def test_a_cellprofiler_prefix_is_no_part_of_the_stain():
    assert canonical("OrigDAPI", VOCABULARY) == "DNA"
    assert canonical("Original", VOCABULARY) == "Original"


def test_given_names_replace_those_that_were_found_whatever_their_spelling():
    names = ("Alexa 488", "ch2", "DNA")
    assert renamed(names, ("alexa_488 -> ER", "ch9 -> RNA")) == {"Alexa 488": "ER", "ch2": "ch2", "DNA": "DNA"}


@pytest.mark.parametrize("pairs", [("Alexa 488",), ("-> ER",), ("a ->",), ("Alexa 488 -> DNA",)])
def test_pairs_that_name_nothing_or_two_channels_alike_are_refused(pairs):
    with pytest.raises(ValueError, match="expected"):
        renamed(("Alexa 488", "DNA"), pairs)


@pytest.mark.parametrize(
    ("name", "stain"),
    [
        *(("HOECHST 33342", "DNA"), ("Hoechst_33342", "DNA"), ("DAPI", "DNA"), ("OrigDNA", "DNA"), ("BP445/45", "DNA")),
        *(("ConA", "ER"), ("OrigER", "ER"), ("488 long", "RNA"), ("SYTO 14", "RNA"), ("OrigRNA", "RNA")),
        *(("OrigAGP", "AGP"), ("Ph_golgi", "AGP"), ("MitoTracker Deep Red", "Mito"), ("OrigMito", "Mito")),
        *(("Phalloidin", "Actin"), ("WGA", "Golgi"), ("Tubulin", "Tubulin"), ("Brightfield low", "Brightfield")),
        *(("Alexa 488", "Green"), ("Alexa 568", "Orange"), ("Texas Red", "Red"), ("Alexa 647", "FarRed")),
    ],
)
def test_names_of_the_fields_common_sources_are_declared(name, stain):
    assert channel_vocabulary().canonical(name) == stain


def test_every_declared_spelling_leads_to_its_own_stain():
    vocabulary = channel_vocabulary()
    assert all(fold(spelling) == spelling for spelling in vocabulary.aliases)
    assert {vocabulary.canonical(spelling.upper()) for spelling in vocabulary.aliases} == set(vocabulary.names)


def test_stains_keep_the_identity_that_encoders_have_learnt():
    assert [channel_vocabulary().index(name) for name in LEARNT] == list(range(1, len(LEARNT) + 1))


def test_a_channel_of_a_later_cycle_is_named_after_its_stain():
    vocabulary = alias_table({"DNA": ["DAPI"]})
    assert canonical("DAPI_cycle2", vocabulary) == "DNA_cycle2"
    assert canonical("mystery_cycle3", vocabulary) == "mystery_cycle3"
    assert (without_cycle("DNA_cycle12"), without_cycle("DNA")) == ("DNA", "DNA")
