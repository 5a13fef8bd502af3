"""Corrections of what is in a catalog: labels, pixels, names, and plates that should not be there.

Each writes new rows first and turns the plate's row of `plates` last, in one commit: see decisions/0014.
"""

from cytolake.catalog.corrections.annotate import AnnotateReport, annotate
from cytolake.catalog.corrections.listing import ListedPlate, list_catalog_plates
from cytolake.catalog.corrections.object_labels import ObjectsReport, annotate_objects
from cytolake.catalog.corrections.purge import PurgeReport, purge
from cytolake.catalog.corrections.rename import rename
from cytolake.catalog.corrections.replace import replace_plate
from cytolake.catalog.corrections.retract import restore, retract

__all__ = [
    "AnnotateReport",
    "ListedPlate",
    "ObjectsReport",
    "PurgeReport",
    "annotate",
    "annotate_objects",
    "list_catalog_plates",
    "purge",
    "rename",
    "replace_plate",
    "restore",
    "retract",
]
