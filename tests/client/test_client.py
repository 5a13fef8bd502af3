from __future__ import annotations

import io
import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from cytolake.client import Client, ServiceError
from cytolake.client import client as module

PIXELS = np.random.default_rng(0).integers(0, 60_000, (10, 2, 4, 4)).astype(np.uint16)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def vectors_of(pixels_BCHW):
    """What the service of these tests calls an embedding."""
    return np.asarray(pixels_BCHW, np.float32).mean((2, 3))


class Fake:
    """A service in this process: returns the given answers in turn, then correct ones. Records the requests."""

    def __init__(self, *answers, **options):
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []
        self.representation = lambda: "r1"
        self.lock = threading.Lock()
        self.client = Client(
            "http://127.0.0.1:1", "the-key-of-the-tests", transport=httpx.MockTransport(self.answer), **options
        )
        self.client._sleep = self.slept.append

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.requests.append(request)
            if self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer
            headers = {"x-representation-id": self.representation()}
        if request.url.path == "/v1/embed":
            if request.headers["content-type"] == "application/json":
                ids = json.loads(request.content)["crop_ids"]
                return httpx.Response(200, content=npy(vectors_of(PIXELS[[int(i) for i in ids]])), headers=headers)
            with module._NPY_LOCK:  # the server of the test is in the same process
                pixels = np.load(io.BytesIO(request.content), allow_pickle=False)
            return httpx.Response(200, content=npy(vectors_of(pixels)), headers=headers)
        if request.url.path == "/openapi.json":
            paths = {"/v1/predict-performance": {"post": {}}, "/v1/predict/{name}": {"post": {}}, "/v1/qc": {"get": {}}}
            return httpx.Response(200, json={"paths": paths})
        question = json.loads(request.content or b"null")
        return httpx.Response(200, json={"path": request.url.path, "question": question})


def problem(status, headers=None, detail="crops of 15 x 16 px"):
    document = {"type": "t", "title": "Not ready", "status": status, "detail": detail, "instance": "urn:x:abc"}
    headers = {"content-type": "application/problem+json", "x-request-id": "abc"} | (headers or {})
    return httpx.Response(status, content=json.dumps(document), headers=headers)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({}, [10]),
        ({"max_crops": 4}, [4, 4, 2]),
        ({"max_body_bytes": 3 * PIXELS[0].nbytes}, [3, 3, 3, 1]),
        ({"max_body_bytes": 1}, [1] * 10),
        ({"max_crops": 4, "in_flight": 1}, [4, 4, 2]),
    ],
)
def test_a_large_array_is_sent_in_parts_and_its_vectors_come_in_order(limits, sizes):
    fake = Fake(**limits)
    np.testing.assert_array_equal(fake.client.embed(PIXELS, ("DNA", "ER")), vectors_of(PIXELS))
    assert sorted(len(np.load(io.BytesIO(each.content))) for each in fake.requests) == sorted(sizes)
    assert {each.url.params["channels"] for each in fake.requests} == {"DNA,ER"}
    assert {each.headers["authorization"] for each in fake.requests} == {"Bearer the-key-of-the-tests"}


def test_one_crop_is_an_array_of_one():
    assert Fake().client.embed(PIXELS[0], ("DNA", "ER")).shape == (1, 2)


def test_an_array_of_any_layout_and_type_arrives_as_it_is():
    for array in (np.asfortranarray(PIXELS), PIXELS[::-2], PIXELS.astype(">u2"), PIXELS.astype(np.float32)):
        np.testing.assert_array_equal(Fake(max_crops=3).client.embed(array, ("DNA", "ER")), vectors_of(array))


@pytest.mark.parametrize("array", [PIXELS[0, 0], PIXELS[:0], PIXELS.astype(object), PIXELS.astype(complex)])
def test_an_array_that_is_no_crops_is_never_sent(array):
    fake = Fake()
    with pytest.raises(ValueError, match=r"expected \(B, C, S, S\)"):
        fake.client.embed(array, ("DNA", "ER"))
    assert not fake.requests


