"""The guard in front of the API, an ASGI layer: checks key, scope, rate and size of each request.

A request without a key, outside the scopes of its key, above its rate, or with too large a body is refused here and
does not reach the API. In the first three cases no byte of the body is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolake.serving.decoding import PIXEL_MEDIA_TYPES
from cytolake.serving.keys import SCOPES, ApiKey, KeyRing, find_key, key_digest, parse_key, read_keys, utc_today
from cytolake.serving.problems import PROBLEM_MEDIA_TYPE, problem_body

__all__ = ["AsgiApp", "Guard", "GuardConfig", "guard_from_environment", "key_digest", "needed_scope"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key: an orchestrator's probes have none, and the answers hold no data."""

OPEN_PREFIX = "/explore/"
"""Files of the explorer page, which need no key: they hold no data, and the user enters the key on the page."""

ANY_SCOPE_PATHS = frozenset({"/openapi.json"})
"""Paths that every key may read: they describe the service and hold no data."""

SCOPE_OF_WORD = {scope: scope for scope in SCOPES} | {"crops": "explore"}
"""Scope of a path by its first word after /v1."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Form of a request id that a caller may set; other text could break a log line."""

MAX_CALLERS = 10_000
"""Most callers whose rates are held; above it, those of the longest idle callers are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """Keys and limits of the service."""

    key_digests: tuple[str, ...] = ()
    """SHA-256 of accepted keys with every scope, hex. The keys themselves are not stored."""
    keys: tuple[ApiKey, ...] = ()
    """Accepted keys with names, scopes and expiry; with `keys_file`, the keys of the file at the start."""
    keys_file: str = ""
    """Key file, read again when it changes; "" for none. A replica that cannot read it uses `keys`."""
    no_auth: bool = False
    """Answer without a key, but only callers on this machine that address it as localhost. Excludes keys."""
    open_metrics: bool = False
    """Answer /metrics without a key, for a network that only the monitoring can reach."""
    requests_per_s: float = 0.0
    """Requests per second of one key name, or of one address without keys; 0 for no limit. Each replica counts its own
    requests, so n replicas admit up to n times as many."""
    burst: int = 0
    """Requests that may arrive at once after a pause; 0 for the number of one second, at least 1."""
    max_array_body_bytes: int = 64 * 2**20
    """Largest body of an array request, bytes: 1,300 crops of 5 channels, 64 pixels, 16 bit."""
    max_json_body_bytes: int = 2**20
    """Largest body of any other request, bytes."""
    body_timeout_s: float = 30.0
    """Longest time to receive a body, seconds, so that slow senders do not occupy the service."""
    sets_request_id: bool = True
    """Write `X-Request-Id` on responses. False behind Ray Serve's proxy, which writes it itself."""

    def __post_init__(self) -> None:
        if self.no_auth and (self.key_digests or self.keys or self.keys_file):
            raise ValueError(
                "the service has both keys and CYTOLAKE_NO_AUTH=1. Unset CYTOLAKE_NO_AUTH to require keys, "
                "or CYTOLAKE_API_KEYS and CYTOLAKE_API_KEYS_FILE to serve this machine without keys."
            )
        for digest in self.key_digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError("key_digests: expected SHA-256 digests of 64 lower-case hex digits; see `key_digest`.")
        if min(self.max_array_body_bytes, self.max_json_body_bytes) < 1 or self.body_timeout_s <= 0:
            raise ValueError("max_array_body_bytes, max_json_body_bytes and body_timeout_s must be positive")
        if not 0 <= self.requests_per_s < math.inf or self.burst < 0:
            raise ValueError(
                f"requests_per_s is {self.requests_per_s:g} and burst {self.burst}; expected numbers of 0 or more. "
                "Correct CYTOLAKE_RATE_PER_S and CYTOLAKE_BURST, or leave them out for no limit."
            )


