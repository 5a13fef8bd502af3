"""MLflow: runs, registered model versions, and the aliases that serving follows."""

from cytolake.tracking.cards import Baseline, ModelCard, ModelVersion, read_card
from cytolake.tracking.promoted import record_promotion, resolve_promoted, tracking_of
from cytolake.tracking.registry import (
    CARD_FILE,
    CHAMPION,
    ENCODER_FILE,
    AliasNotFoundError,
    find_folder,
    promote,
    register_folder,
    resolve_alias,
)
from cytolake.tracking.runs import (
    Run,
    flatten_config,
    metric_history,
    newest_tag,
    run_params,
    start_run,
)
from cytolake.tracking.store import TrackingConfig

__all__ = [
    "CARD_FILE",
    "CHAMPION",
    "ENCODER_FILE",
    "AliasNotFoundError",
    "Baseline",
    "ModelCard",
    "ModelVersion",
    "Run",
    "TrackingConfig",
    "find_folder",
    "flatten_config",
    "metric_history",
    "newest_tag",
    "promote",
    "read_card",
    "record_promotion",
    "register_folder",
    "resolve_alias",
    "resolve_promoted",
    "run_params",
    "start_run",
    "tracking_of",
]