def test_stored_crops_are_requested_in_parts_too():
    fake = Fake(max_crops=4)
    ids = [str(i) for i in range(9, -1, -1)]
    np.testing.assert_array_equal(fake.client.embed_crops(ids), vectors_of(PIXELS[::-1]))
    assert len(fake.requests) == 3
    with pytest.raises(ValueError, match="no crop ids"):
        fake.client.embed_crops([])


def test_vectors_of_two_models_are_never_mixed():
    fake = Fake(max_crops=4, in_flight=1)
    fake.representation = lambda: "old" if len(fake.requests) < 3 else "new"
    np.testing.assert_array_equal(fake.client.embed(PIXELS, ("DNA", "ER")), vectors_of(PIXELS))
    assert len(fake.requests) == 6, "the whole array again, with the new model"
    fake.representation = lambda: str(len(fake.requests))
    with pytest.raises(ServiceError, match="answered by different models"):
        fake.client.embed(PIXELS, ("DNA", "ER"))


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed in the middle"),
        problem(429),
        httpx.Response(429, text="deployment is overloaded"),
        problem(503),
        httpx.Response(502),
        httpx.Response(504),
        httpx.Response(500, text="Internal Server Error"),
    ],
)
def test_a_transient_failure_is_repeated_with_the_same_id(trouble):
    fake = Fake(trouble, trouble)
    assert fake.client.search(crop_id="c")["path"] == "/v1/search"
    assert len(fake.requests) == 3
    assert len({each.headers["x-request-id"] for each in fake.requests}) == 1
    assert len(fake.slept) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 500])
def test_a_refusal_of_the_service_is_raised_at_once(status):
    fake = Fake(problem(status))
    with pytest.raises(ServiceError) as error:
        fake.client.search(crop_id="c")
    assert len(fake.requests) == 1
    assert (error.value.status, error.value.title, error.value.detail) == (status, "Not ready", "crops of 15 x 16 px")
    assert error.value.request_id == "abc"
    assert str(error.value) == f"{status} Not ready: crops of 15 x 16 px (request abc)"


def test_attempts_are_bounded_and_the_last_failure_is_raised():
    fake = Fake(*[problem(503, detail=str(i)) for i in range(10)], retries=3)
    with pytest.raises(ServiceError) as error:
        fake.client.search(crop_id="c")
    assert (len(fake.requests), error.value.detail) == (4, "3")
    fake = Fake(*[httpx.ConnectError("refused")] * 10, retries=0)
    with pytest.raises(ServiceError, match="ConnectError"):
        fake.client.search(crop_id="c")
    assert (len(fake.requests), fake.slept) == (1, [])


def test_a_timeout_is_not_repeated():
    fake = Fake(httpx.ReadTimeout("timed out"))
    with pytest.raises(ServiceError, match="ReadTimeout") as error:
        fake.client.search(crop_id="c")
    assert error.value.status == 0
    assert len(fake.requests) == 1


def test_waits_grow_are_random_and_have_a_limit(monkeypatch):
    drawn = []
    monkeypatch.setattr(module.random, "uniform", lambda low, high: drawn.append((low, high)) or high)
    fake = Fake(*[problem(503)] * 8, retries=8)
    fake.client.search(crop_id="c")
    assert fake.slept == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert {low for low, _ in drawn} == {0}


@pytest.mark.parametrize(("retry_after", "least"), [("7", 7), ("in 100 s", 30), ("soon", 0), ("-5", 0), ("", 0)])
def test_the_client_waits_as_long_as_retry_after(retry_after, least):
    if retry_after == "in 100 s":  # made here: tests that are shared among processes must have the same names in all
        retry_after = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    fake = Fake(problem(429, {"retry-after": retry_after}))
    fake.client.search(crop_id="c")
    assert least <= fake.slept[0] <= least + 100
    assert least or fake.slept[0] <= 0.25


