from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cytolake.models import build_encoder, load_encoder, save_encoder
from cytolake.performance_prediction.queries import QueryPredictorConfig, fit_query_predictor, queries_of_profiles
from cytolake.performance_prediction.registered import QUERY_MODELS, register_query_predictor
from cytolake.serving import Service, ServingConfig, config_from_environment
from cytolake.serving.service import Minibatch, _run_together
from cytolake.tracking import TrackingConfig, find_folder, promote, start_run


@pytest.mark.parametrize(
    ("alias", "folder", "told"),
    [
        ("challenger", "", ("'challenger'", "champion -> version 1", "jobs/promote.py")),
        ("champion", "missing", ("missing", "no catalog there", "jobs/ingest.py")),
    ],
)
def test_without_a_champion_the_service_starts_and_says_what_to_do(lake, send, alias, folder, told):
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
        for text in told:
            assert text in answer.json()["detail"]


def test_a_champion_promoted_later_is_taken_up_without_a_restart(own_lake, send):
    service = Service(dataclasses.replace(own_lake.config, alias="next"))
    service.load()
    assert send(service, "GET", "/readyz").status_code == 503
    promote(TrackingConfig().at(own_lake.root), own_lake.card, own_lake.source_checkpoint, alias="next")
    service.load()
    assert send(service, "GET", "/readyz").status_code == 200


def test_a_damaged_encoder_is_told_and_never_served(own_lake):
    card = dataclasses.replace(own_lake.card, representation_id="damaged")
    champion = promote(TrackingConfig().at(own_lake.root), card, own_lake.source_checkpoint)
    content = bytearray(champion.encoder_path.read_bytes())
    content[-5] ^= 0xFF
    champion.encoder_path.write_bytes(content)
    service = Service(own_lake.config)
    service.load()
    assert "weights have changed" in service.why_not_ready()


def test_rows_written_later_are_found_and_a_pinned_index_does_not_change(own_lake):
    service = Service(own_lake.config)
    service.load()
    before = service.current()
    n_before = before.index.crops.num_rows
    service.load()
    assert service.current().index is before.index, "nothing new: nothing is read again"
    table = own_lake.catalog.table("embeddings", where=f"crop_id = '{own_lake.crop_ids[0]}'")
    own_lake.catalog.append("embeddings", table, transaction="again")
    service.load()
    assert service.current().index.crops.num_rows == n_before + 1
    assert before.index.crops.num_rows == n_before


def test_what_is_loaded_stays_when_a_look_fails(own_lake, caplog):
    service = Service(own_lake.config)
    service.load()
    loaded = service.current()
    (own_lake.root / "mlflow.db").rename(own_lake.root / "gone.db")
    service.load()
    assert service.current() is loaded
    assert service.why_not_ready() == ""
    assert "gone" in caplog.text or "mlflow.db does not exist" in caplog.text


def test_a_look_is_set_off_by_a_request_only_when_one_is_due(lake):
    async def looks(refresh_s: float) -> int:
        service = Service(dataclasses.replace(lake.config, refresh_s=refresh_s))
        service.load()
        n_looks = 0

        def count() -> None:
            nonlocal n_looks
            n_looks += 1

        service.load = count
        for _ in range(3):
            service.keep_current()
            await asyncio.sleep(0.05)
        return n_looks

    assert asyncio.run(looks(3600)) == 0
    assert asyncio.run(looks(0)) == 3


def test_strangers_in_one_pass_get_the_vectors_they_would_get_alone(service, lake):
    champion = service.current().champion
    images, channels = lake.catalog.crop_pixels(lake.crop_ids), lake.catalog.channels_of(lake.crop_ids)
    indices = [champion.channel_indices(names) for names in channels]
    twin = dataclasses.replace(champion)
    parts = [
        Minibatch(champion=champion if i % 2 else twin, images=images[i : i + 4], indices=indices[i : i + 4])
        for i in range(0, len(images), 4)
    ]
    together = np.concatenate(_run_together(parts))
    np.testing.assert_allclose(together, lake.stored, atol=1e-4)


def test_only_the_blocks_that_are_served_are_kept(service, lake):
    assert service.current().champion.encoder.n_blocks == lake.card.block + 1


