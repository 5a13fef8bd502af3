"""`serve run serve.app:app` from the root of a checkout, without an installed cytolake; see `cytolake.serving.app`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # of this process; replicas get PYTHONPATH

from cytolake.serving.app import app

__all__ = ["app"]
