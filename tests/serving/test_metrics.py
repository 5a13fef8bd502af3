from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client.parser import text_string_to_metric_families

from cytolake.serving import Service
from cytolake.serving.guard import Guard, GuardConfig
from cytolake.serving.keys import new_key
from cytolake.serving.metrics import METRICS_MEDIA_TYPE, Metrics, ModelInfo

MODEL = ModelInfo(name="cytolake-encoder", alias="champion", version=3, representation_id="r", n_crops=27)


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """Every series as Prometheus itself would read it: its name and the values of its labels, without the replica."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("replica"), sample
            found[(sample.name, *(f"{name}={value}" for name, value in sorted(labels.items())))] = sample.value
    return found


class Served:
    """A small application behind a guard, counted as the service is."""

    def __init__(self, **limits):
        self.metrics = Metrics()
        self.key, key = new_key("lab")
        api = FastAPI()

        @api.post("/v1/things/{name}")
        async def things(name: str, request: Request) -> Response:
            if name == "broken":
                raise RuntimeError("broken")
            return Response(await request.body(), status_code=422 if name == "odd" else 200)

        self.app = self.metrics.counted(Guard(api, GuardConfig(keys=(key,), **limits)))

    def ask(self, method, path, key=True, **request):
        headers = {"authorization": f"Bearer {self.key}"} if key else {}

        async def exchange():
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers=headers, **request)

        return asyncio.run(exchange())

    def values(self):
        return values(self.metrics.text([]))


def test_requests_are_counted_by_the_template_of_their_path():
    served = Served()
    for name in ("a", "b", "odd"):
        served.ask("POST", f"/v1/things/{name}", content=b"12345")
    found = served.values()
    things = ("cytolake_requests_total", "method=POST", "path=/v1/things/{name}")
    assert found[(*things, "status=200")] == 2
    assert found[(*things, "status=422")] == 1
    assert found["cytolake_request_seconds_count", "path=/v1/things/{name}"] == 3
    assert found["cytolake_body_bytes_total",] == 15
    assert found["cytolake_requests_in_progress",] == 0


def test_a_caller_cannot_make_series_by_new_paths_and_methods():
    served = Served()
    served.ask("GET", "/nowhere", key=False)
    served.ask("GET", "/v1/things/nobody-allowed", key=False)
    before = set(served.values())
    for i in range(20):
        for key in (True, False):
            served.ask("GET", f"/path{i}", key=key)
            served.ask(f"METHOD{i}", f"/path{i}", key=key)
    found = served.values()
    new = {series for series in set(found) - before if "_bucket" not in series[0]}
    assert len(new) <= 6
    assert found["cytolake_requests_total", "method=other", "path=unrouted", "status=401"] == 20


def test_what_the_guard_refuses_is_counted_by_its_reason():
    served = Served(requests_per_s=0.001, burst=3, max_json_body_bytes=10)
    served.ask("POST", "/v1/things/a", key=False, content=b"1" * 100)
    for content in (b"", b"1" * 100, b"", b""):
        served.ask("POST", "/v1/things/a", content=content)
    found = served.values()
    assert found["cytolake_refused_total", "reason=key_missing"] == 1
    assert found["cytolake_refused_total", "reason=too_large"] == 1
    assert found["cytolake_refused_total", "reason=rate"] == 1
    assert found["cytolake_body_bytes_total",] == 0, "none of the bodies that were refused was read"


def test_an_application_that_breaks_and_a_caller_that_goes_are_counted_too():
    served = Served()
    assert served.ask("POST", "/v1/things/broken").status_code == 500
    found = served.values()
    assert found["cytolake_requests_total", "method=POST", "path=/v1/things/{name}", "status=500"] == 1

    async def never(scope, receive, send):
        raise asyncio.CancelledError

    scope = {"type": "http", "method": "GET", "path": "/"}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(served.metrics.counted(never)(scope, None, None))
    found = served.values()
    assert found["cytolake_requests_total", "method=GET", "path=unrouted", "status=none"] == 1
    assert found["cytolake_requests_in_progress",] == 0


def test_forward_passes_and_waits_are_counted():
    metrics = Metrics()
    metrics.count_pass(3, 0.02)
    metrics.count_pass(64, 0.4)
    metrics.count_wait(0.003)
    found = values(metrics.text([MODEL]))
    assert found["cytolake_crops_embedded_total",] == 67
    assert found["cytolake_minibatch_crops_bucket", "le=4.0"] == 1
    assert found["cytolake_minibatch_crops_bucket", "le=64.0"] == 2
    assert found["cytolake_forward_seconds_sum",] == pytest.approx(0.42)
    assert found["cytolake_queue_wait_seconds_bucket", "le=0.0025"] == 0
    assert found["cytolake_queue_wait_seconds_bucket", "le=0.005"] == 1


def test_only_the_model_that_is_served_now_is_named():
    metrics = Metrics()
    metrics.text([MODEL])
    info = ("cytolake_model_info", "alias=champion", "name=cytolake-encoder", "representation_id=r2", "version=4")
    newer = ModelInfo(name="cytolake-encoder", alias="champion", version=4, representation_id="r2", n_crops=30)
    found = values(metrics.text([newer]))
    assert [series for series in found if series[0] == "cytolake_model_info"] == [info]
    assert (found[info], found["cytolake_ready",], found["cytolake_index_crops", "alias=champion"]) == (1, 1, 30)
    found = values(metrics.text([]))
    assert found["cytolake_ready",] == 0
    assert not [series for series in found if series[0] in ("cytolake_model_info", "cytolake_index_crops")]


def test_a_service_of_two_aliases_names_both_models():
    other = ModelInfo(name="cytolake-encoder", alias="next", version=4, representation_id="r2", n_crops=5)
    found = values(Metrics().text([MODEL, other]))
    assert len([series for series in found if series[0] == "cytolake_model_info"]) == 2
    assert (found["cytolake_index_crops", "alias=champion"], found["cytolake_index_crops", "alias=next"]) == (27, 5)


def test_memory_is_reported_and_the_text_is_prometheus():
    assert values(Metrics().text([]))["process_resident_memory_bytes",] > 10e6
    assert METRICS_MEDIA_TYPE.startswith("text/plain")


def test_two_services_of_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.count_pass(5, 0.1)
    assert values(second.text([]))["cytolake_crops_embedded_total",] == 0


def test_the_service_counts_its_requests_passes_and_model(lake, send):
    service = Service(lake.config)
    assert values(send(service, "GET", "/metrics").content)["cytolake_ready",] == 0
    service.load()
    send(service, "POST", "/v1/embed", json={"crop_ids": lake.crop_ids[:7]})
    send(service, "POST", "/v1/embed", key=None, json={"crop_ids": lake.crop_ids[:7]})
    answer = send(service, "GET", "/metrics")
    assert answer.headers["content-type"] == METRICS_MEDIA_TYPE
    found = values(answer.content)
    assert found["cytolake_requests_total", "method=POST", "path=/v1/embed", "status=200"] == 1
    assert found["cytolake_refused_total", "reason=key_missing"] == 1
    assert found["cytolake_crops_embedded_total",] == 7
    n_passes = found["cytolake_minibatch_crops_count",]
    assert n_passes > 1, "a minibatch of the tests holds few tokens"
    assert found["cytolake_queue_wait_seconds_count",] == n_passes
    assert found["cytolake_index_crops", "alias=champion"] == len(lake.crop_ids)
    card = service.follower().current().model.card
    named = {f"name={card.name}", f"version={card.version}", f"representation_id={card.representation_id}"}
    (info,) = (series for series in found if series[0] == "cytolake_model_info")
    assert named <= set(info)
    assert send(service, "GET", "/metrics", key=None).status_code == 401
