from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from cytolake.serving.api import openapi_text

ARRAY = {"content-type": "application/octet-stream"}


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def assert_problem(answer, status, *texts):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["instance"].endswith(answer.headers["x-request-id"])
    for text in texts:
        assert text in problem["detail"]


def test_the_served_embedding_of_a_stored_crop_is_the_tables_row(ask, lake):
    crop_ids = lake.crop_ids[::-1]
    answer = ask("POST", "/v1/embed", json={"crop_ids": crop_ids})
    assert answer.status_code == 200, answer.text
    assert answer.json()["crop_ids"] == crop_ids
    np.testing.assert_allclose(answer.json()["embeddings"], lake.stored[::-1], atol=1e-4)


def test_a_body_that_is_not_json_is_refused_in_the_same_words_everywhere(ask):
    sent = {"content": b'{"crop_ids": [1,}', "headers": {"content-type": "application/json"}}
    places = ("/v1/embed", "/v1/search", "/v1/qc", "/v1/predict-performance")
    answers = [ask("POST", place, **sent) for place in places]
    for answer in answers:
        assert_problem(answer, 422, "the body is not JSON: ", "line 1 column 17")
    assert len({answer.json()["detail"] for answer in answers}) == 1


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_the_same_pixels_sent_as_an_array_give_the_same_vectors(ask, lake, dtype):
    of_plate_1 = [i for i, names in enumerate(lake.catalog.channels_of(lake.crop_ids)) if len(names) == 3]
    pixels = np.stack(lake.catalog.crop_pixels([lake.crop_ids[i] for i in of_plate_1])).astype(dtype)
    answer = ask("POST", "/v1/embed?channels=DNA,ER,RNA", content=npy(pixels), headers=ARRAY)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["embeddings"], lake.stored[of_plate_1], atol=1e-4)


def test_channels_may_be_named_in_the_query_a_header_or_the_npz_and_by_another_name(ask, lake):
    pixels = lake.catalog.crop_pixels(lake.crop_ids[:1])[0][:2]
    npz = io.BytesIO()
    np.savez(npz, crops=pixels, channels=np.array(["DNA", "ER"]))
    answers = [
        ask("POST", "/v1/embed?channels=DNA,ER", content=npy(pixels), headers=ARRAY),
        ask("POST", "/v1/embed?channels=Hoechst 33342, concanavalin-A", content=npy(pixels), headers=ARRAY),
        ask("POST", "/v1/embed", content=npy(pixels), headers=ARRAY | {"x-channels": "DNA, ER"}),
        ask("POST", "/v1/embed", content=npz.getvalue(), headers=ARRAY),
    ]
    first, *others = [np.array(answer.json()["embeddings"]) for answer in answers]
    for other in others:
        np.testing.assert_array_equal(first, other)
    swapped = ask("POST", "/v1/embed?channels=ER,DNA", content=npy(pixels), headers=ARRAY).json()["embeddings"]
    assert np.abs(first - swapped).max() > 1e-3, "the names must matter"


def test_vectors_come_as_an_array_where_accepted(ask, lake):
    answer = ask("POST", "/v1/embed", json={"crop_ids": lake.crop_ids}, headers={"accept": ARRAY["content-type"]})
    vectors = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, lake.stored, atol=1e-4)


def test_answers_name_the_model_and_the_request(ask, lake):
    for method, path, request in (
        ("GET", "/v1/models/champion", {}),
        ("POST", "/v1/embed", {"json": {"crop_ids": lake.crop_ids[:1]}}),
        ("POST", "/v1/search", {"json": {"crop_id": lake.crop_ids[0]}}),
    ):
        headers = ask(method, path, headers={"x-request-id": "r1"}, **request).headers
        assert headers["x-request-id"] == "r1"
        assert headers["x-model-version"] == "1"
        assert headers["x-representation-id"] == lake.card.representation_id


