"""API keys: how one is written down, what it may ask for, until when; and the key file, read again when it changes.

Only digests are kept. A plain SHA-256 is right for them, where it would be wrong for passwords: a key is 32 random
bytes, and nobody tries 2^256 of those however fast the digest is. A slow one would cost every request its time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

logger = logging.getLogger(__name__)

SCOPES = frozenset({"embed", "search", "qc", "explore", "models", "predict", "metrics"})
"""What a key can be limited to; `guard.needed_scope` says which path needs which."""

MIN_KEY_LENGTH = 16
"""Shorter plain keys are refused at start: they can be guessed from outside. `cytolake keys new` gives 43."""

MAX_FILE_BYTES = 2**20
"""A larger key file is a mistake in its path: 1 MiB holds some 10,000 keys."""

LOOK_EVERY_S = 2.0
"""How often the key file may be looked at, seconds. A key is refused this long after its line is gone, at most."""

LOOK_WAIT_S = 0.5
"""How long a request waits for the key file, seconds; a network file system may hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One accepted key, without the key itself."""

    name: str
    """For logs and limits. Two keys of one name share a rate: so the old and the new one while a key is changed."""
    digest: str
    """SHA-256 of the key, 64 lower-case hex digits."""
    scopes: frozenset[str] = frozenset()
    """Some of `SCOPES`; empty means all of them, and what is added later."""
    expires: date | None = None
    """The key is refused from the start of this day on, UTC; None never."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(
                f"the name of an API key has {len(self.name)} characters; expected 1 to 64 letters, digits, '.', '_' "
                "and '-', the first a letter or digit"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise ValueError(f"API key {self.name}: expected a SHA-256 digest of 64 lower-case hex digits")
        if unknown := sorted(self.scopes - SCOPES):
            raise ValueError(
                f"API key {self.name}: no scope is called {', '.join(unknown)}; expected some of "
                f"{', '.join(sorted(SCOPES))}, or no scopes= at all for every one"
            )

    def has_expired(self, today: date) -> bool:
        """Whether the key is refused on this day, UTC."""
        return self.expires is not None and today >= self.expires

    def line(self) -> str:
        """The key as a line of a key file."""
        scopes = f"  scopes={','.join(sorted(self.scopes))}" if self.scopes else ""
        expires = f"  expires={self.expires.isoformat()}" if self.expires else ""
        return f"{self.name}  sha256:{self.digest}{scopes}{expires}"


def new_key(name: str, scopes: Iterable[str] = (), expires: date | None = None) -> tuple[str, ApiKey]:
    """Make a key: the plain text, which is for its holder and kept nowhere, and what the service keeps.

    Raises:
        ValueError: A name or a scope that `ApiKey` refuses.
    """
    plain = secrets.token_urlsafe(32)
    return plain, ApiKey(name=name, digest=key_digest(plain), scopes=frozenset(scopes), expires=expires)


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
                'Make one with `cytolake keys new`, or `printf %s "$KEY" | sha256sum`.'
            )
        return digest
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(
            f"an API key has {len(key)} characters, expected at least {MIN_KEY_LENGTH}. "
            "Make one with `cytolake keys new`."
        )
    return hashlib.sha256(key.encode()).hexdigest()


def parse_key(text: str) -> ApiKey:
    """One key as written in a key file or in CYTOLAKE_API_KEYS.

    Args:
        text: `name  sha256:<hex>  scopes=embed,search  expires=2027-01-01`, of which all but the digest may be left
            out; or a plain key alone.

    Raises:
        ValueError: Anything else. The text never holds the key.
    """
    words = text.split()
    at = next((i for i, word in enumerate(words) if word.startswith("sha256:")), None)
    if at is None and len(words) == 1:
        return _all_scopes(key_digest(words[0]))
    if at not in (0, 1):
        raise ValueError(
            f"{len(words)} words and no digest where one is expected: `name  sha256:<hex>  scopes=embed,search  "
            "expires=2027-01-01`, or a plain key alone"
        )
    digest = key_digest(words[at])
    scopes: frozenset[str] = frozenset()
    expires: date | None = None
    seen = set()
    for number, word in enumerate(words[at + 1 :], at + 2):
        field, _, value = word.partition("=")
        if not value or field not in ("scopes", "expires") or field in seen:
            raise ValueError(
                f"word {number} is no scopes=... or expires=...; these may stand after the digest, each once and with "
                "a value"
            )
        seen.add(field)
        if field == "scopes":
            scopes = frozenset(value.split(","))
        else:
            expires = parse_day(value)
    name = words[0] if at == 1 else _all_scopes(digest).name
    return ApiKey(name=name, digest=digest, scopes=scopes, expires=expires)


