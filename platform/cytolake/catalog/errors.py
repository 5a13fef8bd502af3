"""Errors of the catalog. A message states what was found, what was expected and what to do next."""

from __future__ import annotations


class CatalogError(ValueError):
    """Rows, a query or a folder that the catalog cannot take."""


class ClaimedError(CatalogError):
    """Another ingest writes other content of the same plate."""


class UnknownTableError(CatalogError, KeyError):
    """A table name that no contract in catalog/tables/ declares."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show it quoted and escaped
