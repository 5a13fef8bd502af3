"""Measured features of sites on disk: an encoder looks at a site once, however often detectors are compared.

A file holds the sites of one plate as one set of extractors measured them. Its name is the digest of what decides the
numbers: extractors (with the digest of their weights), plate, content of the plate.

Letters: C channels, F features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StoredSite:
    """Features of one site in their own units, and what was spoilt before it was measured."""

    values: Numbers
    """(C, F)"""
    correlation: Numbers
    """(C, C)"""
    is_spoilt: NDArray[np.bool_]
    """(C,)"""


def read_features(path: Path) -> dict[str, StoredSite]:
    """Sites by name; empty where there is no file, or one that is damaged: features can be measured again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names, counts = file["names"].tolist(), file["n_channels"]
            values = np.split(file["values"], np.cumsum(counts)[:-1])
            correlations = np.split(file["correlation"], np.cumsum(counts**2)[:-1])
            is_spoilt = np.split(file["is_spoilt"], np.cumsum(counts)[:-1])
    except (OSError, ValueError, KeyError, EOFError):  # numpy raises any of these on a file that is cut short
        return {}
    return {
        name: StoredSite(of_site, correlation.reshape(len(of_site), len(of_site)), spoilt)
        for name, of_site, correlation, spoilt in zip(names, values, correlations, is_spoilt, strict=True)
    }


def write_features(path: Path, sites: Mapping[str, StoredSite]) -> None:
    """Write sites to a file, whole or not at all; a file that is there is replaced."""
    if not sites:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as file:
        np.savez(
            file,
            names=np.array(list(sites)),
            n_channels=np.array([len(site.values) for site in sites.values()]),
            values=np.concatenate([site.values for site in sites.values()]),
            correlation=np.concatenate([site.correlation.ravel() for site in sites.values()]),
            is_spoilt=np.concatenate([site.is_spoilt for site in sites.values()]),
        )
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
