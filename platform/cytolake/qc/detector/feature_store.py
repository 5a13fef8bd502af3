"""Cache of measured features on disk: an encoder measures a site once for any number of comparisons.

A file holds the sites of one plate as one set of extractors measured them. Its name is the digest of what decides the
numbers: extractors (with the digest of their weights), plate, content of the plate.

Letters: C channels, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from cytolake.storage.atomic_write import atomic_file

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StoredSite:
    """Features of one site in their own units, and the channels with an added artefact."""

    values: Numbers
    """(C, F)"""
    correlation: Numbers
    """(C, C)"""
    is_spoilt: NDArray[np.bool_]
    """(C,)"""


def read_features(path: Path) -> dict[str, StoredSite]:
    """Sites by name; empty without a file or if it is damaged: features can be measured again."""
    if not path.is_file():
        return {}
    try:
        arrays = load_file(path)
        with safe_open(path, framework="np") as file:
            names: list[str] = json.loads(file.metadata()["names"])
    except (SafetensorError, OSError):
        return {}
    counts = arrays["n_channels"]
    ends, ends_of_squares = np.cumsum(counts)[:-1], np.cumsum(counts**2)[:-1]
    values, is_spoilt = np.split(arrays["values"], ends), np.split(arrays["is_spoilt"], ends)
    correlations = np.split(arrays["correlation"], ends_of_squares)
    return {
        name: StoredSite(of_site, correlation.reshape(len(of_site), len(of_site)), spoilt)
        for name, of_site, correlation, spoilt in zip(names, values, correlations, is_spoilt, strict=True)
    }


def write_features(path: Path, sites: Mapping[str, StoredSite]) -> None:
    """Write sites to a file, whole or not at all; a file that is there is replaced."""
    arrays = {
        "n_channels": np.array([len(site.values) for site in sites.values()]),
        "values": np.concatenate([site.values for site in sites.values()]),
        "correlation": np.concatenate([site.correlation.ravel() for site in sites.values()]),
        "is_spoilt": np.concatenate([site.is_spoilt for site in sites.values()]),
    }
    with atomic_file(path) as part:  # two comparisons may write one plate
        save_file(arrays, part, {"names": json.dumps(list(sites))})
