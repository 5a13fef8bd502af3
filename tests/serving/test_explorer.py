"""The explorer's endpoints on the tiny real lake, each answer against an independent way to it."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from tests.catalog.rows import add_rows
from tests.serving.conftest import copy_of, send_to

from cytolake.curation.curate import CurateConfig, curate
from cytolake.qc.verdicts import qc_profile
from cytolake.serving import Service
from cytolake.serving.page import page_folder
from cytolake.serving.projections import Computing, Projections, pca_points

pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # umap's, on its import

CHECKOUT_PAGE = Path(__file__).resolve().parents[2] / "serve" / "page"


@pytest.fixture(scope="module")
def explored(lake, tmp_path_factory):
    """A copy of the lake with two more representations and verdicts on one site, and its service: (lake, ask)."""
    own = copy_of(lake, tmp_path_factory.mktemp("explored"))
    crop = crops_of(own)[3]
    add_verdicts(own, crop, defocus="DNA", noise="DNA")
    add_embeddings(own, "other", other_vectors(own))
    with_nan = own.stored.copy()
    with_nan[3] = np.nan
    add_embeddings(own, "with-a-nan", with_nan)
    service = own.loaded_service()
    return own, lambda method, path, **request: send_to(service, method, path, **request)


def other_vectors(lake):
    return lake.stored[:, ::-1] * np.linspace(0.5, 2, len(lake.crop_ids))[:, None] + 0.1


def add_embeddings(lake, representation_id, vectors):
    crops = {crop["crop_id"]: crop for crop in crops_of(lake)}
    rows = [
        {"embedding": vector.tolist()} | {key: crops[crop_id][key] for key in ("crop_id", "well_id", "plate_id")}
        for crop_id, vector in zip(lake.crop_ids, vectors, strict=True)
    ]
    add_rows(lake.catalog, "embeddings", *rows, representation_id=representation_id)


def crops_of(lake):
    """Rows of crops with their wells, in the order that the explorer counts them."""
    crops = {row["crop_id"]: row for row in lake.catalog.table("crops").to_pylist()}
    wells = {row["well_id"]: row for row in lake.catalog.table("wells").to_pylist()}
    return [wells[crops[crop_id]["well_id"]] | crops[crop_id] for crop_id in sorted(crops)]


def points_of(ask, representation_id, method):
    path = f"/v1/explore/points?representation_id={representation_id}&method={method}"
    for _ in range(1200):
        answer = ask("GET", path)
        if answer.status_code != 202:
            break
        assert answer.json()["state"] == "computing"
        assert 0 <= answer.json()["share"] <= 1
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    n = len(answer.content) // 12
    rows = np.frombuffer(answer.content, "<u4", n)
    return rows, np.frombuffer(answer.content, "<f4", 2 * n, 4 * n).reshape(2, n).T


def column_of(ask, name):
    content = ask("GET", f"/v1/explore/columns/{name}").content
    (length,) = struct.unpack_from("<I", content)
    assert length % 4 == 0
    header = json.loads(content[4 : 4 + length])
    values = np.frombuffer(content, f"<{np.dtype(header['dtype']).str[1:]}", offset=4 + length)
    assert len(values) == header["n"]
    return header, values


def select(ask, condition):
    answer = ask("POST", "/v1/explore/select", json={"where": condition})
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<u4"), answer.headers["x-rows-key"]


def add_verdicts(lake, crop, **failed):
    """Judge the crop's site by the default profile; `failed` names rules and the channel that fails each."""
    profile = qc_profile("default")
    rows = [{"rule": rule, "is_pass": rule not in failed} for rule in ("defocus", "saturation", "noise")]
    of_all = {key: crop[key] for key in ("site_id", "well_id", "plate_id")}
    of_all |= {"qc_id": profile.qc_id, "level": "site", "channel": "DNA", "channel_index": 0, "metric": "sd"}
    of_all |= {"value": 2.0, "threshold": 1.0, "judged_at": datetime(2026, 1, 1, tzinfo=UTC)}
    add_rows(lake.catalog, "qc_verdicts", *rows, **of_all)


def test_representations_say_what_they_are_and_which_one_is_served(ask, lake):
    answer = ask("GET", "/v1/explore/representations").json()
    (only,) = answer["representations"]
    assert answer["n_crops"] == len(lake.crop_ids)
    assert only["representation_id"] == lake.card.representation_id
    assert (only["n"], only["dim"], only["is_champion"]) == (len(lake.crop_ids), lake.card.dim, True)


