"""Ask a running Serve application from Python. Needs numpy and httpx, and nothing else of cytolake."""

from cytolake.client.client import Client, ServiceError

__all__ = ["Client", "ServiceError"]
