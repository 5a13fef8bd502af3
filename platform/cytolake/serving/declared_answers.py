"""What each endpoint may answer, for its OpenAPI description: statuses and media types.

The tests compare every answer that they get with these declarations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import Response

from cytolake.serving.decoding import ARRAY_MEDIA_TYPE
from cytolake.serving.problems import PROBLEM_MEDIA_TYPE

PROBLEMS = {
    400: "the Content-Length header is no number",
    401: "no valid key",
    403: "the key has not the scope that this path needs",
    404: "not found: an alias, crop, site, perturbation, representation, column or profile of the request",
    408: "the body did not arrive in time",
    409: "the request does not fit the state of the service: no predictor was fitted, or rows of an older answer",
    413: "the body is too large, or holds too many crops",
    415: "a body of another media type, or a compressed one",
    422: "request not understood",
    429: "more requests than the limit of this key; `Retry-After` says when to retry",
    503: "not ready: no model is loaded, or stored data cannot be read",
}
"""Status to its meaning; all are problem documents."""

OF_GUARD = (400, 401, 403, 408, 413, 415, 429)
"""What the guard in front of the endpoints answers, where a path needs a key."""


class BinaryResponse(Response):
    """Numbers as bytes."""

    media_type = ARRAY_MEDIA_TYPE


class PngResponse(Response):
    """A picture."""

    media_type = "image/png"


class TextResponse(Response):
    """Plain text, such as metrics."""

    media_type = "text/plain"


def problems(*statuses: int, is_guarded: bool = True) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that can fail so.

    Args:
        statuses: Of `PROBLEMS`.
        is_guarded: The path needs a key, and its body is read.
    """
    declared = {*statuses, *(OF_GUARD if is_guarded else ())}
    return {
        status: {"description": PROBLEMS[status], "content": {PROBLEM_MEDIA_TYPE: {}}} for status in sorted(declared)
    }


def also(*media_types: str, status: int = 200, description: str = "Successful Response") -> dict[int | str, Any]:
    """An answer in further media types than the endpoint's own, to be merged into `responses`."""
    return {status: {"description": description, "content": {each: {} for each in media_types}}}


def without_assumed_faults(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document without FastAPI's own 422 of each endpoint with parameters, which is never sent.

    An endpoint that can answer 422 declares it by `problems`.
    """
    own = {"HTTPValidationError", "ValidationError"}
    for operation in _operations(document):
        declared = operation["responses"].get("422", {}).get("content", {})
        if "application/json" in declared:
            del operation["responses"]["422"]
    for name in own:
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


def _operations(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (operation for methods in document["paths"].values() for operation in methods.values())
