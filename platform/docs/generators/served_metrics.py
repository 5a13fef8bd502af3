"""The page of Prometheus metrics, from the metrics that a service registers."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase

from generators.markdown import cell, code, table


def page() -> str:
    """Markdown of the page."""
    from cytolake.serving.metrics import Metrics

    rows = []
    for metric in (each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase)):
        (described,) = metric.describe()
        name = f"{described.name}_total" if described.type == "counter" else described.name
        labels = ", ".join(code(each) for each in metric._labelnames)
        rows.append([code(name), described.type, labels, cell(described.documentation)])
    if not rows:
        raise RuntimeError("found no metrics in cytolake.serving.metrics.Metrics: correct served_metrics.py.")
    return "\n".join(
        [
            "# Metrics\n",
            "A service answers `GET /metrics` in Prometheus's text format. It needs a key unless "
            "`CYTOLAKE_OPEN_METRICS=1` is set. Every series has the label `replica` as well: each replica counts for "
            "itself, and a scrape through Ray Serve's proxy reaches one of them. Sum over `replica`, and take rates "
            "over several scrapes. For exact sums over a cluster, let Prometheus read Ray's own exporter too.\n",
            table(["metric", "type", "labels", "meaning"], rows),
            "`process_*` metrics (resident memory, CPU seconds, open files) come with the Prometheus client.\n",
            "Metrics of training (loss, gradient norm, crops/s, tokens/s, MFU, time that waits for data) go to "
            "MLflow: see [Pretrain](../how-to/pretrain.md).\n",
        ]
    )
