"""Read plates into the catalog: images, plate map, QC metrics, crop grid."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import ingest

if __name__ == "__main__":
    run_job(ingest, __doc__)