def guard_from_environment(environment: Mapping[str, str], *, sets_request_id: bool = True) -> GuardConfig:
    """Read keys and limits from the environment.

    `CYTOLAKE_API_KEYS` holds keys separated by commas or white space, plain or `sha256:` and the hex digest of one;
    they have every scope. `CYTOLAKE_API_KEYS_FILE` names a file with one on each line (`#` starts a comment), there
    also as `name  sha256:<hex>  scopes=embed,search  expires=2027-01-01`; it is read again when it changes, so keys are
    added and removed without a restart. Replace it by renaming a new file over it, so that no half file is read.
    `CYTOLAKE_NO_AUTH=1` serves callers on this machine without a key; with neither, every request to /v1 is refused.
    `CYTOLAKE_RATE_PER_S` and `CYTOLAKE_BURST` limit each key's requests; `CYTOLAKE_OPEN_METRICS=1` answers
    /metrics without a key.

    Raises:
        ValueError: A key too short to be safe, a malformed digest, an unreadable key file, keys and
            CYTOLAKE_NO_AUTH=1 together, or a limit that is no number.
    """
    words = re.split(r"[,\s]+", environment.get("CYTOLAKE_API_KEYS", ""))
    keys_file = environment.get("CYTOLAKE_API_KEYS_FILE", "")
    keys: tuple[ApiKey, ...] = ()
    if keys_file:
        keys_file = str(Path(keys_file).expanduser().absolute())  # the replicas' working directory is another one
        try:
            keys = read_keys(keys_file)
        except ValueError as error:
            raise ValueError(f"CYTOLAKE_API_KEYS_FILE: {error}") from error
    return GuardConfig(
        key_digests=tuple(sorted({key_digest(word) for word in words if word})),
        keys=keys,
        keys_file=keys_file,
        no_auth=environment.get("CYTOLAKE_NO_AUTH", "") == "1",
        open_metrics=environment.get("CYTOLAKE_OPEN_METRICS", "") == "1",
        requests_per_s=float(_number(environment, "CYTOLAKE_RATE_PER_S")),
        burst=int(_number(environment, "CYTOLAKE_BURST", whole=True)),
        sets_request_id=sets_request_id,
    )


def needed_scope(path: str) -> str | None:
    """Scope that a path needs: one of `keys.SCOPES`, "" for any key, None for a key with every scope.

    The scope is the first word of the path after /v1: /v1/predict-performance needs `predict`. A path whose first word
    is no scope needs a key with every scope, so that limited keys cannot use a new endpoint.
    """
    if path in ANY_SCOPE_PATHS:
        return ""
    first = re.match(r"/(?:v1/)?([a-z]+)", path)
    return SCOPE_OF_WORD.get(first[1]) if first else None


