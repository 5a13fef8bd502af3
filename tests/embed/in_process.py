"""`embed_pack` with its actor in this process: a Ray worker takes seconds of CPU to import torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cytolake.catalog import Catalog
from cytolake.embed import extract
from cytolake.embed.crop_vectors import EmbedCrops
from cytolake.embed.extract import EmbedConfig
from cytolake.packs.pack import Pack


@contextmanager
def embedding_in_process() -> Iterator[None]:
    """Inside, no Ray is needed; actors get the same arguments and their vectors are appended the same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_embed", _embed)
        yield


def _embed(
    catalog: Catalog, pack: Pack, sources: Sequence[Any], todo: np.ndarray, config: EmbedConfig, _progress: object
) -> None:
    actor = EmbedCrops(**extract._actor_arguments(pack, sources, config))
    batches = [
        actor(pa.table({"row": part})) for part in np.array_split(todo, max(1, len(todo) // config.minibatch_size))
    ]
    extract._append(catalog, pack, sources, pa.concat_tables(batches))
