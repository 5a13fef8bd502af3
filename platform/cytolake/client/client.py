"""HTTP client of the Serve application: arrays in, arrays out; repeats requests after transient failures.

All endpoints only read, so a request can be repeated safely.

Shapes: B crops, C channels, S side of a crop in pixels, D width of the vector.
"""

from __future__ import annotations

import io
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

ARRAY_MEDIA_TYPE = "application/octet-stream"
PROBLEM_MEDIA_TYPE = "application/problem+json"

RETRIED = frozenset({429, 502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
"""Wait before another attempt, seconds: random, up to 0.25 at first, then doubling up to 8."""

LONGEST_RETRY_AFTER_S = 120.0
"""Longest Retry-After that the client waits for, seconds."""

ROUNDS = 3
"""Attempts to embed a whole array with one model, where another model is promoted in between."""

REPEATED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""Failures of the connection, which are repeated. A timeout is not: the next attempt would take as long."""


_NPY_LOCK = threading.Lock()
"""Numpy parses headers with ast.literal_eval, of which two at once in threads can raise SystemError (Python 3.11)."""


class ServiceError(Exception):
    """The service refused the request, failed, or could not be reached."""

    def __init__(self, status: int, title: str, detail: str, request_id: str = "") -> None:
        """
        Args:
            status: HTTP status; 0 without an answer.
            title: Kind of the error, the same text each time.
            detail: What was found, what was expected, what to do next.
            request_id: Id of the request in the log of the service.
        """
        super().__init__(f"{status} {title}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id


class Client:
    """Client of one service. Thread-safe; in asyncio, call it through `asyncio.to_thread`."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        alias: str = "",
        timeout_s: float = 60.0,
        retries: int = 5,
        max_crops: int = 256,
        max_body_bytes: int = 32 * 2**20,
        in_flight: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: Address, such as `http://127.0.0.1:8000`. Use https over a network, because a header holds the key.
            key: Bearer key; "" for a service without keys.
            alias: Registry alias of the model that answers; "" for the default of the service.
            timeout_s: Longest wait for a connection, and for each answer, seconds.
            retries: Further attempts after a failed connection, or a status 429, 502, 503 or 504.
            max_crops: Most crops in one request; a larger array is sent in several requests.
            max_body_bytes: Most bytes of pixels in one request; a larger crop is sent alone.
            in_flight: Concurrent requests of one array.
            transport: Replacement of the network, such as `httpx.MockTransport`.

        Raises:
            ValueError: A limit below 1, or fewer than 0 retries.
        """
        if min(max_crops, max_body_bytes, in_flight) < 1 or retries < 0 or timeout_s <= 0:
            raise ValueError(
                f"max_crops {max_crops}, max_body_bytes {max_body_bytes}, in_flight {in_flight}, retries {retries}, "
                f"timeout_s {timeout_s:g}: expected 1 or more, retries 0 or more, timeout_s above 0"
            )
        self._retries = retries
        self._alias = alias
        self._max_crops = max_crops
        self._max_body_bytes = max_body_bytes
        self._in_flight = in_flight
        self._paths: Mapping[str, Any] = {}
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
            transport=transport,
        )
        self._sleep: Callable[[float], None] = time.sleep

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(self, pixels: NDArray[Any], channels: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of your own crops.

        Args:
            pixels: (B, C, S, S), or (C, S, S) for one crop; raw intensities of any scale, S the crop size of the model.
            channels: C stain names, in the order of the pixels.

        Returns:
            (B, D), all of one model, even where another is promoted in between.

        Raises:
            ServiceError: The service refuses the request, for example another crop size or an unknown stain.
            ValueError: An array of another rank, without crops, or of another type than numbers.
        """
        if pixels.ndim not in (3, 4) or pixels.dtype.kind not in "uif" or not pixels.size:
            raise ValueError(
                f"pixels have shape {pixels.shape} and type {pixels.dtype}; expected (B, C, S, S), or (C, S, S) for "
                "one crop, of plain numbers, and at least one crop"
            )
        pixels_BCHW = pixels[None] if pixels.ndim == 3 else pixels
        step = min(self._max_crops, max(1, self._max_body_bytes // pixels_BCHW[0].nbytes))

        def send(first: int) -> httpx.Response:
            stream = io.BytesIO()
            np.save(stream, pixels_BCHW[first : first + step], allow_pickle=False)
            return self._send(
                "POST",
                "/v1/embed",
                params={"channels": ",".join(channels)},
                content=stream.getvalue(),
                headers={"content-type": ARRAY_MEDIA_TYPE, "accept": ARRAY_MEDIA_TYPE},
            )

        return self._embed_all(send, range(0, len(pixels_BCHW), step))

    def embed_crops(self, crop_ids: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) vectors of stored crops, in the order of their ids, all of one model.

        Raises:
            ServiceError: The service refuses the request, for example an unknown crop.
            ValueError: No ids.
        """
        if not crop_ids:
            raise ValueError("no crop ids; expected at least one")

        def send(first: int) -> httpx.Response:
            request = {"crop_ids": list(crop_ids[first : first + self._max_crops])}
            return self._send("POST", "/v1/embed", json=request, headers={"accept": ARRAY_MEDIA_TYPE})

        return self._embed_all(send, range(0, len(crop_ids), self._max_crops))

    def search(
        self,
        vector: NDArray[np.floating[Any]] | Sequence[float] | None = None,
        *,
        crop_id: str = "",
        perturbation: str = "",
        k: int = 10,
        where: str = "",
    ) -> dict[str, Any]:
        """The stored crops most similar to a vector, to a stored crop, or to a perturbation's crops.

        Args:
            vector: (D,), a result of `embed`. Give one of vector, crop_id and perturbation.
            crop_id: Search by a stored crop, which is excluded from the hits.
            perturbation: Search by a perturbation's crops, which are excluded from the hits.
            k: Number of hits.
            where: SQL condition on the hits, such as `gene = 'TP53'`.

        Returns:
            The answer of the service: `hits`, most similar first, each with `crop_id` and `similarity`.

        Raises:
            ServiceError: The service refuses the request, for example a condition that is not allowed.
        """
        question: dict[str, Any] = {"k": k}
        if vector is not None:
            question["vector"] = np.asarray(vector, dtype=np.float64).tolist()
        named = {"crop_id": crop_id, "perturbation": perturbation, "where": where}
        return self._json("POST", "/v1/search", json=question | {name: value for name, value in named.items() if value})

    def qc(self, **question: Any) -> dict[str, Any]:
        """QC verdicts; for the fields of the question see `QcRequest` in /openapi.json.

        Raises:
            ServiceError: 404, the service has no such endpoint; or it refuses the request.
        """
        return self._json("POST", self._path_of("qc"), json=_plain(question))

    def predict_performance(self, **question: Any) -> dict[str, Any]:
        """Predicted performance of queries, planned treatments or prompts; for the fields see `PredictRequest`.

        Raises:
            ServiceError: 404, the service has no such endpoint; or it refuses the request.
        """
        return self._json("POST", self._path_of("predict"), json=_plain(question))

    def model(self, alias: str = "") -> dict[str, Any]:
        """The card of a model: how its vectors are computed, and their benchmark scores.

        Args:
            alias: Alias of the model; "" for that of the client, or `champion`.

        Raises:
            ServiceError: 404, the service does not follow the alias.
        """
        return self._json("GET", f"/v1/models/{alias or self._alias or 'champion'}")

    def is_ready(self) -> bool:
        """Whether the service has a model loaded; one attempt, without waiting."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _embed_all(self, send: Callable[[int], httpx.Response], starts: Sequence[int]) -> NDArray[np.float32]:
        def embed_one(first: int) -> tuple[str, NDArray[np.float32]]:
            response = send(first)
            with _NPY_LOCK:
                vectors_BD = np.load(io.BytesIO(response.content), allow_pickle=False)
            return response.headers.get("x-representation-id", ""), vectors_BD

        for _ in range(ROUNDS):
            with ThreadPoolExecutor(min(self._in_flight, len(starts))) as senders:
                parts = list(senders.map(embed_one, starts))
            if len({representation_id for representation_id, _ in parts}) == 1:
                return np.concatenate([vectors_BD for _, vectors_BD in parts])
        raise ServiceError(
            0,
            "Changing model",
            f"in {ROUNDS} attempts parts of the array were answered by different models, whose vectors cannot be "
            "compared. Repeat the request after the promotion.",
        )

    def _path_of(self, word: str) -> str:
        if not self._paths:
            self._paths = self._json("GET", "/openapi.json")["paths"]
        found = [
            path
            for path, methods in self._paths.items()
            if re.match(rf"/v1/{word}(?![a-z])", path) and "{" not in path and "post" in methods
        ]
        if not found:
            raise ServiceError(
                404,
                "Not found",
                f"this service has no endpoint POST /v1/{word}; /openapi.json lists its endpoints.",
            )
        return min(found, key=len)

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(method, path, **request).json()
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer of a successful request, after at most `retries` further attempts."""
        request_id = uuid.uuid4().hex
        request["headers"] = {"x-request-id": request_id} | request.get("headers", {})
        if self._alias:
            request["params"] = {"alias": self._alias} | request.get("params", {})
        for attempt in range(self._retries + 1):
            # Random, so that callers that failed together do not return together.
            wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
            try:
                response = self._http.request(method, path, **request)
            except REPEATED as error:
                failure = _no_answer(error, request_id)
            except httpx.TransportError as error:
                raise _no_answer(error, request_id) from error
            else:
                if response.is_success:
                    return response
                failure = _refusal(response, request_id)
                wait_s += _retry_after_s(response)
                if not _is_transient(response) or wait_s > LONGEST_RETRY_AFTER_S:
                    raise failure
            if attempt < self._retries:
                self._sleep(wait_s)
        raise failure


def _is_transient(response: httpx.Response) -> bool:
    # Errors of the service are problem documents. A bare 500 is the proxy's: the process with the request died.
    is_of_proxy = response.status_code == 500 and not _is_problem(response)
    return response.status_code in RETRIED or is_of_proxy


def _is_problem(response: httpx.Response) -> bool:
    return bool(response.headers.get("content-type", "").partition(";")[0].strip() == PROBLEM_MEDIA_TYPE)


def _refusal(response: httpx.Response, request_id: str) -> ServiceError:
    request_id = response.headers.get("x-request-id", request_id)
    if _is_problem(response):
        try:
            problem = response.json()
            return ServiceError(response.status_code, str(problem["title"]), str(problem["detail"]), request_id)
        except (ValueError, LookupError, TypeError):
            pass  # a broken problem document is shown as text
    text = " ".join(response.text.split())[:300] or "no text"
    return ServiceError(response.status_code, response.reason_phrase or "Error", text, request_id)


def _no_answer(error: httpx.TransportError, request_id: str) -> ServiceError:
    text = " ".join(str(error).split()) or "no text"
    return ServiceError(
        0, "No answer", f"{type(error).__name__} ({text}). Is the service running at this address?", request_id
    )


def _retry_after_s(response: httpx.Response) -> float:
    """Value of the header Retry-After, seconds; 0 where it is missing or invalid."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _plain(question: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as lists; None left out."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in question.items()
        if value is not None
    }
