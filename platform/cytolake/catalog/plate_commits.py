"""Commits rows of plates: a plate is claimed first, becomes visible last, and is corrected by its row of `plates`."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cytolake.catalog.commits import Replaced, Rows, open_table
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError, ClaimedError
from cytolake.catalog.ids import content_id
from cytolake.catalog.visibility import Visibility, read_visibility


class PlateCommits:
    """The part of a `Catalog` that writes plates."""

    def _commit(self, name: str, rows: Rows, **how: Any) -> bool:
        raise NotImplementedError

    def _path(self, name: str) -> str:
        raise NotImplementedError

    def claim_plate(self, plate_id: str, content: int) -> None:
        """Claim a plate for this content, which is written next; an earlier claim of other content becomes void.

        Of two ingests of one plate with different content the one that claimed last can make it visible.

        Raises:
            CatalogError: The plate shows already.
        """
        self.claim_plates({plate_id: content})

    def claim_plates(self, contents: Mapping[str, int]) -> None:
        """`claim_plate` of several plates, with the content of each, in one commit."""
        self._commit(
            "plates",
            table_contract("plates").empty(),
            marks=_claims(contents),
            check=lambda: self._check_hidden("plates", contents),
        )

    def show_plate(self, row: pa.Table, *, plate_id: str, content: int) -> bool:
        """Append a plate's row to `plates`, which makes its rows visible in all tables.

        Returns:
            False where the plate showed already, or other content of it was claimed meanwhile.

        Raises:
            CatalogError: Another plate has its name.
        """
        contents = {plate_id: content}
        return self._commit(
            "plates",
            row,
            marks=_marks(contents),
            claims=_claims(contents),
            check=lambda: self._check_names(row),
            touches=_names(row),
        )

    def show_plates(self, rows: pa.Table, contents: Mapping[str, int]) -> bool:
        """`show_plate` of several plates in one commit: all become visible, or none.

        Raises:
            CatalogError: Some show already: another process wrote them, perhaps with the same content.
        """
        return self._commit(
            "plates",
            rows,
            marks=_marks(contents),
            claims=_claims(contents),
            check=lambda: self._check_hidden("plates", contents),
        )

    def change_plates(
        self, before: pa.Table, after: pa.Table, *, shows: Mapping[str, int] | None = None, mark: str = ""
    ) -> bool:
        """Replace rows of `plates` in one commit; this makes a correction visible.

        Args:
            before: Rows of `plates` as they were read, of every state.
            after: The rows instead; those of other plates are added.
            shows: Plates that `write_plate` wrote, as for `show_plates`: they must be claimed with this content.
            mark: Names the change, where it may be repeated; the same one again changes nothing.

        Returns:
            False where `mark` had been committed before, or other content of a plate was claimed meanwhile.

        Raises:
            CatalogError: The plates were changed since they were read, or another plate has the name of one.
        """
        plate_ids = tuple(sorted({*before["plate_id"].to_pylist(), *after["plate_id"].to_pylist()}))
        shows = shows or {}
        change = mark or f"change/{content_id(*plate_ids)}"
        version = 1 if mark else secrets.randbits(62) + 1  # two changes at one moment are two changes

        def check() -> None:
            self._check_unchanged(before, plate_ids)
            self._check_names(after)

        return self._commit(
            "plates",
            after,
            marks={change: version, **_marks(shows)},
            claims=_claims(shows),
            replace=Replaced("plate_id", plate_ids, lambda: None, always=True),
            check=check,
            touches=_names(after),
        )

    def _check_unchanged(self, before: pa.Table, plate_ids: Sequence[str]) -> None:
        plates = read_visibility(self._path("plates"), None).plates
        found = {row["plate_id"]: row for row in plates.to_pylist() if row["plate_id"] in plate_ids}
        if found != {row["plate_id"]: row for row in before.to_pylist()}:
            names = sorted({f"{row['screen']}/{row['plate']}" for row in before.to_pylist()})
            raise ClaimedError(
                f"plates {', '.join(names)}: another process corrected them meanwhile. Nothing was changed: look at "
                "them with `cytolake plates`, then run the command again."
            )

    def _check_names(self, rows: pa.Table) -> None:
        """Raise where another visible plate has the name of a visible one of these rows."""
        ours = set(rows["plate_id"].to_pylist())
        names = {(row["screen"], row["plate"]) for row in Visibility(rows).visible.to_pylist()}
        for row in read_visibility(self._path("plates"), None).visible.to_pylist():
            if row["plate_id"] not in ours and (row["screen"], row["plate"]) in names:
                raise CatalogError(
                    f"screen {row['screen']}, plate {row['plate']}: another plate that is visible has this name, from "
                    f"{row['source']}. Rename or retract one of them: `cytolake plates rename`."
                )

    def write_plate(self, name: str, rows: Rows, *, plate_id: str, content: int) -> bool:
        """Commit one plate's rows of one table; they replace rows that an ingest of other content left behind.

        Rows of a plate show only once `plates` has it: claim it first and show it last.

        Args:
            name: As in catalog/tables/, not `plates`.
            rows: All rows of the plate, perhaps none; or a function that gives them in parts.
            content: Hash of the plate's files and the settings of the ingest, 1 to 2**63 - 1.

        Returns:
            False where the same content was committed before.

        Raises:
            CatalogError: The plate shows already, with other content: what people see is not replaced.
            ClaimedError: Another ingest claimed the plate for other content since.
        """
        return self.write_plates(name, rows, {plate_id: content})

    def write_plates(self, name: str, rows: Rows, contents: Mapping[str, int]) -> bool:
        """`write_plate` of several plates, with the content of each, in one commit."""

        def check_claims() -> None:
            plates = open_table(self._path("plates"))
            for plate_id, content in contents.items():
                claimed = None if plates is None else plates.transaction_version(_claim_application(plate_id))
                if claimed not in (None, content):
                    self._check_hidden(name, [plate_id])
                    raise ClaimedError(
                        f"table {name}, plate {plate_id}: another ingest writes other content of this plate. Let it "
                        "end, then run this one again."
                    )

        return self._commit(
            name,
            rows,
            marks=_marks(contents),
            replace=Replaced("plate_id", tuple(contents), lambda: self._check_hidden(name, contents)),
            check=check_claims,
        )

    def _check_hidden(self, name: str, plate_ids: Collection[str]) -> None:
        known = read_visibility(self._path("plates"), None).plates.column("plate_id").to_pylist()
        for plate_id in sorted(set(plate_ids).intersection(known)):
            raise CatalogError(
                f"table {name}, plate {plate_id}: the catalog has this plate with other content. "
                "Ingest the plate under another name, or into another catalog root."
            )

    def have_contents(self, name: str, contents: Mapping[str, int]) -> bool:
        """Whether these contents are what was last committed of all these plates to this table."""
        table = open_table(self._path(name))
        return table is not None and all(
            table.transaction_version(application) == content for application, content in _marks(contents).items()
        )

    def plate_content(self, name: str, plate_id: str) -> int | None:
        """Content that `write_plate` last committed of this plate to this table; None where there is none."""
        table = open_table(self._path(name))
        return None if table is None else table.transaction_version(plate_application(plate_id))


def plate_application(plate_id: str) -> str:
    """Name of the Delta application that writes a plate in each of its tables."""
    return f"plate/{plate_id}"


def _claim_application(plate_id: str) -> str:
    return f"claim/{plate_id}"


def _names(rows: pa.Table) -> list[str]:
    """Delta applications named after visible plates: of two commits that use one name only one can succeed."""
    names = {(row["screen"], row["plate"]) for row in Visibility(rows).visible.to_pylist()}
    return sorted(f"name/{content_id(*name)}" for name in names)


def _marks(contents: Mapping[str, int]) -> dict[str, int]:
    return {plate_application(plate_id): content for plate_id, content in contents.items()}


def _claims(contents: Mapping[str, int]) -> dict[str, int]:
    return {_claim_application(plate_id): content for plate_id, content in contents.items()}
