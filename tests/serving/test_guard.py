from __future__ import annotations

import asyncio
import hashlib
import json
import re

import pytest

from cytolake.serving.guard import Guard, GuardConfig, guard_from_environment, key_digest

KEY = "a-key-that-nobody-guesses"
CONFIG = GuardConfig(
    key_digests=(key_digest(KEY),), max_array_body_bytes=1000, max_json_body_bytes=100, body_timeout_s=0.2
)


class Answer:
    """Runs one request through the guard, in front of an app that echoes the body."""

    def __init__(self, config, path="/v1/embed", chunks=(b"",), client="127.0.0.1", stalls=False, **headers):
        self.messages, self.read, self.seen = [], 0, None
        waiting = list(chunks)

        async def receive():
            if not waiting:
                await asyncio.sleep(3600)
            self.read += 1
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or stalls}

        async def send(message):
            self.messages.append(message)

        async def echo(scope, receive, send):
            self.seen = (await receive())["body"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.seen})

        named = {"host": "127.0.0.1:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "path": path,
            "client": (client, 5000),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value is not None],
        }
        asyncio.run(Guard(echo, config)(scope, receive, send))
        self.status = self.messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def problem(self):
        return json.loads(self.messages[1]["body"])


def bearer(key=KEY):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "authorization", [None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", "Bearer é"]
)
def test_without_a_key_nothing_of_the_body_is_read_and_nothing_reaches_the_app(authorization):
    answer = Answer(CONFIG, chunks=(b"x" * 50,), authorization=authorization)
    assert answer.status == 401
    assert answer.read == 0
    assert answer.seen is None
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


def test_with_a_key_the_app_gets_the_whole_body():
    answer = Answer(CONFIG, chunks=(b"ab", b"", b"cd"), **bearer())
    assert (answer.status, answer.seen) == (200, b"abcd")
    assert Answer(CONFIG, authorization=f"bearer  {KEY} ").status == 200


def test_a_key_may_be_kept_as_its_digest():
    digest = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    config = guard_from_environment({"CYTOLAKE_API_KEYS": f"{digest}, another-key-of-length"})
    assert Answer(config, **bearer()).status == 200
    assert Answer(config, **bearer("another-key-of-length")).status == 200
    assert Answer(config, **bearer(digest)).status == 401, "a stolen digest must not open anything"


def test_the_config_holds_no_key():
    assert KEY not in repr(guard_from_environment({"CYTOLAKE_API_KEYS": KEY}))


def test_keys_are_read_from_a_file(tmp_path):
    (tmp_path / "keys").write_text(f"# keys\n\n{KEY}  # of the demo\n")
    config = guard_from_environment({"CYTOLAKE_API_KEYS_FILE": str(tmp_path / "keys")})
    assert Answer(config, **bearer()).status == 200


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"CYTOLAKE_API_KEYS": "short"}, "5 characters, expected at least 16"),
        ({"CYTOLAKE_API_KEYS": "sha256:beef"}, "64 hex digits"),
        ({"CYTOLAKE_API_KEYS_FILE": "/nowhere/keys"}, "cannot read /nowhere/keys"),
        ({"CYTOLAKE_API_KEYS": KEY, "CYTOLAKE_NO_AUTH": "1"}, "both keys and CYTOLAKE_NO_AUTH"),
    ],
)
def test_an_unsafe_environment_stops_the_start_without_showing_a_key(environment, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        guard_from_environment(environment)
    assert "short" not in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("value", ["", "0", "true", "yes"])
def test_a_service_without_keys_refuses_everything_until_told_otherwise(value):
    answer = Answer(guard_from_environment({"CYTOLAKE_NO_AUTH": value}), **bearer())
    assert answer.status == 401
    assert "CYTOLAKE_API_KEYS" in answer.problem["detail"]


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example:8000", 401),
        ("127.0.0.1", None, 401),
        ("10.0.0.7", "localhost:8000", 401),
        ("10.0.0.7", "10.0.0.1:8000", 401),
    ],
)
def test_without_keys_only_this_machine_is_answered(client, host, status):
    config = guard_from_environment({"CYTOLAKE_NO_AUTH": "1"})
    assert Answer(config, client=client, host=host).status == status


def test_probes_need_no_key_and_the_schema_does():
    assert Answer(CONFIG, path="/healthz").status == 200
    assert Answer(CONFIG, path="/readyz").status == 200
    assert Answer(CONFIG, path="/openapi.json").status == 401
    assert Answer(CONFIG, path="/healthz/../v1/embed").status == 401


def test_a_declared_size_above_the_limit_is_refused_unread():
    answer = Answer(CONFIG, chunks=(b"x" * 101,), content_length="101", **bearer())
    assert (answer.status, answer.read, answer.seen) == (413, 0, None)


@pytest.mark.parametrize("declared", [None, "5"])
def test_a_stream_is_cut_where_it_passes_the_limit_whatever_it_declared(declared):
    answer = Answer(CONFIG, chunks=[b"x" * 60] * 50, content_length=declared, **bearer())
    assert (answer.status, answer.read, answer.seen) == (413, 2, None)


def test_arrays_have_a_limit_of_their_own():
    array = {"content_type": "application/octet-stream; x=y"}
    assert Answer(CONFIG, chunks=(b"x" * 1000,), **array, **bearer()).status == 200
    assert Answer(CONFIG, chunks=(b"x" * 1001,), **array, **bearer()).status == 413


def test_a_body_that_never_ends_is_given_up():
    assert Answer(CONFIG, chunks=(b"x",), stalls=True, **bearer()).status == 408


@pytest.mark.parametrize(
    ("header", "status"),
    [({"content_length": "-1"}, 400), ({"content_length": "1e3"}, 400), ({"content_encoding": "gzip"}, 415)],
)
def test_a_header_that_hides_the_size_is_refused(header, status):
    assert Answer(CONFIG, **header, **bearer()).status == status


def test_a_callers_request_id_is_kept_unless_it_could_break_a_log():
    assert Answer(CONFIG, x_request_id="run-7", **bearer()).headers["x-request-id"] == "run-7"
    assert re.fullmatch("[0-9a-f]{32}", Answer(CONFIG, x_request_id="a\nb", **bearer()).headers["x-request-id"])
    refused = Answer(CONFIG, x_request_id="run-8")
    assert refused.headers["x-request-id"] == "run-8"
    assert refused.problem["instance"].endswith(":run-8")


def test_a_problem_has_the_members_of_rfc_9457():
    problem = Answer(CONFIG).problem
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert (problem["status"], problem["type"]) == (401, "urn:cytolake:problem:not-authorised")
