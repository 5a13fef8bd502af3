"""API keys: their text form, scopes and expiry, and the key file, which is read again when it changes.

Only digests are stored. SHA-256 is sufficient, unlike for passwords: a key is 32 random bytes, too many to try with any
digest, and a slow digest would delay every request.
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
"""Scopes that a key can be limited to; `guard.needed_scope` returns the scope of a path."""

MIN_KEY_LENGTH = 16
"""Shorter plain keys are refused at start, because they can be guessed. `cytolake keys new` makes keys of 43."""

MAX_FILE_BYTES = 2**20
"""Limit of the key file: 1 MiB holds about 10,000 keys, so a larger file indicates a wrong path."""

CHECK_EVERY_S = 2.0
"""Least time between two checks of the key file, seconds; a removed key is refused after at most this time."""

CHECK_WAIT_S = 0.5
"""Longest wait of a request for the key file, seconds; a network file system may hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One accepted key, without the key itself."""

    name: str
    """Name in logs and rate limits. Two keys of one name share a rate, such as an old and a new key of one user."""
    digest: str
    """SHA-256 of the key, 64 lower-case hex digits."""
    scopes: frozenset[str] = frozenset()
    """Some of `SCOPES`; empty for all, including scopes that are added later."""
    expires: date | None = None
    """First day, UTC, on which the key is refused; None for never."""

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
                f"{', '.join(sorted(SCOPES))}, or no scopes= for all scopes"
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
    """Make a key: the plain text for its holder, which is not stored, and the `ApiKey` for the service.

    Raises:
        ValueError: A name or a scope that `ApiKey` refuses.
    """
    plain = secrets.token_urlsafe(32)
    return plain, ApiKey(name=name, digest=key_digest(plain), scopes=frozenset(scopes), expires=expires)


def key_digest(key: str) -> str:
    """SHA-256 of a plain key, hex; for `sha256:<hex>` that digest.

    Raises:
        ValueError: A plain key shorter than `MIN_KEY_LENGTH`, or a malformed digest. The message never holds the key.
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
        text: `name  sha256:<hex>  scopes=embed,search  expires=2027-01-01`, where only the digest is required; or a
            plain key alone.

    Raises:
        ValueError: Any other text. The message never holds the key.
    """
    words = text.split()
    at = next((i for i, word in enumerate(words) if word.startswith("sha256:")), None)
    if at is None and len(words) == 1:
        return _all_scopes(key_digest(words[0]))
    if at not in (0, 1):
        raise ValueError(
            f"{len(words)} words and no digest in first or second place, expected `name  sha256:<hex>  "
            "scopes=embed,search  expires=2027-01-01`, or a plain key alone"
        )
    digest = key_digest(words[at])
    scopes: frozenset[str] = frozenset()
    expires: date | None = None
    seen = set()
    for number, word in enumerate(words[at + 1 :], at + 2):
        field, _, value = word.partition("=")
        if not value or field not in ("scopes", "expires") or field in seen:
            raise ValueError(
                f"word {number} is not allowed; after the digest, expected scopes=... and expires=..., each at most "
                "once and with a value"
            )
        seen.add(field)
        if field == "scopes":
            scopes = frozenset(value.split(","))
        else:
            expires = parse_day(value)
    name = words[0] if at == 1 else _all_scopes(digest).name
    return ApiKey(name=name, digest=digest, scopes=scopes, expires=expires)


def read_keys(path: str | Path) -> tuple[ApiKey, ...]:
    """Keys of a file, one on each line; `#` starts a comment. A file without keys is valid and accepts none.

    Raises:
        ValueError: No readable text file, a line that is no key, or a duplicate key. The message names file and line
            and never holds a key.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise OSError(f"it has more than {MAX_FILE_BYTES:,} bytes")
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}). Expected a text file with one key on each line.") from error
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
            raise ValueError(f"{path}, line {number}: the key {key.name} is there twice. Keep one of the lines.")
        keys[key.digest] = key
    return tuple(keys.values())


def find_key(plain: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key of this plain text, also where it has expired; None where it is none of these."""
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
    # No early exit: the time must not depend on which key matches, or how much of it.
    matches = [key for key in keys if hmac.compare_digest(digest, key.digest)]
    return matches[0] if matches else None


class KeyRing:
    """The accepted keys: fixed ones, and those of a file, which is read again when it changes."""

    def __init__(self, fixed: Sequence[ApiKey], file: str, from_file: Sequence[ApiKey] = ()) -> None:
        """
        Args:
            fixed: Keys that do not change.
            file: Key file; "" for none.
            from_file: Keys of the file as known at the start; used until the file can be read, such as on a node
                without it.
        """
        self._fixed = tuple(fixed)
        self._file = file
        self._keys = self._together(from_file)
        self._state: object = None
        self._checked_at = -float("inf")
        self._check: asyncio.Task[None] | None = None
        self._trouble = ""

    async def keys(self) -> tuple[ApiKey, ...]:
        """The keys accepted now; waits at most `CHECK_WAIT_S` for a check of the file that is due."""
        is_due = bool(self._file) and time.monotonic() - self._checked_at >= CHECK_EVERY_S
        if is_due and (self._check is None or self._check.done()):
            self._checked_at = time.monotonic()
            self._check = asyncio.create_task(asyncio.to_thread(self.check))
            await asyncio.wait([self._check], timeout=CHECK_WAIT_S)
        return self._keys

    def check(self) -> None:
        """Read the file if it has changed. A broken file is logged once, and the keys stay."""
        try:
            found = Path(self._file).stat()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
            if state == self._state:
                return
            keys = self._together(read_keys(self._file))
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                logger.error("the key file is not used, the keys stay as they were: %s", error)
            self._trouble = str(error)
            return
        if self._state is not None or self._trouble:
            logger.info("key file %s: %d keys are accepted", self._file, len(keys))
        self._keys, self._state, self._trouble = keys, state, ""

    def _together(self, from_file: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
        # A key of the file replaces one of CYTOLAKE_API_KEYS, because it may have scopes.
        return tuple({key.digest: key for key in (*self._fixed, *from_file)}.values())


def utc_today() -> date:
    """Today in UTC, as in `ApiKey.expires`."""
    return datetime.now(UTC).date()


def parse_day(text: str) -> date:
    """A day in ISO 8601, such as 2027-01-01.

    Raises:
        ValueError: Any other text.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no day; expected one such as 2027-01-01") from None


def _all_scopes(digest: str) -> ApiKey:
    """A key named after the first eight digits of its digest: enough to distinguish keys, useless to find one."""
    return ApiKey(name=f"key-{digest[:8]}", digest=digest)