def test_the_card_describes_how_a_vector_is_computed(ask, lake):
    card = ask("GET", "/v1/models/champion").json()
    assert (card["name"], card["alias"], card["version"]) == ("cytolake-encoder", "champion", 1)
    assert {key: card[key] for key in ("block", "pooling", "dim", "crop_size", "score")} == {
        "block": 1, "pooling": "mean", "dim": 24, "crop_size": 16, "score": 0.5,
    }  # fmt: skip
    assert card["channels"][:2] == ["DNA", "ER"]
    assert card["table_versions"] == lake.card.table_versions
    assert card["index"]["n_crops"] == len(lake.crop_ids)
    assert "/" not in json.dumps(card), "no path of the server"


def test_the_length_of_the_vector_does_not_matter(ask, lake):
    found = [
        ask("POST", "/v1/search", json={"vector": (lake.stored[3].astype(float) * scale).tolist()}).json()["hits"][0][
            "crop_id"
        ]
        for scale in (1e-200, 1, 1e200)
    ]
    assert found == [lake.crop_ids[3]] * 3


def test_a_crop_is_no_answer_to_itself(ask, lake):
    answer = ask("POST", "/v1/search", json={"crop_id": lake.crop_ids[0], "k": 1000}).json()
    assert sorted(hit["crop_id"] for hit in answer["hits"]) == sorted(lake.crop_ids[1:])
    assert answer["n_crops"] == len(lake.crop_ids)


def test_a_perturbation_is_searched_by_its_mean_direction(ask, lake):
    wells = {row["well_id"]: row["perturbation"] for row in lake.catalog.table("wells").to_pylist()}
    of_crop = dict(lake.catalog.table("crops", columns=["crop_id", "well_id"]).to_pandas().itertuples(index=False))
    is_it = np.array([wells[of_crop[crop_id]] == "TP53-ko" for crop_id in lake.crop_ids])
    unit = lake.stored / np.linalg.norm(lake.stored, axis=1, keepdims=True)
    similarity = unit @ unit[is_it].mean(axis=0) / np.linalg.norm(unit[is_it].mean(axis=0))
    hits = ask("POST", "/v1/search", json={"perturbation": "TP53-ko", "k": 5}).json()["hits"]
    expected = [i for i in np.argsort(-similarity) if not is_it[i]][:5]
    assert [hit["crop_id"] for hit in hits] == [lake.crop_ids[i] for i in expected]
    unknown = ask("POST", "/v1/search", json={"perturbation": "nobody"})
    assert unknown.status_code == 404
    assert "column perturbation" in unknown.json()["detail"]


def test_a_crop_that_is_sent_is_searched_as_its_vector_is(ask, lake):
    pixels, (names,) = lake.catalog.crop_pixels(lake.crop_ids[:1])[0], lake.catalog.channels_of(lake.crop_ids[:1])
    path = f"/v1/search?k=4&channels={','.join(names)}&where=plate = 'P1'"
    hits = ask("POST", path, content=npy(pixels), headers=ARRAY).json()["hits"]
    by_vector = {"vector": lake.stored[0].tolist(), "k": 4, "where": "plate = 'P1'"}
    expected = ask("POST", "/v1/search", json=by_vector).json()["hits"]
    assert [hit["crop_id"] for hit in hits] == [hit["crop_id"] for hit in expected]
    assert hits[0]["crop_id"] == lake.crop_ids[0]
    two = ask("POST", path, content=npy(np.stack([pixels, pixels])), headers=ARRAY)
    assert_problem(two, 422, "2 crops, expected one")