def test_a_long_retry_after_is_not_waited_for():
    fake = Fake(problem(429, {"retry-after": "3600"}))
    with pytest.raises(ServiceError, match="429"):
        fake.client.search(crop_id="c")
    assert fake.slept == []


def test_an_error_without_a_problem_document_is_shown_as_text():
    broken = httpx.Response(422, content=b"{", headers={"content-type": "application/problem+json"})
    for answer, text in ((broken, "{"), (httpx.Response(404, text="a\n  page"), "a page"), (httpx.Response(418), "no")):
        with pytest.raises(ServiceError) as error:
            Fake(answer).client.search(crop_id="c")
        assert text in error.value.detail
        assert error.value.request_id, "the client's own id, so that the log can be searched"


def test_a_search_sends_what_was_given_and_nothing_else():
    fake = Fake()
    assert fake.client.search(np.array([1, 2], np.float32), k=3, where="gene = 'TP53'")["question"] == {
        "vector": [1.0, 2.0], "k": 3, "where": "gene = 'TP53'",
    }  # fmt: skip
    assert fake.client.search(crop_id="c")["question"] == {"crop_id": "c", "k": 10}


def test_endpoints_that_a_service_may_lack_are_looked_up():
    fake = Fake()
    answer = fake.client.predict_performance(vectors=np.ones((1, 2)), prompts=None)
    assert answer == {"path": "/v1/predict-performance", "question": {"vectors": [[1.0, 1.0]]}}
    with pytest.raises(ServiceError, match="no endpoint POST /v1/qc"):
        fake.client.qc(crop_ids=["c"])
    assert [each.url.path for each in fake.requests].count("/openapi.json") == 1


def test_the_alias_of_the_client_is_sent_with_every_request():
    fake = Fake(alias="candidate")
    fake.client.embed(PIXELS, ("DNA", "ER"))
    fake.client.search(crop_id="c")
    assert {each.url.params["alias"] for each in fake.requests} == {"candidate"}
    assert fake.client.model()["path"] == "/v1/models/candidate"
    assert fake.client.model("next")["path"] == "/v1/models/next"
    assert Fake().client.model()["path"] == "/v1/models/champion"


def test_the_key_is_shown_nowhere():
    client = Fake(problem(401)).client
    with pytest.raises(ServiceError) as error:
        client.search(crop_id="c")
    assert "the-key" not in repr(client) + str(error.value) + repr(error.value.__dict__)


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"max_crops": 0}, {"in_flight": 0}, {"timeout_s": 0}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 1 or more"):
        Client("http://127.0.0.1:1", **wrong)


@contextmanager
def flaky_server(n_broken):
    """A real server on loopback that hangs up in the middle of its first answers."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(body)
            self.send_response(200)
            answer = b'{"hits": [], "k": 1}'
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            is_broken = len(bodies) <= n_broken
            self.wfile.write(answer[:1] if is_broken else answer)
            self.close_connection = is_broken

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_made_again():
    with flaky_server(2) as (url, bodies), Client(url) as client:
        client._sleep = lambda seconds: time.sleep(0.001)
        assert client.search(crop_id="c") == {"hits": [], "k": 1}
        assert len(bodies) == 3


def test_a_missing_service_is_reported():
    with flaky_server(0) as (url, _):
        pass
    with Client(url, retries=1) as client:
        client._sleep = lambda seconds: None
        assert not client.is_ready()
        with pytest.raises(ServiceError, match="Is the service running") as error:
            client.model()
    assert error.value.status == 0


def test_vectors_of_several_answers_are_parsed_one_at_a_time(monkeypatch):
    """Python 3.11 can fail where two threads are in `ast.literal_eval` at once."""
    load, within, most = np.load, [], []

    def watched(*arguments, **options):
        within.append(None)
        most.append(len(within))
        time.sleep(0.002)
        within.pop()
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", watched)
    Fake(max_crops=1).client.embed(PIXELS, ("DNA", "ER"))
    assert max(most) == 1
