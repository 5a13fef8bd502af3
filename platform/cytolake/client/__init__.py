"""HTTP client of the Serve application. Needs numpy and httpx only."""

from cytolake.client.client import Client, ServiceError

__all__ = ["Client", "ServiceError"]
