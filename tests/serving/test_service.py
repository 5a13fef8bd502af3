from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytolake.models import build_encoder, load_encoder, save_encoder
from cytolake.performance_prediction.queries import queries_of_profiles
from cytolake.performance_prediction.query_predictor import QueryPredictorConfig, fit_query_predictor
from cytolake.performance_prediction.registered import query_model, register_query_predictor
from cytolake.serving import Service, ServingConfig, config_from_environment
from cytolake.serving.served_model import load_served_model
from cytolake.serving.service import EmbedTask, _run_together, _split
from cytolake.tracking import TrackingConfig, find_folder, promote, resolve_alias, start_run


@pytest.mark.parametrize(
    ("alias", "folder", "texts"),
    [
        ("challenger", "", ("'challenger'", "champion -> version 1", "`cytolake promote`")),
        ("champion", "missing", ("missing", "no catalog there", "cytolake ingest")),
    ],
)
def test_without_a_model_the_service_starts_and_reports_what_to_do(lake, send, alias, folder, texts):
    service = Service(dataclasses.replace(lake.config, alias=alias, root=str(lake.root / folder)))
    service.load()
    assert send(service, "GET", "/healthz").status_code == 200
    for method, path, request in (
        ("GET", "/readyz", {}),
        ("GET", f"/v1/models/{alias}", {}),
        ("POST", "/v1/embed", {"json": {"crop_ids": ["x"]}}),
        ("POST", "/v1/search", {"json": {"crop_id": "x"}}),
    ):
        answer = send(service, method, path, **request)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        for text in texts:
            assert text in answer.json()["detail"]


def test_a_model_promoted_later_is_loaded_without_a_restart(own_lake, send):
    service = Service(dataclasses.replace(own_lake.config, alias="next"))
    service.load()
    assert send(service, "GET", "/readyz").status_code == 503
    promote(TrackingConfig().at(own_lake.root), own_lake.card, own_lake.source_checkpoint, alias="next")
    service.load()
    assert send(service, "GET", "/readyz").status_code == 200


def test_a_damaged_encoder_is_reported_and_not_served(own_lake):
    card = dataclasses.replace(own_lake.card, representation_id="damaged")
    version = promote(TrackingConfig().at(own_lake.root), card, own_lake.source_checkpoint)
    content = bytearray(version.encoder_path.read_bytes())
    content[-5] ^= 0xFF
    version.encoder_path.write_bytes(content)
    service = Service(own_lake.config)
    service.load()
    assert "weights have changed" in service.why_not_ready()


def test_rows_written_later_are_found_and_a_failed_check_changes_nothing(own_lake, caplog):
    service = own_lake.loaded_service()
    before = service.follower().current()
    n_before = before.index.crops.num_rows
    service.load()
    assert service.follower().current().index is before.index, "nothing new: nothing is read again"
    table = own_lake.catalog.table("embeddings", where=f"crop_id = '{own_lake.crop_ids[0]}'")
    own_lake.catalog.append("embeddings", table, transaction="again")
    service.load()
    assert service.follower().current().index.crops.num_rows == n_before + 1
    assert before.index.crops.num_rows == n_before, "an index never changes"
    loaded = service.follower().current()
    (own_lake.root / "mlflow.db").rename(own_lake.root / "gone.db")
    service.load()
    assert service.follower().current() is loaded
    assert service.why_not_ready() == ""
    assert "mlflow.db does not exist" in caplog.text


def test_a_request_starts_a_check_only_when_one_is_due(lake):
    async def checks(refresh_s: float) -> int:
        follower = Service(dataclasses.replace(lake.config, refresh_s=refresh_s)).follower()
        follower._checked_at = time.monotonic()
        n_checks = 0

        def count() -> None:
            nonlocal n_checks
            n_checks += 1

        follower.load = count
        for _ in range(3):
            follower.keep_current()
            await asyncio.sleep(0.05)
        return n_checks

    assert asyncio.run(checks(3600)) == 0
    assert asyncio.run(checks(0)) == 3


def test_requests_in_one_pass_get_the_vectors_they_would_get_alone(service, lake):
    model = service.follower().current().model
    images, channels = lake.catalog.crop_pixels(lake.crop_ids), lake.catalog.channels_of(lake.crop_ids)
    indices = [model.channel_indices(names) for names in channels]
    twin = dataclasses.replace(model)
    parts = [
        EmbedTask(
            model=model if i % 2 else twin, images=images[i : i + 4], indices=indices[i : i + 4], waiting_since=0.0
        )
        for i in range(0, len(images), 4)
    ]
    together = np.concatenate(_run_together(parts))
    np.testing.assert_allclose(together, lake.stored, atol=1e-4)


