"""Puts `platform/` on the path, so that a job runs from a checkout, or Ray's copy of one, without an install.

Reaches this process only; workers get theirs from `cytolake.pipeline.session`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))
