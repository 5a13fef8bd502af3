"""Finds the rows of `plates` that a correction changes, by the name that a person gives, and replaces them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import VISIBLE, state_of

Row = dict[str, Any]


def plates_named(
    catalog: Catalog, name: str, states: Collection[str] = (VISIBLE,), *, may_be_screen: bool = False
) -> list[Row]:
    """Rows of the plate, or of the plates of the screen, of a name.

    Args:
        name: `screen/plate`, a plate's name alone where one screen has it, a plate_id; or a screen.
        states: Rows of other states are left out.
        may_be_screen: Whether a screen's name stands for its plates.

    Returns:
        Rows in the order of names and acquisitions; at least one.

    Raises:
        CatalogError: No such plate, none in these states, or a name that several screens use.
    """
    everything = catalog.visibility().plates.to_pylist()
    found = [row for row in everything if name in (row["plate_id"], name_of(row))]
    if len({names_of(row) for row in found}) > 1:
        ids = ", ".join(sorted(f"{row['plate_id']} (screen {row['screen']})" for row in found)[:8])
        raise CatalogError(f"plate {name}: found plates of several screens that read so: {ids}. Give a plate_id.")
    if not found:
        plates = [row for row in everything if row["plate"] == name]
        screen = [row for row in everything if row["screen"] == name] if may_be_screen else []
        names = sorted({name_of(row) for row in plates})
        if screen and names == sorted({name_of(row) for row in screen}):  # the only plate of a screen of its name
            screen = []
        if len({names_of(row) for row in plates}) < 2:
            names = []
        if names or (plates and screen):
            raise CatalogError(
                f"plate {name}: found {', '.join(names[:8]) or 'a plate'}"
                f"{' and a screen of this name' if screen else ''}, expected one. Give it as screen/plate."
            )
        found = plates or screen
    if not found:
        some = ", ".join(sorted({name_of(row) for row in everything})[:8])
        raise CatalogError(
            f"plate {name}: not in the catalog. There are: {some or 'none'}. `cytolake plates` lists them all."
        )
    chosen = [row for row in found if state_of(row) in states]
    if not chosen:
        newest = max(found, key=acquisition_of)
        raise CatalogError(
            f"plate {name_of(newest)}: found it {state_of(newest)} ({newest['why'] or 'no reason given'}), expected it "
            f"{' or '.join(sorted(states))}. `cytolake plates` lists all acquisitions."
        )
    return sorted(chosen, key=lambda row: (name_of(row), acquisition_of(row)))


def plate_named(catalog: Catalog, name: str, states: Collection[str] = (VISIBLE,)) -> Row:
    """The newest acquisition of a plate in one of these states; see `plates_named`."""
    return max(plates_named(catalog, name, states), key=acquisition_of)


def name_of(row: Mapping[str, Any]) -> str:
    """`screen/plate`."""
    return f"{row['screen']}/{row['plate']}"


def names_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Screen and plate, which identify a plate; `name_of` may be equal for two plates with a / in their names."""
    return row["screen"], row["plate"]


def acquisition_of(row: Mapping[str, Any]) -> int:
    """1 is the first."""
    return row["acquisition"] or 1


def change(catalog: Catalog, before: Sequence[Row], after: Sequence[Row]) -> None:
    """Replace rows of `plates` in one commit.

    Raises:
        CatalogError: They were changed since they were read, or a name is taken.
    """
    contract = table_contract("plates")
    catalog.change_plates(contract.rows(before), contract.rows(after))
