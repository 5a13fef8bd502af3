from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import re
from datetime import date

import pytest

from cytolake.serving import guard, keys
from cytolake.serving.guard import Guard, GuardConfig, RateLimit, guard_from_environment, key_digest, needed_scope
from cytolake.serving.keys import ApiKey, new_key

KEY = "a-key-that-nobody-guesses"
CONFIG = GuardConfig(
    key_digests=(key_digest(KEY),), max_array_body_bytes=1000, max_json_body_bytes=100, body_timeout_s=0.2
)


class Answer:
    """Runs one request through the guard of a config, or one that is there already, in front of an app that echoes."""

    def __init__(
        self, config, path="/v1/embed", chunks=(b"",), client="127.0.0.1", stalls=False, method="POST", **headers
    ):
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
            "method": method,
            "client": (client, 5000),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value is not None],
        }
        if isinstance(config, Guard):
            config._app = echo
        asyncio.run((config if isinstance(config, Guard) else Guard(echo, config))(scope, receive, send))
        self.reason = scope["state"].get("refused")
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


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CYTOLAKE_API_KEYS": "short"}, "5 characters, expected at least 16"),
        ({"CYTOLAKE_API_KEYS": "sha256:beef"}, "64 hex digits"),
        ({"CYTOLAKE_API_KEYS_FILE": "/nowhere/keys"}, "cannot read /nowhere/keys"),
        ({"CYTOLAKE_API_KEYS": KEY, "CYTOLAKE_NO_AUTH": "1"}, "both keys and CYTOLAKE_NO_AUTH"),
        ({"CYTOLAKE_RATE_PER_S": "fast"}, "CYTOLAKE_RATE_PER_S is 'fast'"),
        ({"CYTOLAKE_RATE_PER_S": "-1"}, "numbers of 0 or more"),
        ({"CYTOLAKE_RATE_PER_S": "nan"}, "numbers of 0 or more"),
        ({"CYTOLAKE_RATE_PER_S": "1", "CYTOLAKE_BURST": "1.5"}, "expected a whole number"),
    ],
)
def test_an_unsafe_environment_stops_the_start_without_showing_a_key(environment, reason):
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        guard_from_environment(environment)
    assert "short" not in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("value", ["", "0", "true", "yes"])
def test_a_service_without_keys_refuses_everything_by_default(value):
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


def test_files_of_the_page_can_be_read_without_a_key_and_no_others():
    assert Answer(CONFIG, path="/explore/", method="GET").status == 200
    assert Answer(CONFIG, path="/explore/app.js", method="GET").status == 200
    assert Answer(CONFIG, path="/explore/", method="POST").status == 401
    assert Answer(CONFIG, path="/explore/../v1/embed", method="GET").status == 401
    assert Answer(CONFIG, path="/explorer", method="GET").status == 401
    assert Answer(CONFIG, path="/v1/explore/columns", method="GET").status == 401


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


def test_a_large_body_of_a_caller_without_a_key_is_never_received():
    """The server hands over what `receive` is called for: not called once, not a byte is taken in."""
    for headers in ({}, bearer("a-key-that-somebody-guessed")):
        answer = Answer(
            CONFIG,
            chunks=[b"x" * 2**20] * 64,
            content_length=str(2**26),
            content_type="application/octet-stream",
            **headers,
        )
        assert (answer.status, answer.read) == (401, 0)
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/explore/index.html"])
def test_what_is_answered_without_a_key_takes_no_body(path):
    answer = Answer(CONFIG, path=path, method="GET", chunks=[b"x" * 1000] * 10, content_type="application/octet-stream")
    assert (answer.status, answer.read, answer.seen) == (200, 0, b"")


def with_keys(*accepted, **limits):
    return GuardConfig(keys=accepted, **limits)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/embed", "embed"),
        ("/v1/search", "search"),
        ("/v1/models/champion", "models"),
        ("/v1/predict-performance", "predict"),
        ("/v1/crops/abc.png", "explore"),
        ("/v1/qc/P1/B02", "qc"),
        ("/explore/umap.js", "explore"),
        ("/metrics", "metrics"),
        ("/openapi.json", ""),
        ("/v1/embedding", None),
        ("/v2/embed", None),
        ("/V1/EMBED", None),
        ("//v1/embed", None),
        ("/", None),
        ("", None),
    ],
)
def test_a_path_needs_the_scope_of_its_first_word(path, scope):
    assert needed_scope(path) == scope


def test_a_key_opens_what_its_scopes_name_and_nothing_else():
    plain, key = new_key("lab", ["embed", "models"])
    config = with_keys(key)
    for path, status in (
        ("/v1/embed", 200),
        ("/v1/models/champion", 200),
        ("/openapi.json", 200),
        ("/healthz", 200),
        ("/v1/search", 403),
        ("/metrics", 403),
        ("/v1/nothing-yet", 403),
    ):
        answer = Answer(config, path=path, chunks=(b"x",), **bearer(plain))
        assert answer.status == status, path
        assert answer.read == (status == 200 and path != "/healthz")
    refused = Answer(config, path="/v1/search", **bearer(plain))
    assert refused.problem["title"] == "Not allowed"
    assert "'search'" in refused.problem["detail"]
    assert "the key lab has embed, models" in refused.problem["detail"]
    assert refused.reason == "scope"


def test_a_key_without_scopes_opens_everything():
    plain, key = new_key("lab")
    for path in ("/v1/embed", "/metrics", "/v1/nothing-yet", "/"):
        assert Answer(with_keys(key), path=path, **bearer(plain)).status == 200


