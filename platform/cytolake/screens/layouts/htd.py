"""The HTD file of a MetaXpress export: selected wells, sites, wavelengths and timepoints.

Lines of `"Key", value, ...`; wells and sites are TRUE or FALSE for each column of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cytolake.screens.metaseries import read_htd
from cytolake.screens.plate_format import N_COLUMNS_MAX, N_ROWS_MAX
from cytolake.screens.positions import name_of_well, whole_number
from cytolake.storage.source_folder import SourceFolder

HTD_SUFFIX = ".htd"
_GRID_MAX = 1024  # sites along one side, wavelengths
_TIMEPOINTS_MAX = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class HtdSettings:
    """Selection for imaging."""

    file: str
    """Relative to the screen's folder."""
    wells: tuple[str, ...]
    n_sites: int
    site_places: tuple[int, ...]
    """Numbers of the selected sites in the grid, from 1, row by row."""
    wavelengths: Mapping[int, str]
    """Number of each collected wavelength, from 1 -> its name."""
    n_timepoints: int

    def site_names(self, found: set[str]) -> tuple[str, ...]:
        """Names of the selected sites, as file names number them: all in turn, or by their places in the grid.

        Versions of MetaXpress differ in this; the images that are there show which it is.
        """
        in_turn = tuple(str(number + 1) for number in range(self.n_sites))
        places = tuple(str(place) for place in self.site_places)
        return in_turn if found <= set(in_turn) or not found <= set(places) else places


def htd_settings(folder: SourceFolder, file: str) -> HtdSettings | None:
    """The settings of an HTD file; None where it cannot be read or selects nothing: names alone then list the plate.

    Raises:
        UnreachableError: The storage failed.
    """
    said = {key: values for key, values in read_htd(folder, file).items() if values}
    wells = tuple(
        name_of_well(row, column)
        for row in range(min(_number(said, "ywells", 0), N_ROWS_MAX))
        for column in _selected(said, f"wellsselection{row + 1}")
        if column < N_COLUMNS_MAX
    )
    columns = min(_number(said, "xsites", 1), _GRID_MAX)
    rows = min(_number(said, "ysites", 1), _GRID_MAX)
    places = tuple(
        row * columns + column + 1
        for row, column in product(range(rows), range(columns))
        if column in _selected(said, f"siteselection{row + 1}")
    )
    if not _is_true(said.get("sites", ["FALSE"])[0]) or not places:
        places = (1,)
    n_wavelengths = min(_number(said, "nwavelengths", 1), _GRID_MAX)
    wavelengths = {
        number: said.get(f"wavename{number}", [""])[0] or f"w{number}"
        for number in range(1, n_wavelengths + 1)
        if said.get(f"wavecollect{number}", ["1"])[0] != "0"
    }
    if not wells:
        return None
    return HtdSettings(
        file=file,
        wells=wells,
        n_sites=len(places),
        site_places=places,
        wavelengths=wavelengths,
        n_timepoints=min(max(_number(said, "timepoints", 1), 1), _TIMEPOINTS_MAX),
    )


def _selected(said: Mapping[str, Sequence[str]], key: str) -> list[int]:
    return [place for place, cell in enumerate(said.get(key, ())) if _is_true(cell)]


def _is_true(cell: str) -> bool:
    return cell.upper() == "TRUE"


def _number(said: Mapping[str, Sequence[str]], key: str, default: int) -> int:
    found = whole_number(said.get(key, [""])[0], default=default)
    return default if found is None else found