class Guard:
    """ASGI middleware: sets the request id, checks key, scope, rate and size. Holds at most one body of limited size
    for each admitted request. A refused request has the reason, one word, in `scope["state"]["refused"]`."""

    def __init__(self, app: AsgiApp, config: GuardConfig) -> None:
        self._app = app
        self._config = config
        fixed = [parse_key(f"sha256:{digest}") for digest in config.key_digests]
        if config.keys_file:
            self._ring = KeyRing(fixed, config.keys_file, config.keys)
        else:
            self._ring = KeyRing([*fixed, *config.keys], "")
        self._rates = RateLimit(config.requests_per_s, config.burst) if config.requests_per_s > 0 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "only HTTP is served"})
            return

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self._config.sets_request_id:
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            body = b""  # paths without a key take no body, so callers without a key cannot fill the memory
            if not self._is_open(scope):
                caller = await self._check_caller(scope, headers)
                self._check_rate(caller)
                body = await self._read_body(headers, receive)
        except _Refused as refused:
            scope["state"]["refused"] = refused.reason
            await _send_problem(send_with_id, refused, request_id)
            return
        await self._app(scope, _replay(body, receive), send_with_id)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        is_page = path.startswith(OPEN_PREFIX) and ".." not in path and scope.get("method") in ("GET", "HEAD")
        return path in OPEN_PATHS or is_page or (path == "/metrics" and self._config.open_metrics)

    async def _check_caller(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """The caller for the rate limit: the name of the key, or an address."""
        if self._config.no_auth:
            if not (_is_loopback_client(scope.get("client")) and _is_loopback_host(headers.get("host", ""))):
                raise _Refused(
                    401,
                    "not_local",
                    "this service runs without keys and answers only callers on its own machine that address it as "
                    "localhost. Start it with CYTOLAKE_API_KEYS to serve other callers.",
                )
            return str(scope["client"][0])
        keys = await self._ring.keys()
        if not keys:
            raise _Refused(
                401,
                "no_keys",
                "this service has no key yet and refuses every request. Start it with CYTOLAKE_API_KEYS or "
                "CYTOLAKE_API_KEYS_FILE, or with CYTOLAKE_NO_AUTH=1 to serve callers on its own machine without a key.",
            )
        scheme, _, plain = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not plain.strip():
            raise _Refused(
                401, "key_missing", "the request carries no key. Send the header `Authorization: Bearer <key>`."
            )
        key = find_key(plain.strip(), keys)
        if key is None:
            raise _Refused(
                401, "key_unknown", "the key is not one of this service's keys. Request a valid one from its operator."
            )
        if key.has_expired(utc_today()):
            raise _Refused(
                401,
                "key_expired",
                f"the key {key.name} expired on {key.expires}. Request a new one from the operator.",
            )
        self._check_scope(key, scope["path"])
        return key.name

    def _check_scope(self, key: ApiKey, path: str) -> None:
        needed = needed_scope(path)
        if not key.scopes or needed == "" or needed in key.scopes:
            return
        requirement = f"the scope {needed!r}" if needed else "a key with every scope"
        raise _Refused(
            403,
            "scope",
            f"{path[:100]} needs {requirement}; the key {key.name} has {', '.join(sorted(key.scopes))}. Request "
            "another key from the operator of the service.",
        )

    def _check_rate(self, caller: str) -> None:
        if self._rates is None:
            return
        wait_s = self._rates.take(caller)
        if wait_s > 0:
            whole_s = math.ceil(wait_s)
            raise _Refused(
                429,
                "rate",
                f"{caller} sent more than {self._config.requests_per_s:g} requests per second. Retry in {whole_s} s, "
                "and send more crops in each request.",
                headers={"retry-after": str(whole_s)},
            )

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        is_pixels = headers.get("content-type", "").partition(";")[0].strip().lower() in PIXEL_MEDIA_TYPES
        limit = self._config.max_array_body_bytes if is_pixels else self._config.max_json_body_bytes
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _Refused(
                415, "encoding", f"content-encoding {headers['content-encoding']}: send the body without compression."
            )
        declared = headers.get("content-length", "").strip()
        if declared and not re.fullmatch(r"[0-9]{1,18}", declared):
            raise _Refused(400, "length", "the Content-Length header is not a number of bytes.")
        if declared and int(declared) > limit:
            raise _Refused(
                413,
                "too_large",
                f"the body has {int(declared):,} bytes, at most {limit:,} are allowed. Send fewer crops.",
            )
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                return await _receive_at_most(limit, receive)
        except TimeoutError:
            raise _Refused(408, "slow", f"the body had not arrived after {self._config.body_timeout_s:g} s.") from None


class RateLimit:
    """A token bucket for each caller: a request takes one token, and `per_s` tokens return each second."""

    def __init__(self, per_s: float, burst: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            per_s: Above 0.
            burst: Size of a bucket, which starts full; 0 for the tokens of one second, at least 1.
            clock: Monotonic time, seconds.
        """
        self._per_s = per_s
        self._size = float(burst or max(1, math.ceil(per_s)))
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and the time of their count

    def take(self, caller: str) -> float:
        """0 where the request is admitted, else the seconds until it would be."""
        now = self._clock()
        tokens = self._tokens(caller, now)
        if tokens < 1 - 1e-9:  # a caller that waited long enough must not be refused by a rounding error
            return (1 - tokens) / self._per_s
        if caller not in self._buckets and len(self._buckets) >= MAX_CALLERS:
            self._forget(now)
        self._buckets[caller] = (tokens - 1, now)
        return 0.0

    def _tokens(self, caller: str, now: float) -> float:
        tokens, counted_at = self._buckets.get(caller, (self._size, now))
        return min(self._size, tokens + (now - counted_at) * self._per_s)

    def _forget(self, now: float) -> None:
        """Drop full buckets, which are the same as new ones; where that frees nothing, the longest idle half."""
        remaining = {
            caller: bucket for caller, bucket in self._buckets.items() if self._tokens(caller, now) < self._size
        }
        if len(remaining) >= MAX_CALLERS:
            latest = sorted(remaining, key=lambda caller: remaining[caller][1])[len(remaining) // 2 :]
            remaining = {caller: remaining[caller] for caller in latest}
        self._buckets = remaining


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})


async def _receive_at_most(limit: int, receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "disconnected", "the connection closed before the whole body arrived.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _Refused(413, "too_large", f"the body is larger than the limit of {limit:,} bytes. Send fewer crops.")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once and then waits for the disconnect, as the server's own does."""
    is_sent = False

    async def replayed() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _number(environment: Mapping[str, str], name: str, *, whole: bool = False) -> float:
    text = environment.get(name, "").strip()
    try:
        return int(text or "0") if whole else float(text or "0")
    except ValueError:
        expected = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {text[:40]!r}, expected {expected}; leave it out for no limit.") from None


def _is_loopback_client(client: Any) -> bool:
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except (TypeError, IndexError, ValueError):
        return False


def _is_loopback_host(host: str) -> bool:
    # A web page can make a browser send requests here under its own name (DNS rebinding); the Host header shows it.
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower() in {"localhost", "127.0.0.1", "::1"}


async def _send_problem(send: Send, refused: _Refused, request_id: str) -> None:
    body = problem_body(refused.status, refused.detail, instance=request_id)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of a refused body is not read
    ]
    headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="cytolake"'))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