def read_keys(path: str | Path) -> tuple[ApiKey, ...]:
    """Keys of a file, one a line; `#` starts a comment. A file without any is one that accepts none.

    Raises:
        ValueError: Not a readable text file, a line that is no key, or a key that stands there twice. The text names
            file and line and never holds a key.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise OSError(f"it has more than {MAX_FILE_BYTES:,} bytes")
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}). Expected a text file with one key a line.") from error
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            key = parse_key(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if key.digest in keys:
            raise ValueError(
                f"{path}, line {number}: the key {key.name} stands there twice. Keep one line, with the scopes it has."
            )
        keys[key.digest] = key
    return tuple(keys.values())


def find_key(plain: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key that was shown, also one that has expired; None where it is none of these."""
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
    # No early exit: the time must not tell how much of a key, or which, was right.
    matches = [key for key in keys if hmac.compare_digest(digest, key.digest)]
    return matches[0] if matches else None


class KeyRing:
    """The keys that are accepted now: those that never change, and those of a file that is read again when it does."""

    def __init__(self, fixed: Sequence[ApiKey], file: str, from_file: Sequence[ApiKey] = ()) -> None:
        """
        Args:
            fixed: Keys from elsewhere.
            file: Key file; "" for none.
            from_file: Its keys as they are known already: kept while the file cannot be read, such as on a node
                that does not have it.
        """
        self._fixed = tuple(fixed)
        self._file = file
        self._keys = self._together(from_file)
        self._state: object = None
        self._looked_at = -float("inf")
        self._look: asyncio.Task[None] | None = None
        self._trouble = ""

    async def keys(self) -> tuple[ApiKey, ...]:
        """The keys of this moment; waits `LOOK_WAIT_S` at most for a file that is due to be looked at."""
        is_due = bool(self._file) and time.monotonic() - self._looked_at >= LOOK_EVERY_S
        if is_due and (self._look is None or self._look.done()):
            self._looked_at = time.monotonic()
            self._look = asyncio.create_task(asyncio.to_thread(self.look))
            await asyncio.wait([self._look], timeout=LOOK_WAIT_S)
        return self._keys

    def look(self) -> None:
        """Read the file if it has changed. A broken one is told in the log, once, and changes nothing."""
        try:
            found = Path(self._file).stat()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
            if state == self._state:
                return
            keys = self._together(read_keys(self._file))
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                logger.error("the key file is not taken, the keys stay as they were: %s", error)
            self._trouble = str(error)
            return
        if self._state is not None or self._trouble:
            logger.info("key file %s: %d keys are accepted now", self._file, len(keys))
        self._keys, self._state, self._trouble = keys, state, ""

    def _together(self, from_file: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
        # The file's line for a key wins: it may name scopes, which CYTOLAKE_API_KEYS cannot.
        return tuple({key.digest: key for key in (*self._fixed, *from_file)}.values())


def utc_today() -> date:
    """The day, as `ApiKey.expires` counts it."""
    return datetime.now(UTC).date()


def parse_day(text: str) -> date:
    """A day as people write it, 2027-01-01.

    Raises:
        ValueError: Anything else.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no day; expected one such as 2027-01-01") from None


def _all_scopes(digest: str) -> ApiKey:
    """A key without a name of its own; eight digits of the digest tell keys apart and help nobody to find one."""
    return ApiKey(name=f"key-{digest[:8]}", digest=digest)
