"""Read plates into the catalog: images, plate map, QC metrics, crop grid."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("ingest")