def test_only_the_blocks_that_are_served_are_kept(service, lake):
    assert service.follower().current().model.encoder.n_blocks == lake.card.block + 1


def test_a_card_of_another_encoder_is_refused(service):
    card = service.follower().current().model.card
    for wrong, text in (({"block": 3}, "blocks 0 to 2"), ({"dim": 25}, "24"), ({"alignment": "tvn"}, "tvn")):
        with pytest.raises(ValueError, match=rf"{text}[^P]*Promote"):
            load_served_model(dataclasses.replace(card, **wrong), "cpu")


def test_a_fixed_stain_encoder_refuses_other_stains_and_takes_any_order(own_lake, send, tmp_path):
    config = dataclasses.replace(
        load_encoder(own_lake.source_checkpoint).config, architecture="mae_vit", channels=("ER", "DNA", "RNA")
    )
    encoder = build_encoder(config, seed=1)
    save_encoder(encoder, tmp_path / "mae.safetensors")
    card = dataclasses.replace(own_lake.card, representation_id="mae", architecture="mae_vit", channels=config.channels)
    promote(TrackingConfig().at(own_lake.root), card, tmp_path / "mae.safetensors")
    service = Service(own_lake.config)
    service.load()
    names = dict(zip(own_lake.crop_ids, own_lake.catalog.channels_of(own_lake.crop_ids), strict=True))
    fits = [crop_id for crop_id in names if len(names[crop_id]) == 3]
    other = next(crop_id for crop_id in names if len(names[crop_id]) == 2)
    assert send(service, "POST", "/v1/embed", json={"crop_ids": fits}).status_code == 200
    refused = send(service, "POST", "/v1/embed", json={"crop_ids": [fits[0], other]})
    assert refused.status_code == 422
    assert other in refused.json()["detail"]
    assert "DNA, Mito" in refused.json()["detail"]


