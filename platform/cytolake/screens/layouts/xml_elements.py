"""Safe streaming reader of XML elements.

A vendor's index has no document type, so one that declares a type (which entity expansion and external files need) is
refused. The file is streamed: an index of a million images costs no tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

_STEP = 1 << 16


class XmlRefusedError(ValueError):
    """The file is no XML, is cut, or declares a document type; the text says which."""


@dataclass(slots=True)
class XmlElement:
    """One element: its name, attributes and children's names without namespace prefixes, and its text, stripped."""

    name: str
    attributes: dict[str, str]
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, name: str) -> str:
        """Text of the first child of that name; empty where there is none."""
        return next((each.text for each in self.children if each.name == name), "")

    def child_element(self, name: str) -> XmlElement | None:
        """The first child of that name."""
        return next((each for each in self.children if each.name == name), None)


def xml_elements(data: bytes, names: frozenset[str]) -> Iterator[XmlElement]:
    """Elements of the given names (prefixes left out) with their children, in the order in which they end.

    A file that is cut gives the elements before the cut, and then raises.

    Raises:
        XmlRefusedError: While iterating: the file is no well-formed XML, or declares a document type.
    """
    ended: list[XmlElement] = []
    open_elements: list[XmlElement] = []  # from the outermost requested element

    def start(name: str, attributes: dict[str, str]) -> None:
        local = _local(name)
        if open_elements or local in names:
            element = XmlElement(local, {_local(key): value for key, value in attributes.items()})
            if open_elements:
                open_elements[-1].children.append(element)
            open_elements.append(element)

    def text(characters: str) -> None:
        if open_elements:
            open_elements[-1].text += characters

    def end(name: str) -> None:
        if open_elements:
            element = open_elements.pop()
            element.text = element.text.strip()
            if element.name in names:
                ended.append(element)

    def refuse(*_: object) -> None:
        raise XmlRefusedError("a document type declaration, which a vendor's index does not have")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    for begin in range(0, max(len(data), 1), _STEP):
        refused: XmlRefusedError | None = None
        try:
            parser.Parse(data[begin : begin + _STEP], begin + _STEP >= len(data))
        except XmlRefusedError as error:
            refused = error
        except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an encoding that is not known
            refused = XmlRefusedError(f"XML that cannot be read: {error}")
        yield from ended  # of a file that is cut, what stands before the cut
        ended.clear()
        if refused is not None:
            raise refused


def _local(name: str) -> str:
    return name.rpartition(":")[2]