def test_the_pca_map_is_scikit_learns_scaled_into_a_square(ask, lake):
    rows, xy = points_of(ask, lake.card.representation_id, "pca")
    assert rows.tolist() == list(range(len(lake.crop_ids)))
    unit = lake.stored / np.linalg.norm(lake.stored, axis=1, keepdims=True)
    expected = PCA(2, svd_solver="full").fit_transform(unit[np.argsort(lake.crop_ids)].astype(np.float64))
    for i in range(2):
        assert abs(np.corrcoef(expected[:, i], xy[:, i])[0, 1]) > 1 - 1e-5
    assert (xy.max(axis=0) - xy.min(axis=0)).max() == pytest.approx(2, abs=1e-5)
    shape, expected_shape = np.ptp(xy, axis=0), np.ptp(expected, axis=0)
    assert shape[1] / shape[0] == pytest.approx(expected_shape[1] / expected_shape[0], rel=1e-3)


def test_an_embedding_that_is_not_finite_spoils_no_map(explored):
    lake, ask = explored
    rows, xy = points_of(ask, "with-a-nan", "pca")
    assert np.isfinite(xy).all()
    assert len(rows) == len(lake.crop_ids)


def test_a_damaged_map_on_disk_is_computed_anew(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    projections = Projections(tmp_path)
    for damaged in (b"", b"no array", pickled_array()):
        (tmp_path / "r-pca-7.npy").write_bytes(damaged)
        found = finished(projections, vectors, 7)
        np.testing.assert_array_equal(found, pca_points(vectors))


def test_a_map_is_computed_once_and_read_from_disk_by_the_next_service(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    computed = np.array(finished(Projections(tmp_path), vectors, 7))
    np.save(tmp_path / "r-pca-7.npy", computed[::-1])  # another map of that name shows that it is read
    np.testing.assert_array_equal(finished(Projections(tmp_path), vectors, 7), computed[::-1])


def test_a_map_of_an_older_table_gives_way_to_the_new_one(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    projections = Projections(tmp_path)
    finished(projections, vectors, 9)
    finished(projections, vectors, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["r-pca-10.npy"]


def test_a_failed_map_reports_the_reason_and_may_be_requested_again(tmp_path):
    projections = Projections(tmp_path)

    def broken():
        raise OSError("the disk is gone")

    def poll():
        for _ in range(100):
            projections.points("r", "pca", 1, 5, broken)
            time.sleep(0.02)

    with pytest.raises(RuntimeError, match="the disk is gone"):
        poll()
    assert isinstance(projections.points("r", "pca", 1, 5, broken), Computing)


@pytest.mark.slow
def test_every_listed_column_holds_what_the_tables_hold(ask, lake):
    crops = crops_of(lake)
    listed = ask("GET", "/v1/explore/columns").json()["columns"]
    assert {"plate", "gene", "foreground_share", "row", "is_negative_control", "qc_pass", "qc_reasons"} <= {
        c["name"] for c in listed
    }
    for name, kind in ((each["name"], each["kind"]) for each in listed):
        header, values = column_of(ask, name)
        assert header["kind"] == kind
        expected = [crop.get(name) for crop in crops]
        if kind == "number":
            np.testing.assert_array_equal(values, np.array([np.nan if v is None else v for v in expected], np.float32))
        elif name not in ("qc_pass", "qc_reasons"):
            texts = [str(v).lower() if isinstance(v, bool) else v or "" for v in expected]
            assert [header["categories"][code] for code in values] == texts
            assert header["categories"] == sorted(set(texts))


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ("", lambda crop: True),
        ("gene = 'TP53'", lambda crop: crop["gene"] == "TP53"),
        ("plate NOT IN ('P1') AND y >= 16", lambda crop: crop["plate"] != "P1" and crop["y"] >= 16),
        ("is_negative_control OR x < 16", lambda crop: crop["is_negative_control"] or crop["x"] < 16),
        ("dose > 1", lambda crop: False),
    ],
)
def test_a_condition_selects_the_rows_that_pass(ask, lake, condition, passes):
    rows, _ = select(ask, condition)
    assert rows.tolist() == [row for row, crop in enumerate(crops_of(lake)) if passes(crop)]


def test_a_hostile_condition_is_refused(ask):
    for condition in ("1=1; DROP TABLE crops", "gene IN (SELECT gene FROM wells)", "read_text('/etc/passwd') <> ''"):
        answer = ask("POST", "/v1/explore/select", json={"where": condition})
        assert (answer.status_code, answer.json()["detail"][:7]) == (422, "where: ")


def test_selected_crops_come_as_csv_with_where_they_are(ask, lake):
    rows, key = select(ask, "gene = 'KRAS'")
    answer = ask(
        "POST", f"/v1/explore/crops?key={key}&form=csv", content=rows.tobytes(),
        headers={"content-type": "application/octet-stream"},
    )  # fmt: skip
    listed = list(csv.DictReader(io.StringIO(answer.text)))
    expected = [crop for crop in crops_of(lake) if crop["gene"] == "KRAS"]
    assert [row["crop_id"] for row in listed] == [crop["crop_id"] for crop in expected]
    assert [(row["plate"], row["well"], int(row["y"])) for row in listed] == [
        (crop["plate"], crop["well"], crop["y"]) for crop in expected
    ]


def test_a_saved_curation_keeps_exactly_the_selected_crops(ask, lake, own_lake, tmp_path):
    selected = "gene = 'KRAS' AND y < 32"
    rows, key = select(ask, selected)
    expected = [crop["crop_id"] for crop in crops_of(lake) if crop["gene"] == "KRAS" and crop["y"] < 32]
    for name, where in (("by_condition", selected), ("by_ids", "")):
        answer = ask(
            "POST", "/v1/explore/crops", params={"key": key, "form": "curation", "where": where},
            content=rows.tobytes(), headers={"content-type": "application/octet-stream"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        assert ("crop_id IN" in answer.text) == (not where)
        (tmp_path / f"{name}.yaml").write_text(answer.text)
        curation = curate(own_lake.catalog, CurateConfig(name=name, folder=str(tmp_path)))
        chosen = own_lake.catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
        assert sorted(chosen["crop_id"].to_pylist()) == expected


def test_a_condition_that_did_not_choose_these_crops_is_not_saved(ask, lake):
    _, key = select(ask, "")
    for where in ("gene = 'KRAS'", "gene = 'nobody'", "not sql", "qc_pass"):  # `condition`: its former name
        answer = ask(
            "POST", "/v1/explore/crops", params={"key": key, "form": "curation", "condition": where},
            content=np.array([0], "<u4").tobytes(), headers={"content-type": "application/octet-stream"},
        )  # fmt: skip
        assert sorted(lake.crop_ids)[0] in answer.text
        assert "KRAS" not in answer.text


def test_rows_of_another_moment_or_beyond_the_catalog_are_refused(ask):
    _, key = select(ask, "")
    binary = {"content-type": "application/octet-stream"}
    for query, content, status in (
        ("key=old", b"\0\0\0\0", 409),
        (f"key={key}", b"\0\0\0", 422),
        (f"key={key}", b"\xff\xff\xff\xff", 422),
        ("", b"\0\0\0\0", 422),
    ):
        assert ask("POST", f"/v1/explore/crops?{query}", content=content, headers=binary).status_code == status


def test_neighbours_are_those_of_the_search_and_of_plain_cosine(explored):
    lake, ask = explored
    crops = {crop["crop_id"]: crop for crop in crops_of(lake)}
    crop_id = lake.crop_ids[4]
    for representation_id, vectors in (("other", other_vectors(lake)), (lake.card.representation_id, lake.stored)):
        question = {"representation_id": representation_id, "crop_id": crop_id, "k": 6, "where": "y >= 16"}
        hits = ask("POST", "/v1/explore/neighbours", json=question).json()["hits"]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = unit @ unit[4]
        may = [i for i, each in enumerate(lake.crop_ids) if each != crop_id and crops[each]["y"] >= 16]
        expected = sorted(may, key=lambda i, cosine=cosine: -cosine[i])[:6]
        assert [hit["crop_id"] for hit in hits] == [lake.crop_ids[i] for i in expected]
        np.testing.assert_allclose([hit["similarity"] for hit in hits], cosine[expected], atol=1e-5)
        assert [sorted(lake.crop_ids)[hit["crop_row"]] for hit in hits] == [hit["crop_id"] for hit in hits]


def rendered(pixels, views):
    """The picture, pixel by pixel: the oracle for the service."""
    picture = np.zeros((*pixels.shape[1:], 3), np.uint8)
    for y in range(pixels.shape[1]):
        for x in range(pixels.shape[2]):
            for i in range(3):
                light = 0.0
                for c, (black, white, colour) in views.items():
                    share = min(max((float(pixels[c, y, x]) - black) / (white - black), 0), 1)
                    light += share * int(colour[1 + 2 * i : 3 + 2 * i], 16)
                picture[y, x, i] = round(min(light, 255))
    return picture


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_crop_is_drawn_as_requested_pixel_by_pixel(ask, lake):
    crop_id = next(crop["crop_id"] for crop in crops_of(lake) if crop["n_channels"] == 3)
    (pixels,) = lake.catalog.crop_pixels([crop_id])
    answer = ask("GET", f"/v1/crops/{crop_id}.png", params={"channels": "DNA:100:1500:#00aaff,RNA:0:3000.5:ff8000"})
    assert answer.headers["content-type"] == "image/png"
    views = {0: (100, 1500, "#00aaff"), 2: (0, 3000.5, "#ff8000")}
    np.testing.assert_allclose(opened(answer.content).astype(int), rendered(pixels, views), atol=1)


def test_without_limits_the_contrast_is_percentiles_of_the_crop(ask, lake):
    crop_id = lake.crop_ids[0]
    (pixels,) = lake.catalog.crop_pixels([crop_id])
    low, high = np.percentile(pixels[0], [1, 99.8])
    picture = opened(ask("GET", f"/v1/crops/{crop_id}.png", params={"channels": "DNA:::#ffffff"}).content)
    np.testing.assert_allclose(picture.astype(int), rendered(pixels, {0: (low, high, "#ffffff")}), atol=1)


def test_a_montage_has_its_crops_in_order_with_one_contrast(ask, lake):
    crop_ids = lake.crop_ids[::-1]
    answer = ask("POST", "/v1/explore/montage", json={"crop_ids": crop_ids})
    tile, columns = int(answer.headers["x-tile"]), int(answer.headers["x-columns"])
    shown = {channel["name"]: channel for channel in json.loads(answer.headers["x-channels"])}
    assert set(shown) == {"DNA", "ER", "RNA", "Mito"}
    pixels, channels = lake.catalog.crop_pixels(crop_ids), lake.catalog.channels_of(crop_ids)
    of_dna = np.concatenate([crop[0].ravel() for crop in pixels])
    assert (shown["DNA"]["black"], shown["DNA"]["white"]) == pytest.approx(np.percentile(of_dna, [1, 99.8]))
    sheet = opened(answer.content)
    for i in (0, 1, len(crop_ids) - 1):
        y, x = i // columns * tile, i % columns * tile
        views = {
            c: tuple(shown[name][key] for key in ("black", "white", "colour")) for c, name in enumerate(channels[i])
        }
        np.testing.assert_allclose(
            sheet[y : y + tile, x : x + tile].astype(int), rendered(pixels[i], views).astype(int), atol=1
        )


def test_channels_of_a_montage_can_be_switched_off(ask, lake):
    dark = ask("POST", "/v1/explore/montage", json={"crop_ids": lake.crop_ids[:2], "channels": []})
    assert opened(dark.content).max() == 0
    is_on = {channel["name"]: channel["is_on"] for channel in json.loads(dark.headers["x-channels"])}
    assert is_on
    assert not any(is_on.values())
    one = [{"name": "DNA", "black": 0, "white": 1000, "colour": "#ff0000"}, {"name": "of other crops"}]
    picture = opened(ask("POST", "/v1/explore/montage", json={"crop_ids": lake.crop_ids[:2], "channels": one}).content)
    assert picture[..., 0].max() > 0
    assert picture[..., 1:].max() == 0


@pytest.mark.parametrize(
    "channels", ["Mito2", "DNA,DNA", "DNA:5:5", "DNA:a:b", "DNA:0:nan", "DNA:0:1:#12", "DNA:0:1:#000000:x", ":0:1"]
)
def test_a_channel_without_sense_is_refused(ask, lake, channels):
    answer = ask("GET", f"/v1/crops/{lake.crop_ids[0]}.png", params={"channels": channels})
    assert answer.status_code == 422
    assert "channel" in answer.json()["detail"]


def test_a_crops_card_says_where_it_is_and_what_its_site_failed(explored):
    lake, ask = explored
    crop = crops_of(lake)[3]
    card = ask("GET", f"/v1/crops/{crop['crop_id']}").json()
    assert card["crop_row"] == 3
    for key in ("plate", "well", "site", "y", "x", "gene", "perturbation", "row", "column"):
        assert card[key] == crop[key]
    assert tuple(card["channels"]) == lake.catalog.channels_of([crop["crop_id"]])[0]
    assert {verdict["rule"]: verdict["is_pass"] for verdict in card["verdicts"]} == {
        "defocus": False, "noise": False, "saturation": True,
    }  # fmt: skip
    assert "/" not in json.dumps(card), "no path of the server"


@pytest.mark.slow
def test_the_umap_of_a_lake_has_every_crop(ask, lake):
    rows, xy = points_of(ask, lake.card.representation_id, "umap")
    assert rows.tolist() == list(range(len(lake.crop_ids)))
    assert np.isfinite(xy).all()


def test_sites_that_failed_can_be_selected_and_are_listed(explored):
    lake, ask = explored
    crop = crops_of(lake)[3]
    of_site = [row for row, each in enumerate(crops_of(lake)) if each["site_id"] == crop["site_id"]]
    assert select(ask, "qc_reasons = 'defocus (DNA); noise (DNA)' AND NOT qc_pass")[0].tolist() == of_site
    qc = ask("GET", "/v1/explore/qc").json()
    assert qc["n_failed"] == 2
    assert [(v["plate"], v["well"], v["site"], v["rule"]) for v in qc["failed"]] == [
        (crop["plate"], crop["well"], crop["site"], rule) for rule in ("defocus", "noise")
    ]
    assert {rule["rule"]: (rule["n_failed"], rule["n_judged"]) for rule in qc["rules"]} == {
        "defocus": (1, 1), "noise": (1, 1), "saturation": (0, 1),
    }  # fmt: skip


def test_what_is_not_there_is_a_404(ask, lake):
    for method, path, request in (
        ("GET", "/v1/crops/nobody", {}),
        ("GET", "/v1/crops/nobody.png", {}),
        ("GET", "/v1/explore/columns/nothing", {}),
        ("GET", "/v1/explore/columns/crop_id", {}),
        ("GET", "/v1/explore/points?representation_id=nobody&method=pca", {}),
        ("POST", "/v1/explore/montage", {"json": {"crop_ids": ["nobody"]}}),
        ("POST", "/v1/explore/neighbours", {"json": {"representation_id": "x", "crop_id": lake.crop_ids[0]}}),
        ("POST", "/v1/explore/neighbours", {"json": {"representation_id": "x", "crop_id": "nobody"}}),
    ):
        answer = ask(method, path, **request)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/explore/representations", "/v1/explore/points?representation_id=x", "/v1/explore/columns",
        "/v1/explore/columns/gene", "/v1/explore/qc", "/v1/crops/x", "/v1/crops/x.png", "/explore/../v1/explore/qc",
        "/explore",
    ],
)  # fmt: skip
def test_without_a_key_there_are_no_data(ask, path):
    assert ask("GET", path, key=None).status_code == 401


def test_the_page_comes_without_a_key_and_may_load_nothing_from_elsewhere(ask):
    index = ask("GET", "/explore/", key=None)
    assert index.status_code == 200, index.text
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:src|href)="([^"#]+)"', index.text)
    assert "app.js" in linked
    for name in [*linked, "vendor/regl-scatterplot.js", "vendor/LICENSES.txt"]:
        file = ask("GET", f"/explore/{name}", key=None)
        assert file.status_code == 200, name
        assert file.headers["content-security-policy"].startswith("default-src 'self'")
        assert "http" not in file.headers["content-security-policy"]
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["referrer-policy"] == "no-referrer"


def test_every_module_of_the_page_imports_files_that_are_there():
    for script in CHECKOUT_PAGE.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (CHECKOUT_PAGE / name).is_file(), f"{script.name} imports {name}"
        assert not re.search(r"https?://", script.read_text().replace("http://www.w3.org/2000/svg", "")), script.name


def test_no_file_outside_of_the_page_can_be_read(ask, tmp_path, monkeypatch, lake, send):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("page")
    (page / ".hidden.js").write_text("no")
    (page / "notes.py").write_text("no")
    (tmp_path / "secret.txt").write_text("no")
    (page / "link.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setenv("CYTOLAKE_PAGE", str(page))
    service = Service(lake.config)
    assert send(service, "GET", "/explore/").text == "page"
    for name in (
        "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "vendor/../../secret.txt", "/etc/passwd",
        "link.txt", ".hidden.js", "notes.py", "vendor", "", "index.html/", "a\\..\\secret.txt", "index.html%00.js",
    ):  # fmt: skip
        answer = send(service, "GET", f"/explore/{name}")
        assert answer.text == "page" if not name else answer.status_code in (401, 404), name


def test_the_page_is_found_in_the_checkout_or_where_the_environment_says(tmp_path):
    assert page_folder({}) == CHECKOUT_PAGE
    assert page_folder({"CYTOLAKE_PAGE": str(tmp_path)}) == tmp_path


def finished(projections, vectors, version):
    for _ in range(200):
        found = projections.points("r", "pca", version, len(vectors), lambda: vectors)
        if not isinstance(found, Computing):
            return found
        time.sleep(0.02)
    raise AssertionError("the map was not computed")


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()
