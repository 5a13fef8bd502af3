"""A client of the Serve application: arrays in, arrays out, and no failure that asking again would have cured.

Every endpoint only reads, so a request may be repeated without harm.

Shapes: B crops, C channels, S side of a crop in pixels, D width of the vector.
"""

from __future__ import annotations

import io
import random
import re
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
"""Between two attempts, seconds: a random time up to 0.25, then up to twice that, and so on up to 8."""

LONGEST_RETRY_AFTER_S = 120.0
"""A service that asks for a longer pause, seconds, is not waited for."""

ROUNDS = 3
"""How often an array is embedded again from its start because a new model was promoted meanwhile."""

REPEATED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The connection failed. An answer that takes longer than `timeout_s` is none of these: it would take as long again."""


class ServiceError(Exception):
    """The service refused, failed, or was not reached."""

    def __init__(self, status: int, title: str, detail: str, request_id: str = "") -> None:
        """
        Args:
            status: HTTP status; 0 where no answer came.
            title: The kind of trouble, always the same text.
            detail: What happened this time and what to do about it.
            request_id: What the service's log calls the request.
        """
        super().__init__(f"{status} {title}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id


class Client:
    """One service. Safe to share between threads; in asyncio, call it through `asyncio.to_thread`."""

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
            url: Such as `http://127.0.0.1:8000`. Over a network use https: the key travels in a header.
            key: Bearer key; "" for a service that runs without.
            alias: Model that answers, where the service follows several; "" for its own choice.
            timeout_s: How long to wait for a connection, and for each answer, seconds.
            retries: Further attempts when the connection fails or the service says "not now".
            max_crops: Crops in one request; a larger array is sent in several.
            max_body_bytes: Bytes of pixels in one request; the same. A crop that is larger alone is sent alone.
            in_flight: Requests of one array that are under way together: one is read while the other is computed.
            transport: Instead of the network, such as `httpx.MockTransport`.

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
            pixels: (B, C, S, S), or (C, S, S) for one crop; raw intensities of any scale, S as the model takes it.
            channels: C stain names, in the order of the pixels.

        Returns:
            (B, D), all of one model, also when another is promoted meanwhile.

        Raises:
            ServiceError: What the service refuses, such as another crop size or an unknown stain.
            ValueError: An array of another rank, without crops, or of no plain numbers.
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
            ServiceError: What the service refuses, such as an unknown crop.
            ValueError: No ids.
        """
        if not crop_ids:
            raise ValueError("no crop ids; expected at least one")

        def send(first: int) -> httpx.Response:
            asked = {"crop_ids": list(crop_ids[first : first + self._max_crops])}
            return self._send("POST", "/v1/embed", json=asked, headers={"accept": ARRAY_MEDIA_TYPE})

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
            vector: (D,) as `embed` gives it; one of the three is needed.
            crop_id: The same, by a stored crop, which is no hit itself.
            perturbation: The same, by its crops, where the service knows this.
            k: Hits wanted.
            where: SQL condition that hits must pass, such as `gene = 'TP53'`.

        Returns:
            The answer as the service gives it: `hits`, best first, each with `crop_id` and `similarity`.

        Raises:
            ServiceError: What the service refuses, such as a condition that it does not understand.
        """
        question: dict[str, Any] = {"k": k}
        if vector is not None:
            question["vector"] = np.asarray(vector, dtype=np.float64).tolist()
        named = {"crop_id": crop_id, "perturbation": perturbation, "filter": where}
        return self._json("POST", "/v1/search", json=question | {name: value for name, value in named.items() if value})

    def qc(self, **question: Any) -> dict[str, Any]:
        """QC verdicts, where the service gives them; the fields of the question are those of its /openapi.json.

        Raises:
            ServiceError: 404, this service gives none; or what it refuses.
        """
        return self._json("POST", self._path_of("qc"), json=_plain(question))

    def predict_performance(self, **question: Any) -> dict[str, Any]:
        """How well queries, planned treatments or prompts will do, where the service tells; fields as for `qc`.

        Raises:
            ServiceError: 404, this service does not; or what it refuses.
        """
        return self._json("POST", self._path_of("predict"), json=_plain(question))

    def model(self, alias: str = "") -> dict[str, Any]:
        """The card of the model that answers: how its vectors come about, and how they scored.

        Args:
            alias: Another one's; "" for the client's own, or `champion`.

        Raises:
            ServiceError: 404, the service does not follow this alias.
        """
        return self._json("GET", f"/v1/models/{alias or self._alias or 'champion'}")

    def is_ready(self) -> bool:
        """Whether a model is loaded; asked once, without waiting for it."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _embed_all(self, send: Callable[[int], httpx.Response], starts: Sequence[int]) -> NDArray[np.float32]:
        def embed_one(first: int) -> tuple[str, NDArray[np.float32]]:
            response = send(first)
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
            f"{ROUNDS} times another model answered the end of the array than its beginning, whose vectors do not "
            "belong together. Repeat the request when promotion is done.",
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
                f"this service has no endpoint POST /v1/{word}; its /openapi.json lists what there is.",
            )
        return min(found, key=len)

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(method, path, **request).json()
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A good answer, after as many attempts as it takes and are allowed."""
        request_id = uuid.uuid4().hex
        request["headers"] = {"x-request-id": request_id} | request.get("headers", {})
        if self._alias:
            request["params"] = {"alias": self._alias} | request.get("params", {})
        for attempt in range(self._retries + 1):
            # Random up to the limit, so that callers who failed together do not come back together.
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
                if not _may_pass(response) or wait_s > LONGEST_RETRY_AFTER_S:
                    raise failure
            if attempt < self._retries:
                self._sleep(wait_s)
        raise failure


def _may_pass(response: httpx.Response) -> bool:
    # The service's own errors are problem documents. A bare 500 is the proxy's: the process that had the request died.
    is_proxys = response.status_code == 500 and not _is_problem(response)
    return response.status_code in RETRIED or is_proxys


def _is_problem(response: httpx.Response) -> bool:
    return bool(response.headers.get("content-type", "").partition(";")[0].strip() == PROBLEM_MEDIA_TYPE)


def _refusal(response: httpx.Response, request_id: str) -> ServiceError:
    request_id = response.headers.get("x-request-id", request_id)
    if _is_problem(response):
        try:
            problem = response.json()
            return ServiceError(response.status_code, str(problem["title"]), str(problem["detail"]), request_id)
        except (ValueError, LookupError, TypeError):
            pass  # what calls itself a problem document and is none is shown as it came
    told = " ".join(response.text.split())[:300] or "no text"
    return ServiceError(response.status_code, response.reason_phrase or "Error", told, request_id)


def _no_answer(error: httpx.TransportError, request_id: str) -> ServiceError:
    told = " ".join(str(error).split()) or "no text"
    return ServiceError(
        0, "No answer", f"{type(error).__name__} ({told}). Is the service running at this address?", request_id
    )


def _retry_after_s(response: httpx.Response) -> float:
    """What the service asks for, seconds; 0 where it asks for nothing that can be understood."""
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