def test_a_card_that_is_not_its_encoders_is_refused(own_lake):
    for wrong, told in (({"block": 3}, "blocks 0 to 2"), ({"dim": 25}, "24"), ({"alignment": "tvn"}, "tvn")):
        card = dataclasses.replace(own_lake.card, representation_id=f"wrong-{told[:3]}", **wrong)
        promote(TrackingConfig().at(own_lake.root), card, own_lake.source_checkpoint)
        service = Service(own_lake.config)
        service.load()
        assert told in service.why_not_ready()
        assert "Promote" in service.why_not_ready()


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


def test_a_source_image_that_is_gone_is_the_services_trouble_not_the_callers(own_lake, send):
    service = Service(own_lake.config)
    service.load()
    path = Path(own_lake.catalog.table("sites")["image_paths"].to_pylist()[0][0])
    content = path.read_bytes()
    site_id = own_lake.catalog.table("sites")["site_id"].to_pylist()[0]
    crop = own_lake.catalog.table("crops", where=f"site_id = '{site_id}'")["crop_id"][0].as_py()
    try:
        path.write_bytes(content[: len(content) // 2])
        answer = send(service, "POST", "/v1/embed", json={"crop_ids": [crop]})
    finally:
        path.write_bytes(content)
    assert answer.status_code == 503
    assert "cannot be read" in answer.json()["detail"]


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


def register_predictor(lake, folder, representation_id):
    """One that was fitted on made-up crops of this width."""
    random = np.random.default_rng(0)
    n, dim = 160, lake.stored.shape[1]
    what = [f"gene{i % 16}" for i in range(n)]
    effect = random.normal(size=(16, dim)) * (np.arange(16) % 2)[:, None] * 3
    is_control = np.arange(n) >= 144
    vectors = random.normal(size=(n, dim)) + np.where(is_control[:, None], 0, effect[np.arange(n) % 16])
    plates = [f"p{i // 16 % 3}" for i in range(n)]
    queries = queries_of_profiles(vectors, what, what, what, np.full((n, 1), np.nan), plates, is_control)
    quick = QueryPredictorConfig(families=("ridge",), folds=2, outer_folds=2, bootstrap_draws=10, by_direction=True)
    predictor, _ = fit_query_predictor(queries, "search", quick)
    predictor.representation_id = representation_id
    predictor.save(folder)
    tracking = TrackingConfig().at(lake.root)
    with start_run(tracking, "predictor") as run:
        register_query_predictor(tracking, predictor, folder, run)
    return predictor


def test_a_search_tells_how_well_it_will_do_once_that_was_learnt(own_lake, send, tmp_path):
    service = Service(own_lake.config)
    service.load()
    question = {"json": {"crop_id": own_lake.crop_ids[0], "k": 3}}
    assert send(service, "POST", "/v1/search", **question).json()["predicted_performance"] is None
    predictor = register_predictor(own_lake, tmp_path / "fitted", own_lake.card.representation_id)
    service.load()
    told = send(service, "POST", "/v1/search", **question).json()["predicted_performance"]
    expected = predictor.predict(own_lake.stored[:1].astype(float))
    assert told["average_precision"] == pytest.approx(expected.score[0], abs=1e-4)
    assert 0 <= told["low"] <= told["average_precision"] <= told["high"] <= 1
    assert told["coverage"] == 0.9
    by_vector = {"json": {"vector": (5 * own_lake.stored[0].astype(float)).tolist()}}
    assert send(service, "POST", "/v1/search", **by_vector).json()["predicted_performance"] == pytest.approx(
        told, abs=1e-4
    )


def test_a_predictor_of_another_representation_is_not_asked(own_lake, tmp_path):
    register_predictor(own_lake, tmp_path / "fitted", "another")
    service = Service(own_lake.config)
    service.load()
    assert service.current().performance is None


def test_a_damaged_predictor_is_told_in_the_log_and_searches_go_on(own_lake, send, tmp_path, caplog):
    register_predictor(own_lake, tmp_path / "fitted", own_lake.card.representation_id)
    found = find_folder(TrackingConfig().at(own_lake.root), QUERY_MODELS["search"])
    assert found is not None
    (found[0] / "stack.json").write_text("{")
    service = Service(own_lake.config)
    service.load()
    answer = send(service, "POST", "/v1/search", json={"crop_id": own_lake.crop_ids[0]})
    assert answer.status_code == 200
    assert answer.json()["predicted_performance"] is None
    assert "no readable predictor" in caplog.text
