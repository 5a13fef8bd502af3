"""Malformed and hostile requests: the service must refuse them with a problem document, and work as before."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.conftest import send_to

from cytolake.serving import build_app

KEY = "the-key-of-the-serving-tests"
ARRAY = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
FUZZ = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
"""As many examples as the profile says."""


def npy(array, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(compression=zipfile.ZIP_DEFLATED, **members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def header(shape, dtype="<u2", order="False", data=b"") -> bytes:
    """An npy file whose header claims what it likes."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


PIXELS = np.random.default_rng(0).integers(0, 60_000, (2, 3, 16, 16)).astype(np.uint16)
GOOD = npy(PIXELS)
GOOD_NPZ = npz(crops=GOOD, channels=npy(np.array(["DNA", "ER", "RNA"])))


def assert_refused_or_answered(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert "Traceback" not in answer.text


@pytest.fixture(scope="module", autouse=True)
def still_right(service, lake):
    """After all these requests, a valid one gets the vectors of the table."""
    yield
    answer = send_to(service, "POST", "/v1/embed", json={"crop_ids": lake.crop_ids[:3]})
    np.testing.assert_allclose(answer.json()["embeddings"], lake.stored[:3], atol=1e-4)


@pytest.fixture
def cases(service):
    """Requests that the OpenAPI document allows, and ones that it forbids."""
    schemathesis = pytest.importorskip("schemathesis", reason="generates requests from the OpenAPI document")
    headers = {"authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(service), headers=headers)
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    operations = [found.ok() for found in schema.get_all_operations()]
    return st.one_of([each.as_strategy(generation_mode=mode) for each in operations for mode in modes])


@pytest.mark.slow
def test_no_request_that_the_schema_suggests_is_a_server_error(cases):
    seen = Counter()

    @FUZZ
    @given(case=cases)
    def ask_one(case):
        answer = case.call(headers={"authorization": f"Bearer {KEY}"})
        seen[case.path, answer.status_code] += 1
        assert answer.status_code < 500, case.as_curl_command()
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == ["application/problem+json"]

    ask_one()
    assert len({path for path, _ in seen}) > 5


@st.composite
def damaged(draw, whole: bytes):
    """A good body, cut, with bytes changed, or with something in the middle."""
    body = bytearray(whole)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=6)):
        body[place] = value
    # most of what can go wrong is in the first bytes, and most of the bytes are pixels
    for place, value in draw(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4)):
        body[place] = value
    if draw(st.booleans()):
        place = draw(st.integers(0, len(body)))
        body[place:place] = draw(st.binary(max_size=20))
    return bytes(body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body)


@pytest.mark.parametrize("whole", [GOOD, GOOD_NPZ], ids=["npy", "npz"])
def test_a_damaged_array_is_never_a_server_error(ask, whole):
    @FUZZ
    @given(body=damaged(whole), channels=st.sampled_from(["DNA,ER,RNA", "", "DNA", "DNA,,", ",", "DNA,DNA,DNA"]))
    def ask_one(body, channels):
        assert_refused_or_answered(ask("POST", "/v1/embed", params={"channels": channels}, content=body, headers=ARRAY))

    ask_one()


def test_no_condition_is_a_server_error(ask, lake):
    words = [
        *("gene", "plate", "y", "=", "<>", "'TP53'", "'", '"', "(", ")", "AND", "OR", "NOT", "IN", "LIKE", "1", "-1"),
        *("1e400", "NULL", "IS", "BETWEEN", ";", "--", "/*", "SELECT", "*", "::", "[", "]", "{", "\x00", "é", "%"),
    ]
    conditions = st.lists(st.sampled_from(words), max_size=12).map(" ".join) | st.text(max_size=40)

    @FUZZ
    @given(condition=conditions)
    def ask_one(condition):
        question = {"crop_id": lake.crop_ids[0], "k": 2, "where": condition}
        assert_refused_or_answered(ask("POST", "/v1/search", content=json.dumps(question).encode(), headers=JSON))

    ask_one()


