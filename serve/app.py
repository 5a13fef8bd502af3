"""The Serve application: `CYTOLAKE_ROOT=cytolake_data CYTOLAKE_API_KEYS=... serve run serve.app:app`.

CYTOLAKE_ROOT           catalog root; ./cytolake_data when unset
CYTOLAKE_ALIAS          MLflow alias to follow; champion when unset
CYTOLAKE_TRACKING_URI   MLflow registry; the catalog root's own when unset
CYTOLAKE_PRECISION      bf16: matrix products in it, for GPUs; fp32 when unset
CYTOLAKE_API_KEYS       accepted bearer keys, plain or sha256:<hex>, separated by commas
CYTOLAKE_API_KEYS_FILE  the same, one a line, there also with name, scopes and expiry (`cytolake keys new`); read again
                        when it changes
CYTOLAKE_NO_AUTH=1      no keys: answer callers on this machine only
CYTOLAKE_RATE_PER_S     requests a second of each key, in each replica; no limit when unset
CYTOLAKE_BURST          requests of it that may come at once; what one second brings when unset
CYTOLAKE_OPEN_METRICS=1 answer /metrics without a key

Read where this file is imported; replicas get the resulting config, with digests instead of keys.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[1] / "platform"
sys.path.insert(0, str(SOURCE_ROOT))  # reaches this process only; replicas get PYTHONPATH below

from cytolake.serving.deployment import build_application  # noqa: E402
from cytolake.serving.service import config_from_environment  # noqa: E402

REPLICA_ENVIRONMENT = {
    # Relative first: in a cluster a replica starts in its own node's copy of the working directory (or the image's),
    # and this machine's path means nothing there. Absolute for `serve run` beside a Ray that was started elsewhere.
    "PYTHONPATH": os.pathsep.join(["platform", str(SOURCE_ROOT)]),
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

app = build_application(config_from_environment(os.environ, sets_request_id=False), REPLICA_ENVIRONMENT)