def test_a_damaged_source_image_is_an_error_of_the_service(lake, ask):
    path = Path(lake.catalog.table("sites")["image_paths"].to_pylist()[0][0])
    content = path.read_bytes()
    site_id = lake.catalog.table("sites")["site_id"].to_pylist()[0]
    crop = lake.catalog.table("crops", where=f"site_id = '{site_id}'")["crop_id"][0].as_py()
    try:
        path.write_bytes(content[: len(content) // 2])
        answer = ask("POST", "/v1/embed", json={"crop_ids": [crop]})
    finally:
        path.write_bytes(content)
    assert answer.status_code == 503
    assert "cannot be read" in answer.json()["detail"]


def test_a_version_that_fails_the_smoke_test_is_reported_and_the_previous_one_stays(own_lake, send, tmp_path):
    service = Service(own_lake.config)
    service.load()
    before = service.follower().current()
    config = load_encoder(own_lake.source_checkpoint).config
    save_encoder(build_encoder(config, seed=5), tmp_path / "another.safetensors")
    tracking = TrackingConfig().at(own_lake.root)
    # The same stored vectors, another encoder: what a wrong file in the registry looks like.
    stored = own_lake.catalog.table("embeddings")
    for name in ("wrong", "right"):
        named = pa.array([name] * stored.num_rows, stored.schema.field("representation_id").type)
        at = stored.schema.get_field_index("representation_id")
        own_lake.catalog.append("embeddings", stored.set_column(at, "representation_id", named), transaction=name)
    wrong = dataclasses.replace(own_lake.card, representation_id="wrong")
    promote(tracking, wrong, tmp_path / "another.safetensors")
    reads = []
    service.load()
    assert service.follower().current() is before
    assert "cosine" in service.follower().why_not_current()
    card = send(service, "GET", "/v1/models/champion").json()
    assert card["version"] == before.model.card.version
    assert "version 2 is not served" in card["newest_is_not_served"]
    with loading_calls(reads):
        service.load()
    assert reads == [], "the same version is not tried again"
    again = stored.slice(0, 1).set_column(at, "representation_id", named.slice(0, 1))
    own_lake.catalog.append("embeddings", again, transaction="embedded again")
    with loading_calls(reads):
        service.load()
    assert len(reads) == 1, "other embeddings may make it right"
    promote(tracking, dataclasses.replace(wrong, representation_id="right"), own_lake.source_checkpoint)
    service.load()
    assert service.follower().why_not_current() == ""
    assert service.follower().current().model.card.representation_id == "right"


def test_an_alias_that_moves_while_its_model_loads_is_followed_at_the_next_check(own_lake, monkeypatch):
    """The version that was resolved is the one that is loaded, named and refused; never a mixture of two."""
    tracking = TrackingConfig().at(own_lake.root)
    seen = []

    def resolve_then_move(*arguments):
        card = resolve_alias(*arguments)
        if not seen:
            promote(tracking, dataclasses.replace(own_lake.card, representation_id="next"), own_lake.source_checkpoint)
        seen.append(card.version)
        return card

    monkeypatch.setattr("cytolake.serving.follower.resolve_alias", resolve_then_move)
    service = Service(own_lake.config)
    service.load()
    loaded = service.follower().current().model.card
    assert (loaded.version, loaded.representation_id) == (seen[0], own_lake.card.representation_id)
    service.load()
    assert seen[1] != seen[0]


@contextmanager
def loading_calls(calls):
    """Records each load of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cytolake.serving.follower.load_served_model", lambda *args: calls.append(args))
        yield


def test_a_model_is_served_where_the_smoke_test_can_read_no_crops(lake, monkeypatch, caplog):
    def unreadable(*_):
        raise OSError("the share is away")

    monkeypatch.setattr("cytolake.catalog.Catalog.crop_pixels", unreadable)
    lake.loaded_service()
    assert "the share is away" in caplog.text


def test_another_alias_is_loaded_at_its_first_request(own_lake, send):
    service = Service(dataclasses.replace(own_lake.config, other_aliases=("challenger",)))
    service.load()
    assert not service.follower("challenger").is_in_use
    question = {"json": {"crop_ids": own_lake.crop_ids[:2]}}
    assert send(service, "POST", "/v1/embed?alias=challenger", **question).status_code == 503
    tracking = TrackingConfig().at(own_lake.root)
    promote(tracking, own_lake.card, own_lake.source_checkpoint, alias="challenger")
    service.load()
    answer = send(service, "POST", "/v1/embed?alias=challenger", **question)
    assert answer.status_code == 200
    assert answer.headers["x-model-alias"] == "challenger"
    assert send(service, "POST", "/v1/embed", **question).headers["x-model-alias"] == "champion"
    unknown = send(service, "POST", "/v1/search?alias=nobody", json={"crop_id": own_lake.crop_ids[0]})
    assert unknown.status_code == 404
    assert "it follows champion, challenger" in unknown.json()["detail"]


def test_minibatches_hold_at_most_their_tokens_and_every_crop_once():
    assert _split([5, 5, 5], 10) == [(0, 2), (2, 3)]
    assert _split([50, 5, 5], 10) == [(0, 1), (1, 3)]
    assert _split([3], 10) == [(0, 1)]
    tokens = np.random.default_rng(0).integers(1, 12, 200).tolist()
    shares = _split(tokens, 20)
    assert [first for first, _ in shares[1:]] == [end for _, end in shares[:-1]]
    assert (shares[0][0], shares[-1][1]) == (0, 200)
    assert all(sum(tokens[first:end]) <= 20 for first, end in shares)


def test_the_environment_names_root_alias_and_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_from_environment({})
    assert (config.root, config.alias) == (str(tmp_path / "cytolake_data"), "champion")
    config = config_from_environment(
        {"CYTOLAKE_ROOT": "lake", "CYTOLAKE_ALIAS": "next", "CYTOLAKE_TRACKING_URI": "http://mlflow:5000"}
    )
    assert config == ServingConfig(
        root=str(tmp_path / "lake"), alias="next", tracking=TrackingConfig(uri="http://mlflow:5000")
    )
    assert config_from_environment({"CYTOLAKE_ALIAS": "next, old"}).aliases == ("next", "old")
    assert config_from_environment({"CYTOLAKE_PRECISION": "bf16"}).precision == "bf16"
    with pytest.raises(ValueError, match="precision is 'fp8', expected fp32 or bf16"):
        config_from_environment({"CYTOLAKE_PRECISION": "fp8"})


def test_bf16_is_another_rounding_of_the_same_vectors_and_the_card_says_so(lake, send):
    service = Service(dataclasses.replace(lake.config, precision="bf16"))
    service.load()
    assert service.why_not_ready() == "", "the smoke test compares with vectors of fp32"
    crop_ids = lake.crop_ids[:8]
    answer = send(service, "POST", "/v1/embed", json={"crop_ids": crop_ids}).json()
    served, stored = np.array(answer["embeddings"]), lake.stored[:8]
    assert 1e-5 < np.abs(served - stored).max() < 0.1
    cosine = (served * stored).sum(axis=1) / np.linalg.norm(served, axis=1) / np.linalg.norm(stored, axis=1)
    assert cosine.min() > 0.999
    assert send(service, "GET", "/v1/models/champion").json()["precision"] == "bf16"


@pytest.fixture(scope="module")
def fitted(lake, tmp_path_factory):
    """Predictors before the search and before the screen, fitted on made-up crops of this width, and saved."""
    random = np.random.default_rng(0)
    n, dim = 160, lake.stored.shape[1]
    what = [f"gene{i % 16}" for i in range(n)]
    effect = random.normal(size=(16, dim)) * (np.arange(16) % 2)[:, None] * 3
    is_control = np.arange(n) >= 144
    vectors = random.normal(size=(n, dim)) + np.where(is_control[:, None], 0, effect[np.arange(n) % 16])
    plates = [f"p{i // 16 % 3}" for i in range(n)]
    text = [f"gene {name}" for name in what]
    queries = queries_of_profiles(vectors, what, what, text, np.full((n, 1), np.nan), plates, is_control)
    quick = QueryPredictorConfig(families=("ridge",), folds=2, outer_folds=2, bootstrap_draws=10, by_direction=True)
    return {before: fit_query_predictor(queries, before, quick)[0] for before in ("search", "screen")}


def register(lake, predictor, folder, representation_id):
    predictor.representation_id = representation_id
    predictor.save(folder)
    tracking = TrackingConfig().at(lake.root)
    with start_run(tracking, "predictor") as run:
        register_query_predictor(tracking, predictor, folder, run)


def test_queries_and_treatments_are_predicted_by_the_predictor_of_the_representation(own_lake, send, fitted, tmp_path):
    own = own_lake.card.representation_id
    service = own_lake.loaded_service()

    def post(path, **question):
        return send(service, "POST", path, json=question)

    by_crop = {"crop_ids": own_lake.crop_ids[:2]}
    answer = post("/v1/predict-performance", **by_crop)
    assert answer.status_code == 409
    assert "`cytolake predict-performance" in answer.json()["detail"]
    register(own_lake, fitted["search"], tmp_path / "another", "another")
    service.load()
    assert service.follower().current().performance is None, "fitted on another representation"
    assert post("/v1/search", crop_id=own_lake.crop_ids[0]).json()["predicted_performance"] is None

    register(own_lake, fitted["search"], tmp_path / "search", own)
    register(own_lake, fitted["screen"], tmp_path / "screen", own)
    service.load()
    predicted = post("/v1/search", crop_id=own_lake.crop_ids[0], k=3).json()["predicted_performance"]
    expected = fitted["search"].predict(own_lake.stored[:1].astype(float))
    assert predicted["average_precision"] == pytest.approx(expected.score[0], abs=1e-4)
    assert 0 <= predicted["low"] <= predicted["average_precision"] <= predicted["high"] <= 1
    assert predicted["coverage"] == 0.9
    by_vector = post("/v1/search", vector=(5 * own_lake.stored[0].astype(float)).tolist()).json()
    assert by_vector["predicted_performance"] == pytest.approx(predicted, abs=1e-4)

    answer = post("/v1/predict-performance", **by_crop).json()
    assert (answer["measure"], answer["coverage"], answer["predictor_version"]) == ("average_precision", 0.9, 2)
    assert answer["predicted"][0]["value"] == pytest.approx(predicted["average_precision"])
    vectors = own_lake.stored[:1].astype(float).tolist()
    assert len(post("/v1/predict-performance", vectors=vectors).json()["predicted"]) == 1
    treatments = [{"gene": "gene3"}, {"gene": "TP53", "dose": 2.5}]
    answer = post("/v1/predict-performance", planned=treatments).json()
    expected = fitted["screen"].predict(description=["gene gene3", "gene TP53"], numbers=np.array([[np.nan], [2.5]]))
    assert [each["value"] for each in answer["predicted"]] == pytest.approx(expected.score.tolist())
    for question, status, text in (
        ({"planned": [{}]}, 422, "name a compound, gene, pathway or dose"),
        ({"vectors": [[1.0, 2.0]]}, 422, "fitted on (queries, 24)"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, 422, "expected one width"),
        ({"crop_ids": ["nobody"]}, 404, "nobody"),
        ({"prompts": ["a cell"]}, 409, "performance.prompts.path"),
        ({"crop_ids": ["a"], "prompts": ["b"]}, 422, "give one of"),
    ):
        answer = post("/v1/predict-performance", **question)
        assert answer.status_code == status
        assert text in answer.json()["detail"]


def test_a_damaged_predictor_is_logged_and_searches_go_on(own_lake, send, fitted, tmp_path, caplog):
    register(own_lake, fitted["search"], tmp_path / "fitted", own_lake.card.representation_id)
    found = find_folder(TrackingConfig().at(own_lake.root), query_model("search"))
    assert found is not None
    (found[0] / "stack.json").write_text("{")
    service = own_lake.loaded_service()
    answer = send(service, "POST", "/v1/search", json={"crop_id": own_lake.crop_ids[0]})
    assert answer.status_code == 200
    assert answer.json()["predicted_performance"] is None
    assert "no readable predictor" in caplog.text