@pytest.mark.parametrize(
    "content_type",
    ["", "text/html", "application/json; charset=utf-16", "application/x-npy", "multipart/form-data; boundary=x",
     "application/x-www-form-urlencoded", "application/JSON", "a" * 5000, "\x7f", "application/octet-stream, a/b"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/embed", "/v1/search"])
def test_a_wrong_content_type_is_refused_or_understood(ask, path, content_type):
    for body in (GOOD, b'{"crop_ids": ["x"]}', b"", b"--x--"):
        answer = ask("POST", path, content=body, headers={"content-type": content_type})
        assert_refused_or_answered(answer)
        assert answer.status_code != 200


@pytest.mark.parametrize(
    "shape",
    ["(1000000, 3, 16, 16)", "(9999999999999999999, 3, 16, 16)", "(-1, 3, 16, 16)", "(0, 3, 16, 16)", "()", "(True,)",
     "(1.5, 3, 16, 16)", "('a',)", "(" + "1," * 5000 + ")", "[1, 3, 16, 16]", "(" * 100 + ")" * 100, "None",
     "(1, 64, 16, 16)", "(2, 3, 16, 16, 1)", "(" + "2," * 33 + ")"],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused_before_it_costs_memory(ask, shape):
    answer = ask("POST", "/v1/embed?channels=DNA,ER,RNA", content=header(shape, data=b"\x00" * 1536), headers=ARRAY)
    assert_refused_or_answered(answer)
    assert answer.status_code in (413, 422)


def bomb(n_bytes: int) -> bytes:
    """An npz of some kB whose array claims to be, and is, so large."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("crops.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(f"({n_bytes // 1536}, 3, 16, 16)"))
        for _ in range(n_bytes >> 24):
            member.write(b"\x00" * 2**24)
    return stream.getvalue()


def test_zip_bombs_are_refused(ask):
    large = bomb(2**25)  # twice the budget of the tests
    assert len(large) < 2**18
    lying = bytearray(large)
    at = lying.rindex(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 1536)  # the directory says that it unpacks to one crop
    nested = npz(crops=npz(crops=GOOD))
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for i in range(3000):
            archive.writestr(f"m{i}.npy", b"")
    for body in (large, bytes(lying), nested, many.getvalue()):
        answer = ask("POST", "/v1/embed?channels=DNA,ER,RNA", content=body, headers=ARRAY)
        assert_refused_or_answered(answer)
        assert answer.status_code in (413, 422)


@pytest.mark.parametrize(
    "condition",
    ["' OR '1'='1", "1=1; DROP TABLE crops; --", "gene = '' UNION SELECT * FROM wells", "gene = 'x' OR sleep(10)",
     "gene = (SELECT max(gene) FROM wells)", "read_csv('/etc/passwd') IS NOT NULL", "getenv('HOME') <> ''",
     "gene = 'x'); ATTACH 'x.db'; --", "COPY crops TO 'x'", "gene = $1", "gene = ?", "regexp_matches(gene, '(a+)+$')",
     "gene LIKE '" + "%a" * 2000 + "'", "NOT " * 5000 + "true", "(" * 5000 + "true" + ")" * 5000, "y = " + "9" * 5000],
)  # fmt: skip
def test_sql_that_is_no_condition_is_refused(ask, lake, condition):
    answer = ask("POST", "/v1/search", json={"crop_id": lake.crop_ids[0], "where": condition})
    assert_refused_or_answered(answer)
    if answer.status_code == 422:
        assert answer.json()["detail"].startswith("where: ")
    else:
        assert len(answer.json()["hits"]) < len(lake.crop_ids)


@pytest.mark.parametrize(
    "name", ["' OR '1'='1", "'; DROP TABLE crops; --", "../../etc/passwd", "\x00", "é" * 100, "%00", "\ud800"]
)
def test_names_are_never_sql_and_never_paths(ask, lake, name):
    for path, question in (
        ("/v1/embed", {"crop_ids": [name]}),
        ("/v1/search", {"crop_id": name}),
        ("/v1/embed?channels=DNA,ER," + "x", {"crop_ids": [lake.crop_ids[0], name]}),
    ):
        answer = ask("POST", path, content=json.dumps(question).encode(), headers=JSON)
        assert_refused_or_answered(answer)
        assert answer.status_code in (404, 422)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"0", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"crop_ids":' * 10_000,
     b'{"vector": [NaN]}', b'{"vector": [1e999]}', b'{"vector": [' + b"1," * 9000 + b"1]}", b'{"k": 1e30}',
     b'{"crop_id": "x", "crop_id": "y"}', b'{"crop_ids": [["x"]]}', b'{"crop_ids": [1]}', b'{"crop_id": {"a": 1}}',
     b'{"vector": [1], "where": 7}', b'{"crop_id": "\\ud800"}', b'{"vector": ' + b"9" * 10_000 + b"}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/embed", "/v1/search"])
def test_json_that_is_no_question_is_refused(ask, path, body):
    answer = ask("POST", path, content=body, headers=JSON)
    assert_refused_or_answered(answer)
    assert answer.status_code in (400, 404, 422)
