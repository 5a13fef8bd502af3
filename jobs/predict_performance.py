"""Learn to tell how well a query, or a prompt, will do before it is asked; judge it on unseen ones; register it."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import predict_performance

if __name__ == "__main__":
    run_job(predict_performance, __doc__)
