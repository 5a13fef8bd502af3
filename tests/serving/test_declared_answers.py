"""`check_declared` of conftest compares every answer of the serving tests with the OpenAPI document."""

from __future__ import annotations

import dataclasses
import json

import httpx
import pytest
from tests.serving.conftest import KEY, check_declared

from cytolake.serving.api import openapi_text

PATHS = json.loads(openapi_text())["paths"]


def statuses(method, path):
    return set(PATHS[path][method]["responses"])


def test_health_needs_no_key_and_declares_none(ask):
    assert ask("GET", "/healthz", key=None).status_code == 200
    assert statuses("get", "/healthz") == {"200"}
    assert statuses("get", "/readyz") == {"200", "503"}


def test_an_unknown_crop_is_a_declared_404(ask):
    for method, path in (("GET", "/v1/crops/nobody.png"), ("GET", "/v1/crops/nobody")):
        assert ask(method, path).status_code == 404
    assert ask("POST", "/v1/embed", json={"crop_ids": ["nobody"]}).status_code == 404


def test_a_picture_is_declared_as_one(ask, lake):
    answer = ask("GET", f"/v1/crops/{lake.crop_ids[0]}.png")
    assert answer.headers["content-type"] == "image/png"
    assert set(PATHS["/v1/crops/{crop_id}.png"]["get"]["responses"]["200"]["content"]) == {"image/png"}


def test_a_predictor_that_was_not_fitted_is_a_declared_409(ask, lake):
    answer = ask("POST", "/v1/predict-performance", json={"crop_ids": lake.crop_ids[:1]})
    assert answer.status_code == 409
    assert "409" not in statuses("post", "/v1/embed")


def test_too_many_requests_are_a_declared_429(lake, send):
    guard = dataclasses.replace(lake.config.guard, requests_per_s=0.001, burst=1)
    service = lake.loaded_service(guard=guard)
    found = [send(service, "GET", "/v1/models/champion", key=KEY).status_code for _ in range(2)]
    assert found == [200, 429]


def test_every_path_with_a_key_declares_what_the_guard_answers():
    for path, methods in PATHS.items():
        for method in methods:
            guarded = {"401", "403", "429"} <= statuses(method, path)
            assert guarded == (path not in ("/healthz", "/readyz")), path


def test_no_endpoint_declares_a_body_that_is_never_sent():
    assert "HTTPValidationError" not in openapi_text()


@pytest.mark.parametrize(("status", "kind"), [(418, "application/problem+json"), (200, "application/json")])
def test_an_answer_that_is_not_declared_is_noticed(status, kind):
    request = httpx.Request("GET", "http://h/v1/crops/c.png")
    with pytest.raises(AssertionError, match=r"crops/c\.png"):
        check_declared(httpx.Response(status, headers={"content-type": kind}, request=request))
