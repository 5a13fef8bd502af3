"""The crop catalog: Delta tables of plates, wells, sites, crops and everything computed from them.

`cytolake.catalog.open(root)` needs no server and no Ray.
"""

from cytolake.catalog.declared import ChannelVocabulary, channel_vocabulary, declared_path, table_contract, table_names
from cytolake.catalog.errors import CatalogError, UnknownTableError
from cytolake.catalog.tables import Catalog, open

__all__ = [
    "Catalog",
    "CatalogError",
    "ChannelVocabulary",
    "UnknownTableError",
    "channel_vocabulary",
    "declared_path",
    "open",
    "table_contract",
    "table_names",
]
