from __future__ import annotations

import contextlib
import tracemalloc
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolake.screens.layouts.xml_elements import XmlRefusedError, xml_elements

NAMES = st.sampled_from(["a", "b", "c", "item"])


@st.composite
def trees(draw, depth=3):
    element = ET.Element(draw(NAMES), draw(st.dictionaries(NAMES, st.text("xy &<\"'é", max_size=4), max_size=2)))
    element.text = draw(st.text("xy &<é\n", max_size=5))
    for _ in range(draw(st.integers(0, 3)) if depth else 0):
        element.append(draw(trees(depth - 1)))
    return element


@given(trees(), st.sampled_from(["utf-8", "utf-16", "iso-8859-1"]))
def test_elements_are_those_that_elementtree_finds(tree, encoding):
    data = ET.tostring(tree, encoding=encoding, xml_declaration=True)
    found = list(xml_elements(data, frozenset({"item"})))
    parsed = list(ET.fromstring(data).iter("item"))
    assert sorted((sorted(each.attributes.items()), len(each.children)) for each in found) == sorted(
        (sorted(each.attrib.items()), len(each)) for each in parsed
    )
    by_children = {tuple(child.name for child in each.children) for each in found}
    assert by_children == {tuple(child.tag for child in each) for each in parsed}


def test_prefixes_do_not_count_and_text_is_stripped():
    data = b'<v:r xmlns:v="u"><v:item v:no="1"> <v:name> DAPI\n</v:name></v:item></v:r>'
    (item,) = xml_elements(data, frozenset({"item"}))
    assert (item.attributes, item.child("name"), item.child("other")) == ({"no": "1"}, "DAPI", "")


@pytest.mark.parametrize(
    "data",
    [
        b'<!DOCTYPE r [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><r><item>&b;</item></r>',
        b'<!DOCTYPE r SYSTEM "http://127.0.0.1:9/x.dtd"><r><item/></r>',
        b'<!DOCTYPE r [<!ENTITY f SYSTEM "file:///etc/passwd">]><r><item>&f;</item></r>',
        b"<!DOCTYPE r><r/>",
        b"<r>&unknown;</r>",
    ],
)
def test_a_document_type_and_what_it_could_declare_are_refused(data):
    with pytest.raises(XmlRefusedError):
        list(xml_elements(data, frozenset({"item"})))


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"<r>{text}</r>".encode("utf-8", "replace")))
def test_any_bytes_give_elements_or_are_refused(data):
    with contextlib.suppress(XmlRefusedError):
        list(xml_elements(data, frozenset({"r", "item"})))


def test_a_long_file_is_not_held_as_a_tree():
    data = b"<r>" + b'<item no="1"><name>DAPI</name></item>' * 10_000 + b"</r>"
    tracemalloc.start()
    assert sum(1 for _ in xml_elements(data, frozenset({"item"}))) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20  # a tree of these elements takes 12 MiB
