"""Who may ask, and how much: the ASGI layer in front of the API.

A request without a key, or with too large a body, is answered here; the API behind sees neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolake.serving.problems import PROBLEM_MEDIA_TYPE, problem_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a key: an orchestrator's probes carry none, and the answers hold no data."""

MIN_KEY_LENGTH = 16
"""Shorter plain keys are refused at start: they can be guessed from outside. `secrets.token_urlsafe()` gives 43."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A caller's own request id is kept when it has this form; anything else could break a log line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """Keys and limits of the service."""

    key_digests: tuple[str, ...] = ()
    """SHA-256 of every accepted key, hex. The keys themselves are never kept."""
    no_auth: bool = False
    """Answer without a key, but only callers on this machine who address it as localhost. Not together with keys."""
    max_array_body_bytes: int = 64 * 2**20
    """Largest body of an array request, bytes: 1,300 crops of 5 channels, 64 pixels, 16 bit."""
    max_json_body_bytes: int = 2**20
    """Largest body of any other request, bytes."""
    body_timeout_s: float = 30.0
    """A body must be here after this long, seconds; a slower sender would hold a place for nothing."""
    sets_request_id: bool = True
    """Write `X-Request-Id` on responses. False behind Ray Serve's proxy, which writes it itself."""

    def __post_init__(self) -> None:
        if self.no_auth and self.key_digests:
            raise ValueError(
                "the service has both keys and CYTOLAKE_NO_AUTH=1. Unset CYTOLAKE_NO_AUTH to ask for keys, "
                "or CYTOLAKE_API_KEYS and CYTOLAKE_API_KEYS_FILE to serve this machine without."
            )
        for digest in self.key_digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError("key_digests: expected SHA-256 digests of 64 lower-case hex digits; see `key_digest`.")
        if min(self.max_array_body_bytes, self.max_json_body_bytes) < 1 or self.body_timeout_s <= 0:
            raise ValueError("max_array_body_bytes, max_json_body_bytes and body_timeout_s must be positive")


def guard_from_environment(environment: Mapping[str, str], *, sets_request_id: bool = True) -> GuardConfig:
    """Read keys from the environment.

    `CYTOLAKE_API_KEYS` holds keys separated by commas or white space; `CYTOLAKE_API_KEYS_FILE` names a file with one
    on each line (`#` starts a comment). A key is plain, or `sha256:` and the hex digest of one. `CYTOLAKE_NO_AUTH=1`
    serves callers on this machine without a key; with neither, every request under /v1 is refused.

    Raises:
        ValueError: A key too short to be safe, a malformed digest, an unreadable key file, or keys and
            CYTOLAKE_NO_AUTH=1 together.
    """
    keys = re.split(r"[,\s]+", environment.get("CYTOLAKE_API_KEYS", ""))
    keys_file = environment.get("CYTOLAKE_API_KEYS_FILE", "")
    if keys_file:
        try:
            lines = Path(keys_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"CYTOLAKE_API_KEYS_FILE: cannot read {keys_file} ({error}). Expected a text file with one key a line."
            ) from error
        keys += [line.partition("#")[0].strip() for line in lines]
    return GuardConfig(
        key_digests=tuple(sorted({key_digest(key) for key in keys if key})),
        no_auth=environment.get("CYTOLAKE_NO_AUTH", "") == "1",
        sets_request_id=sets_request_id,
    )


def key_digest(key: str) -> str:
    """SHA-256 of a plain key, hex; a key written `sha256:<hex>` is its own digest.

    Raises:
        ValueError: A plain key shorter than `MIN_KEY_LENGTH`, or a malformed digest. The text never holds the key.
    """
    if key.startswith("sha256:"):
        digest = key.removeprefix("sha256:").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(
                f"an API key starts with sha256: but {len(digest)} characters follow, expected 64 hex digits. "
                'Make one with `printf %s "$KEY" | sha256sum`.'
            )
        return digest
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(
            f"an API key has {len(key)} characters, expected at least {MIN_KEY_LENGTH}. "
            "Make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`."
        )
    return hashlib.sha256(key.encode()).hexdigest()


class Guard:
    """ASGI middleware: request id, key, size. Holds no more than one capped body for each request it lets in."""

    def __init__(self, app: AsgiApp, config: GuardConfig) -> None:
        self._app = app
        self._config = config

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
            if scope["path"] not in OPEN_PATHS:
                self._check_caller(scope, headers)
            body = await self._read_body(headers, receive)
        except _Refused as refused:
            await _send_problem(send_with_id, refused, request_id)
            return
        await self._app(scope, _replay(body, receive), send_with_id)

    def _check_caller(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if self._config.no_auth:
            if not (_is_loopback_client(scope.get("client")) and _is_loopback_host(headers.get("host", ""))):
                raise _Refused(
                    401,
                    "this service runs without keys, so it answers only callers on its own machine that address it as "
                    "localhost. Start it with CYTOLAKE_API_KEYS to serve others.",
                )
            return
        if not self._config.key_digests:
            raise _Refused(
                401,
                "this service has no key yet and refuses every request. Start it with CYTOLAKE_API_KEYS or "
                "CYTOLAKE_API_KEYS_FILE, or with CYTOLAKE_NO_AUTH=1 to serve callers on its own machine without.",
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _Refused(401, "the request carries no key. Send the header `Authorization: Bearer <key>`.")
        if not _is_known(key.strip(), self._config.key_digests):
            raise _Refused(401, "the key is not one of this service's keys. Ask who runs it for a valid one.")

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        is_array = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/octet-stream"
        limit = self._config.max_array_body_bytes if is_array else self._config.max_json_body_bytes
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _Refused(415, f"content-encoding {headers['content-encoding']}: send the body without compression.")
        declared = headers.get("content-length", "").strip()
        if declared and not re.fullmatch(r"[0-9]{1,18}", declared):
            raise _Refused(400, "the Content-Length header is not a number of bytes.")
        if declared and int(declared) > limit:
            raise _Refused(413, f"the body has {int(declared):,} bytes, at most {limit:,} are taken. Send fewer crops.")
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                return await _receive_at_most(limit, receive)
        except TimeoutError:
            raise _Refused(408, f"the body was not here after {self._config.body_timeout_s:g} s.") from None


class _Refused(Exception):  # noqa: N818 - an answer rather than a fault
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def _receive_at_most(limit: int, receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the connection closed before the body was whole.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _Refused(413, f"the body is larger than the {limit:,} bytes that are taken. Send fewer crops.")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the body once, then waits for the caller to go, as the server's own does."""
    is_sent = False

    async def replayed() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _is_known(key: str, digests: Iterable[str]) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    # No early exit: the time must not tell how much of a key, or which, was right.
    matches = [hmac.compare_digest(digest, known) for known in digests]
    return any(matches)


def _is_loopback_client(client: Any) -> bool:
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except (TypeError, IndexError, ValueError):
        return False


def _is_loopback_host(host: str) -> bool:
    # A web page can make a browser send requests here under its own name (DNS rebinding); the Host header tells.
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower() in {"localhost", "127.0.0.1", "::1"}


async def _send_problem(send: Send, refused: _Refused, request_id: str) -> None:
    body = problem_body(refused.status, refused.detail, instance=request_id)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of a refused body is not read
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="cytolake"'))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
