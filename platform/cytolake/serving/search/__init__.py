"""Search for the stored crops of one representation that are nearest to a vector."""

from cytolake.serving.search.index import NO_ROWS, RESULT_COLUMNS, CropIndex
from cytolake.serving.search.stored import TABLES, read_index

__all__ = ["NO_ROWS", "RESULT_COLUMNS", "TABLES", "CropIndex", "read_index"]