def test_tiff_and_arrow_bodies_give_the_tables_vectors(ask, lake):
    ids = lake.crop_ids[:12]
    images, channels = lake.catalog.crop_pixels(ids), lake.catalog.channels_of(ids)
    stream = io.BytesIO()
    tifffile.imwrite(stream, images[0], photometric="minisblack")
    tiff = {"content-type": "image/tiff"}
    one = ask("POST", f"/v1/embed?channels={','.join(channels[0])}", content=stream.getvalue(), headers=tiff)
    np.testing.assert_allclose(one.json()["embeddings"], lake.stored[:1], atol=1e-4)
    rows = pa.table(
        {
            "pixels": [np.ascontiguousarray(image).tobytes() for image in images],
            "shape": pa.array([list(image.shape) for image in images], pa.list_(pa.int32())),
            "dtype": [image.dtype.name for image in images],
            "channels": [list(names) for names in channels],
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    assert len({len(names) for names in channels}) == 2, "crops of two and three channels in one request"
    arrow = {"content-type": "application/vnd.apache.arrow.stream"}
    many = ask("POST", "/v1/embed", content=sink.getvalue(), headers=arrow)
    np.testing.assert_allclose(many.json()["embeddings"], lake.stored[:12], atol=1e-4)


def test_verdicts_of_stored_crops_and_of_sent_images(ask, lake):
    stored = ask("POST", "/v1/qc", json={"crop_ids": lake.crop_ids[:2]}).json()
    assert [each["asked"] for each in stored["stored"]] == lake.crop_ids[:2]
    assert stored["stored"][0]["is_pass"] is None, "these sites were not judged"
    assert stored["sent"] == []
    flat = np.full((2, 64, 64), 500, np.uint16)
    sent = ask("POST", "/v1/qc?channels=DNA,ER", content=npy(flat), headers=ARRAY).json()
    (verdict,) = sent["sent"]
    assert not verdict["is_pass"]
    assert [each["channel"] for each in verdict["channels"]] == ["DNA", "ER"]
    assert verdict["channels"][0]["reasons"]
    assert verdict["not_judged"]
    assert_problem(ask("POST", "/v1/qc", json={"crop_ids": ["nobody"]}), 404, "nobody")
    assert_problem(ask("POST", "/v1/qc", json={}), 422, "either crop_ids or site_ids")
    unknown = ask("POST", "/v1/qc?channels=DNA,ER&profile=mine", content=npy(flat), headers=ARRAY)
    assert_problem(unknown, 404, "not in catalog/qc.yaml")


def test_a_hit_says_where_it_is_and_what_was_done_there(ask, lake):
    crop = lake.catalog.sql(
        "select crop_id, plate, well, perturbation, gene, y, x from crops join wells using (well_id, plate, well)"
        f" where crop_id = '{lake.crop_ids[5]}'"
    ).to_pylist()[0]
    hit = ask("POST", "/v1/search", json={"vector": lake.stored[5].tolist(), "k": 1}).json()["hits"][0]
    assert {key: hit[key] for key in crop} == crop


def test_a_condition_is_applied_before_the_ranking(ask, lake):
    condition = "gene = 'KRAS' AND y >= 16"
    passing = lake.catalog.sql(
        "select crop_id from crops join wells using (well_id) where gene = 'KRAS' and crops.y >= 16"
    )["crop_id"].to_pylist()
    hits = ask("POST", "/v1/search", json={"vector": lake.stored[0].tolist(), "k": 100, "where": condition}).json()
    assert sorted(hit["crop_id"] for hit in hits["hits"]) == sorted(passing)
    former_name = {"vector": lake.stored[0].tolist(), "k": 100, "filter": condition}
    assert ask("POST", "/v1/search", json=former_name).json() == hits
    assert_problem(ask("POST", "/v1/search", json=former_name | {"where": condition}), 422, "filter")
    nothing = {"vector": lake.stored[0].tolist(), "where": "gene = 'nobody'"}
    assert ask("POST", "/v1/search", json=nothing).json()["hits"] == []


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ({}, "one of vector, crop_id and perturbation"),
        ({"vector": [1.0] * 24, "crop_id": "x"}, "one of vector, crop_id and perturbation"),
        ({"vector": [1.0] * 23}, "23 values"),
        ({"vector": [0.0] * 24}, "no direction"),
        ({"vector": []}, "vector"),
        ({"vector": ["a"]}, "vector.0"),
        ({"vector": [1.0] * 24, "k": 0}, "k: "),
        ({"vector": [1.0] * 24, "k": 1001}, "k: "),
        ({"vector": [1.0] * 24, "filters": "x"}, "filters"),
    ],
)
def test_a_question_without_sense_is_refused(ask, question, text):
    assert_problem(ask("POST", "/v1/search", json=question), 422, text)


