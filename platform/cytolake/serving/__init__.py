"""The Serve application: guard, decoding, models, search and HTTP endpoints."""

from cytolake.serving.api import build_api, build_app
from cytolake.serving.service import Service, ServingConfig, config_from_environment

__all__ = ["Service", "ServingConfig", "build_api", "build_app", "config_from_environment"]
