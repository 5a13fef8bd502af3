"""A tiny real lake: two plates as TIFF, an untrained encoder, its embeddings in Delta, a champion in MLflow."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from tests.catalog.empty_catalog import empty_catalog

import cytolake.catalog
from cytolake.catalog import Catalog, channel_vocabulary, ids, table_contract
from cytolake.models import ModelConfig, build_encoder, collate, load_encoder, save_encoder
from cytolake.serving import Service, ServingConfig, build_app
from cytolake.serving.api import openapi_text
from cytolake.serving.decoding import DecodingBudget
from cytolake.serving.guard import GuardConfig, key_digest
from cytolake.tracking import ModelCard, TrackingConfig, promote

KEY = "the-key-of-the-serving-tests"
SIZE = 16
WELLS = (("P1", "B02", "GAPDH", "negative"), ("P1", "C03", "TP53", ""), ("P2", "B02", "KRAS", ""))
CHANNELS = {"P1": ("DNA", "ER", "RNA"), "P2": ("DNA", "Mito")}
BLOCK, POOLING = 1, "mean"


@dataclasses.dataclass(frozen=True)
class Lake:
    root: Path
    crop_ids: list[str]
    stored: np.ndarray
    """(N, D) embeddings as the table has them, in the order of `crop_ids`."""
    card: ModelCard
    source_checkpoint: Path

    @property
    def catalog(self) -> Catalog:
        return cytolake.catalog.open(self.root)

    @property
    def config(self) -> ServingConfig:
        return ServingConfig(
            root=str(self.root),
            guard=GuardConfig(key_digests=(key_digest(KEY),)),
            budget=DecodingBudget(max_decoded_bytes=2**24),
            minibatch_tokens=60,
            device="cpu",
        )

    def loaded_service(self, **changes: object) -> Service:
        """A service over this lake, with its model loaded."""
        service = Service(dataclasses.replace(self.config, **changes))
        service.load()
        assert service.why_not_ready() == ""
        return service


@pytest.fixture(scope="session")
def lake(tmp_path_factory) -> Lake:
    root = tmp_path_factory.mktemp("lake")
    catalog = empty_catalog(root)
    for plate in CHANNELS:
        _write_plate(catalog, root / "screens", plate)
    config = ModelConfig(
        architecture="chada_vit", channels=channel_vocabulary().names, crop_size=SIZE, patch_size=8, width=24, depth=3,
        heads=2,
    )  # fmt: skip
    save_encoder(build_encoder(config, seed=0), root / "runs" / "encoder.safetensors")
    return embed_and_promote(root, root / "runs" / "encoder.safetensors", "representation-of-the-test")


@pytest.fixture
def own_lake(lake, tmp_path):
    """A copy of the lake that a test may change; source images and registered files stay where they are."""
    return copy_of(lake, tmp_path / "lake")


def copy_of(lake: Lake, root: Path) -> Lake:
    """A copy of a lake's tables and registry."""
    shutil.copytree(lake.root / "tables", root / "tables")
    shutil.copy(lake.root / "mlflow.db", root / "mlflow.db")
    return dataclasses.replace(lake, root=root)


@pytest.fixture(scope="session")
def service(lake) -> Service:
    return lake.loaded_service()


@pytest.fixture
def ask(service):
    """Send one request, with the key, through the guard to the API: `ask("POST", "/v1/embed", json=...)`."""
    return lambda method, path, **request: send_to(service, method, path, **request)


@pytest.fixture
def send():
    """The same for a service of the test's own: `send(service, "GET", "/readyz")`."""
    return send_to


