"""Error answers of the service: problem documents, RFC 9457 `application/problem+json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROBLEM_MEDIA_TYPE = "application/problem+json"

TITLES = {
    400: "Bad request",
    401: "Not authorised",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Request too slow",
    409: "Conflict",
    413: "Request too large",
    415: "Unsupported media type",
    422: "Request not understood",
    429: "Too many requests",
    500: "Internal error",
    503: "Not ready",
}
"""Title of each status that the service sends; the same for every occurrence."""


class ServingError(Exception):
    """An error that the API answers with a problem document."""

    def __init__(self, *, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """
        Args:
            status: HTTP status, one of `TITLES`.
            detail: What was found, what was expected, what to do next.
            headers: Extra response headers, such as `Retry-After`.
        """
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def problem_document(status: int, detail: str, *, instance: str = "") -> dict[str, Any]:
    """The body of a problem response.

    Args:
        status: HTTP status.
        detail: What was found, what was expected, what to do next.
        instance: The request id, which identifies the occurrence; "" leaves the member out.

    Source: RFC 9457, section 3.1.
    """
    title = TITLES.get(status, "Error")
    document: dict[str, Any] = {
        "type": f"urn:cytolake:problem:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if instance:
        document["instance"] = f"urn:cytolake:request:{instance}"
    return document


def problem_body(status: int, detail: str, *, instance: str = "") -> bytes:
    """`problem_document` as the bytes of a response."""
    return json.dumps(problem_document(status, detail, instance=instance)).encode()


def first_lines(error: BaseException) -> str:
    """The message of an error on one line of at most 600 characters."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:600] or type(error).__name__
