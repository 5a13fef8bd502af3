"""The Serve application: `CYTOLAKE_ROOT=cytolake_data CYTOLAKE_API_KEYS=... serve run cytolake.serving.app:app`.

CYTOLAKE_ROOT           catalog root; ./cytolake_data when unset
CYTOLAKE_ALIAS          MLflow alias to follow; champion when unset
CYTOLAKE_TRACKING_URI   MLflow registry; that of the catalog root when unset
CYTOLAKE_PRECISION      precision of matrix products: bf16, for GPUs, or fp32; fp32 when unset
CYTOLAKE_API_KEYS       accepted bearer keys, plain or sha256:<hex>, separated by commas
CYTOLAKE_API_KEYS_FILE  file with accepted keys, one on each line, optionally with name, scopes and expiry
                        (`cytolake keys new`); read again when it changes
CYTOLAKE_NO_AUTH=1      no keys; answers callers on this machine only
CYTOLAKE_RATE_PER_S     requests per second of each key, in each replica; no limit when unset
CYTOLAKE_BURST          requests of a key that may arrive at once; the number of one second when unset
CYTOLAKE_OPEN_METRICS=1 answer /metrics without a key
CYTOLAKE_PAGE           folder of the explorer page; the one of the checkout or of the installed package when unset

The variables are read when this module is imported; replicas get the resulting config, with digests instead of keys.
"""

from __future__ import annotations

import os
from pathlib import Path

import cytolake
from cytolake.serving.deployment import build_application
from cytolake.serving.service import config_from_environment


def replica_environment(source_root: Path) -> dict[str, str]:
    """Environment variables of the replicas' processes.

    Args:
        source_root: Folder that holds the package: platform/ of a checkout, or site-packages.
    """
    variables = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "False", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if source_root.name == "platform":
        # Relative first: in a cluster a replica starts in its node's copy of the working directory (or the image's),
        # where the path of this machine does not exist. Absolute for `serve run` with a Ray that runs elsewhere.
        variables["PYTHONPATH"] = os.pathsep.join(["platform", str(source_root)])
    return variables


app = build_application(
    config_from_environment(os.environ, sets_request_id=False),
    replica_environment(Path(cytolake.__file__).resolve().parents[1]),
)