def test_what_is_not_there_is_a_404(ask, lake):
    assert_problem(ask("POST", "/v1/search", json={"crop_id": "nobody"}), 404, "'nobody'", lake.card.representation_id)
    assert_problem(ask("POST", "/v1/embed", json={"crop_ids": [lake.crop_ids[0], "nobody"]}), 404, "nobody")
    assert_problem(ask("GET", "/v1/models/challenger"), 404, "'challenger'", "it follows champion")
    assert_problem(ask("GET", "/v2/anything"), 404, "/openapi.json")
    assert_problem(ask("GET", "/v1/embed"), 405)
    assert_problem(ask("GET", "/docs"), 404)


@pytest.mark.parametrize(
    ("shape", "channels", "text"),
    [
        ((3, 15, 16), "DNA,ER,RNA", "15 x 16 px, the model takes 16 x 16 px"),
        ((3, 16, 16), "DNA,ER", "2 channel names for 3 channels"),
        ((3, 16, 16), "", "0 channel names for 3 channels"),
        ((16, 16), "DNA", "(B, C, H, W)"),
    ],
)
def test_crops_of_another_shape_are_refused(ask, shape, channels, text):
    answer = ask("POST", f"/v1/embed?channels={channels}", content=npy(np.ones(shape, np.uint16)), headers=ARRAY)
    assert_problem(answer, 422, text)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422),
        ({"json": {"crop_ids": []}}, 422),
        ({"json": {"crop_ids": "abc"}}, 422),
        ({"json": {"crop_ids": ["x"] * 1025}}, 422),
        ({"json": ["x"]}, 422),
        ({"content": b"crop", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"crop"}, 415),
        ({"content": b"\x80\x04crop", "headers": ARRAY}, 415),
        ({"content": b" " * (2**20 + 1), "headers": {"content-type": "application/json"}}, 413),
        ({"content": b" " * (2**26 + 1), "headers": ARRAY}, 413),
        ({"content": npy(np.ones((1025, 1, 16, 16), np.uint8)), "headers": ARRAY}, 413),
    ],
)
def test_a_body_that_is_no_crops_is_a_problem_document(ask, request_, status):
    assert_problem(ask("POST", "/v1/embed?channels=DNA", **request_), status)


def test_every_path_but_the_probes_needs_the_key(ask, service):
    for method, path in (("POST", "/v1/embed"), ("POST", "/v1/search"), ("GET", "/v1/models/champion")):
        assert_problem(ask(method, path, key=None), 401)
    assert ask("GET", "/openapi.json", key=None).status_code == 401
    assert ask("GET", "/healthz", key=None).json() == {"status": "ok"}
    assert ask("GET", "/readyz", key=None).json() == {"status": "ready"}


def test_the_schema_is_the_frozen_one():
    """What programs are written against changes knowingly: `make openapi` writes the file anew."""
    frozen = (Path(__file__).parents[2] / "serve" / "openapi.json").read_text(encoding="utf-8")
    assert openapi_text() == frozen
    paths = json.loads(frozen)["paths"]
    assert {"/v1/embed", "/v1/search", "/v1/qc", "/v1/predict-performance", "/v1/models/{alias}"} <= set(paths)


def test_an_error_of_the_service_shows_nothing_of_its_inside(service, ask, monkeypatch):
    def broken():
        raise KeyError("/secret/path")

    monkeypatch.setattr(service, "current", broken)
    answer = ask("GET", "/v1/models/champion")
    assert_problem(answer, 500)
    assert "secret" not in answer.text