@pytest.fixture(scope="session")
def address(service) -> Iterator[str]:
    """Address of an HTTP server of the shared service, on loopback."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(build_app(service), port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


# Building it takes as long as some twenty requests.
_app_of = functools.lru_cache(maxsize=4)(build_app)


def send_to(service: Service, method: str, path: str, key: str | None = KEY, **request) -> httpx.Response:
    headers = ({"authorization": f"Bearer {key}"} if key else {}) | request.pop("headers", {})

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=_app_of(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", trust_env=False) as client:
            return await client.request(method, path, headers=headers, **request)

    answer = asyncio.run(exchange())
    check_declared(answer)
    return answer


@functools.cache
def declared_endpoints() -> list[tuple[re.Pattern[str], dict]]:
    """Paths of the OpenAPI document as patterns, with their methods; fixed paths before those with a parameter."""
    paths = json.loads(openapi_text())["paths"]
    in_order = sorted(paths, key=lambda path: ("{" in path, not path.endswith("}.png"), path))
    return [(re.compile(re.sub(r"\\{[^{}]+\\}", "[^/]+", re.escape(path))), paths[path]) for path in in_order]


def check_declared(answer: httpx.Response) -> None:
    """An answer has a status that its endpoint declares, in a media type that it declares for that status."""
    request = answer.request
    found = [each for path, each in declared_endpoints() if path.fullmatch(request.url.path)]
    operation = found[0].get(request.method.lower()) if found else None
    if operation is None or answer.status_code == 500:
        return  # no endpoint, or a fault of the service, which any may have
    declared = operation["responses"].get(str(answer.status_code))
    assert declared is not None, f"{request.method} {request.url.path} answered {answer.status_code}: {answer.text}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in declared["content"], f"{request.method} {request.url.path} {answer.status_code} is {kind}"


def embed_and_promote(root: Path, checkpoint: Path, representation_id: str) -> Lake:
    """Embed and promote as the jobs do, but crop by crop: the oracle for batched, padded serving."""
    catalog = cytolake.catalog.open(root)
    encoder = load_encoder(checkpoint)
    crops = catalog.table("crops").sort_by("crop_id")
    crop_ids = crops["crop_id"].to_pylist()
    images, channels = catalog.crop_pixels(crop_ids), catalog.channels_of(crop_ids)
    stored = np.concatenate(
        [
            encoder.pooled_blocks(collate([image], [encoder.config.channel_indices(names)]))[POOLING][BLOCK].numpy()
            for image, names in zip(images, channels, strict=True)
        ]
    )
    rows = [
        {"representation_id": representation_id, "embedding": vector.tolist()}
        | {key: crop[key] for key in ("crop_id", "well_id", "plate_id")}
        for crop, vector in zip(crops.to_pylist(), stored, strict=True)
    ]
    catalog.append("embeddings", table_contract("embeddings").rows(rows), transaction=representation_id)
    card = ModelCard(
        representation_id=representation_id, model_id="m", architecture="chada_vit", channels=encoder.config.channels,
        crop_size=SIZE, block=BLOCK, pooling=POOLING, dim=stored.shape[1], pack_id="p", curation_id="c",
        table_versions=catalog.versions(), run_id="", benchmark="linear_probe", label="gene", split="plate",
        metric="balanced_accuracy", score=0.5, ci_low=0.4, ci_high=0.6,
    )  # fmt: skip
    promote(TrackingConfig().at(root), card, checkpoint)
    return Lake(root, crop_ids, stored, card, checkpoint)


def _write_plate(catalog: Catalog, folder: Path, plate: str) -> None:
    screen, now = "S", datetime(2026, 1, 1, tzinfo=UTC)
    plate_id = ids.plate_id(screen, plate)
    common = {"plate_id": plate_id, "screen": screen, "plate": plate, "batch": "batch-1"}
    wells, sites, crops = [], [], []
    for _, well, gene, control in (each for each in WELLS if each[0] == plate):
        well_id, site_id = ids.well_id(screen, plate, well), ids.site_id(screen, plate, well, "1")
        wells.append(
            common
            | {"well_id": well_id, "well": well, "row": ord(well[0]) - 65, "column": int(well[1:]) - 1}
            | {"perturbation": f"{gene}-ko", "gene": gene, "pathway": "", "guide": "", "compound": "", "dose": None}
            | {"replicate": "1", "control": control, "is_negative_control": control == "negative"}
            | {"has_images": True, "annotations": "{}"}
        )
        paths = []
        rng = np.random.default_rng([ord(well[0]), int(plate[1:])])
        for channel in CHANNELS[plate]:
            paths.append(folder / plate / f"{well}_{channel}.tif")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(paths[-1], rng.gamma(2, 400, (3 * SIZE, 3 * SIZE)).astype(np.uint16))
        sites.append(
            common
            | {"site_id": site_id, "well_id": well_id, "well": well, "site": "1", "timepoint": 0, "z": ""}
            | {"reader": "files", "channels": list(CHANNELS[plate]), "image_paths": [str(path) for path in paths]}
            | {"planes": [], "illumination_paths": []}
            | {"height": 3 * SIZE, "width": 3 * SIZE, "dtype": "uint16"}
        )
        crops += [
            common
            | {"crop_id": ids.crop_id(screen, plate, well, "1", y=y, x=x, size=SIZE), "site_id": site_id}
            | {"well_id": well_id, "well": well, "site": "1", "n_channels": len(paths), "y": y, "x": x, "size": SIZE}
            | {"foreground_share": 0.5}
            for y in range(0, 3 * SIZE, SIZE)
            for x in range(0, 3 * SIZE, SIZE)
        ]
    row = common | {"source": str(folder / plate), "reader": "files", "content_hash": plate, "pixel_size_um": None}
    row |= {"channels": list(CHANNELS[plate]), "n_wells": len(wells), "n_sites": len(sites), "n_crops": len(crops)}
    row |= {"n_quarantined": 0, "ingested_at": now}
    for table, rows in (("wells", wells), ("sites", sites), ("crops", crops), ("plates", [row])):
        catalog.write_plate(table, table_contract(table).rows(rows), plate_id=plate_id, content=1)