def test_an_expired_key_is_refused_by_its_name_and_a_later_day_is_not():
    plain, key = new_key("lab", expires=date(2020, 1, 1))
    answer = Answer(with_keys(key), **bearer(plain))
    assert (answer.status, answer.reason) == (401, "key_expired")
    assert "lab expired on 2020-01-01" in answer.problem["detail"]
    plain, key = new_key("lab", expires=date(9000, 1, 1))
    assert Answer(with_keys(key), **bearer(plain)).status == 200


def test_a_key_is_exchanged_without_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "CHECK_EVERY_S", 0)
    (old, old_key), (new, now_key) = new_key("lab"), new_key("lab")
    file = tmp_path / "keys"
    file.write_text(old_key.line())
    running = Guard(None, guard_from_environment({"CYTOLAKE_API_KEYS_FILE": str(file), "CYTOLAKE_API_KEYS": KEY}))

    def statuses():
        return [Answer(running, **bearer(plain)).status for plain in (old, new, KEY)]

    assert statuses() == [200, 401, 200]
    (tmp_path / "next").write_text(now_key.line())
    (tmp_path / "next").replace(file)
    assert statuses() == [401, 200, 200]
    file.write_text("lab sha256:oops")
    assert statuses() == [401, 200, 200]


def test_a_replica_without_the_key_file_takes_the_keys_of_the_start(tmp_path):
    plain, key = new_key("lab")
    (tmp_path / "keys").write_text(key.line())
    config = guard_from_environment({"CYTOLAKE_API_KEYS_FILE": str(tmp_path / "keys")})
    (tmp_path / "keys").unlink()
    config = pickle.loads(pickle.dumps(config))  # as Ray hands it to a replica
    assert Answer(config, **bearer(plain)).status == 200
    assert plain not in repr(config)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_rate_lets_in_a_burst_and_then_what_comes_back():
    clock = Clock()
    rates = RateLimit(per_s=2.0, burst=3, clock=clock)
    assert [rates.take("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert rates.take("b") == 0, "another caller has a bucket of its own"
    clock.now = 0.5
    assert [rates.take("a") for _ in range(2)] == [0, 0.5]
    clock.now = 1000.0
    assert [rates.take("a") == 0 for _ in range(4)] == [True, True, True, False], "a pause fills a bucket, and no more"


@pytest.mark.parametrize("per_s", [0.1, 1 / 3, 0.7, 3.0, 7.0])
def test_a_caller_that_waits_is_admitted_and_no_more_than_the_rate_get_in(per_s):
    clock = Clock()
    rates = RateLimit(per_s=per_s, clock=clock)
    let_in = 0
    for _ in range(500):
        wait_s = rates.take("a")
        if wait_s:
            clock.now += wait_s
            assert rates.take("a") == 0
        let_in += 1
    assert let_in <= 1e-6 + max(1, -(-per_s // 1)) + clock.now * per_s


def test_callers_that_come_once_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(guard, "MAX_CALLERS", 10)
    clock = Clock()
    rates = RateLimit(per_s=0.001, burst=2, clock=clock)
    rates.take("busy"), rates.take("busy")
    for i in range(1000):
        clock.now += 0.001
        rates.take(f"caller{i}")
        assert len(rates._buckets) <= 10
        if i < 4:
            assert rates.take("busy") > 0, "a caller above its rate is not forgotten by a few others"


def test_a_caller_above_its_rate_gets_a_retry_after_before_its_body_is_read():
    (plain, key), (other, other_key) = new_key("lab"), new_key("clinic")
    successor, successor_key = new_key("lab")
    running = Guard(None, with_keys(key, other_key, successor_key, requests_per_s=0.01, burst=2))
    answers = [Answer(running, chunks=(b"x",), **bearer(plain)) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    refused = answers[2]
    assert (refused.read, refused.reason) == (0, "rate")
    assert re.fullmatch("[0-9]+", refused.headers["retry-after"])
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert refused.problem["title"] == "Too many requests"
    assert Answer(running, **bearer(other)).status == 200
    assert Answer(running, **bearer(successor)).status == 429, "two keys of one name share a rate"
    assert Answer(running, path="/healthz").status == 200, "probes have no rate"


def test_guessing_keys_takes_nothing_from_their_holders():
    plain, key = new_key("lab")
    running = Guard(None, with_keys(key, requests_per_s=0.01, burst=1))
    assert [Answer(running, **bearer("x" * 43)).status for _ in range(5)] == [401] * 5
    assert Answer(running, **bearer(plain)).status == 200


def test_without_keys_an_address_has_a_rate():
    running = Guard(
        None, guard_from_environment({"CYTOLAKE_NO_AUTH": "1", "CYTOLAKE_RATE_PER_S": "0.01", "CYTOLAKE_BURST": "1"})
    )
    assert [Answer(running, client=client).status for client in ("127.0.0.1", "127.0.0.1", "::1")] == [200, 429, 200]


def test_metrics_need_a_key_unless_they_are_opened():
    plain, key = new_key("prometheus", ["metrics"])
    assert Answer(with_keys(key), path="/metrics").status == 401
    assert Answer(with_keys(key), path="/metrics", **bearer(plain)).status == 200
    assert Answer(with_keys(key), path="/v1/embed", **bearer(plain)).status == 403
    config = guard_from_environment({"CYTOLAKE_API_KEYS": KEY, "CYTOLAKE_OPEN_METRICS": "1"})
    assert Answer(config, path="/metrics").status == 200
    assert Answer(config, path="/metrics/").status == 401


def test_keys_and_no_auth_exclude_each_other_however_the_keys_come():
    key = ApiKey(name="lab", digest=key_digest(KEY))
    for given in ({"keys": (key,)}, {"keys_file": "/somewhere"}, {"key_digests": (key.digest,)}):
        with pytest.raises(ValueError, match="both keys and CYTOLAKE_NO_AUTH"):
            GuardConfig(no_auth=True, **given)
