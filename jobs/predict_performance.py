"""Learn to predict how well a query, or a prompt, will do before it is used; test it on unseen ones; register it."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import predict_performance

if __name__ == "__main__":
    run_job(predict_performance, __doc__)
