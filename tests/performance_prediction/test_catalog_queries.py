"""Queries of a catalog whose genes differ in strength, predicted from vectors and from plate maps."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest
from rich.console import Console
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

import cytolake.catalog
from cytolake.performance_prediction.baselines import PREDICTOR
from cytolake.performance_prediction.catalog_queries import (
    QueriesConfig,
    crop_queries,
    descriptions,
    families,
    well_queries,
)
from cytolake.performance_prediction.prompt_predictor import PromptPredictorConfig, load_prompt_predictor
from cytolake.performance_prediction.prompt_table import PromptTableConfig
from cytolake.performance_prediction.query_predictor import QueryPredictorConfig
from cytolake.performance_prediction.registered import PROMPT_MODEL, find_query_predictor
from cytolake.pipeline import stages
from cytolake.pipeline.config import PerformanceConfig
from cytolake.recipes import build_recipe
from cytolake.tracking import TrackingConfig, find_folder

DIM, N_GENES, CROPS_EACH = 12, 24, 3
QUICK = QueryPredictorConfig(families=("tfidf", "ridge"), folds=2, outer_folds=2, bootstrap_draws=20)
FAST = {"folds": 2, "outer_folds": 2, "heteroscedastic": False, "bootstrap_draws": 20}
CONFIG = QueriesConfig(representation_id="trained", crops=600, queries=300, predictor=QUICK)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Half of the genes are essential: strong, and said to be so in their pathway. The others do nothing."""
    root = tmp_path_factory.mktemp("queries")
    catalog = empty_catalog(root)
    random = np.random.default_rng(0)
    effect = random.normal(size=(N_GENES, DIM))
    wells, embeddings, profiles = [], [], []
    for p in range(3):
        for place in range(N_GENES + 6):
            g = place if place < N_GENES else None
            well = {
                "well_id": f"p{p}-{place:02d}", "plate_id": f"p{p}", "screen": "s", "plate": f"p{p}", "batch": "b",
                "well": f"A{place + 1:02d}", "row": 0, "column": place, "is_negative_control": g is None,
                "has_images": True, "perturbation": "control" if g is None else f"gene{g}",
            }  # fmt: skip
            if g is not None:
                well |= {"gene": f"gene{g}", "pathway": "ribosome" if g % 2 else "olfactory receptor"}
            wells.append(well)
            strength = 0 if g is None else 3.0 * (g % 2)
            vectors = 2 + random.normal(size=(CROPS_EACH, DIM)) + (strength * effect[g] if g is not None else 0)
            ids = {"representation_id": "trained", "well_id": well["well_id"], "plate_id": f"p{p}"}
            embeddings += [
                {**ids, "crop_id": f"{well['well_id']}-{i}", "embedding": v.tolist()} for i, v in enumerate(vectors)
            ]
            profiles.append({**ids, "n_crops": CROPS_EACH, "profile": vectors.mean(axis=0).tolist()})
    representation = {
        "representation_id": "trained", "dim": DIM, "kind": "trained", "model_id": "m", "architecture": "x", "block": 0,
        "pack_id": "pack", "pooling": "mean", "created_at": datetime.now(UTC),
    }  # fmt: skip
    plates = [{"plate_id": f"p{p}", "plate": f"p{p}", "screen": "s"} for p in range(3)]
    for name, values in (
        ("wells", wells), ("plates", plates), ("embeddings", embeddings), ("profiles", profiles),
        ("representations", [representation]),
    ):  # fmt: skip
        add_rows(catalog, name, *values)
    return root


@pytest.fixture
def catalog(root):
    return cytolake.catalog.open(root)


def test_wells_are_described_and_grouped_by_what_was_done(catalog):
    queries = well_queries(catalog, "trained", CONFIG)
    assert len(queries) == 3 * N_GENES
    assert set(queries.family) == {f"gene{g}" for g in range(N_GENES)}
    assert queries.description[queries.perturbation.index("gene1")] == "gene gene1 pathway ribosome"
    strong = np.array(["ribosome" in text for text in queries.description])
    assert queries.performance[strong].mean() > queries.performance[~strong].mean() + 0.3
    assert len(queries.controls) == 18


def test_crops_are_drawn_evenly_from_wells_and_searched_on_other_plates(catalog):
    queries = crop_queries(catalog, "trained", dataclasses.replace(CONFIG, crops=100))
    assert queries.notes[0] == "100 of 270 crops search each other"
    assert len(queries) + len(queries.controls) == 100
    everything = crop_queries(catalog, "trained", CONFIG)
    assert len(everything) == 3 * N_GENES * CROPS_EACH


def test_the_number_of_queries_can_be_limited(catalog):
    assert len(well_queries(catalog, "trained", dataclasses.replace(CONFIG, queries=40))) == 40


def test_a_missing_representation_is_an_error(catalog):
    with pytest.raises(ValueError, match="representation other has no profiles"):
        well_queries(catalog, "other", CONFIG)


def test_names_fall_back_from_compound_to_gene_to_perturbation(catalog):
    from cytolake.benchmark.profiles.wells import read_wells

    wells = read_wells(catalog, "trained")
    bare = dataclasses.replace(wells, gene=("",) * len(wells.gene), pathway=("",) * len(wells.gene))
    assert set(families(bare)) == {*(f"gene{g}" for g in range(N_GENES)), "control"}
    assert set(descriptions(bare)) == {""}


@pytest.fixture(scope="module")
def config(root):
    recipe = build_recipe("demo")
    return dataclasses.replace(recipe, root=str(root), performance=PerformanceConfig(queries=CONFIG))


def test_the_job_judges_registers_and_draws_both_predictors(config, root):
    console = Console(width=160, record=True)
    stages.predict_performance(config, console)
    text = console.export_text()
    for measure in ("Average precision", "Replicate consistency"):
        assert f"{measure} before the search" in text
        assert f"{measure} before the screen" in text
    page = (root / "report" / "performance.html").read_text()
    assert "<svg" in page
    assert "distance from controls" in page
    tracking = TrackingConfig().at(root)
    for before in ("search", "screen"):
        found = find_query_predictor(tracking, before, "trained")
        assert found.version == 1
        assert found.predictor.before == before
        assert find_query_predictor(tracking, before, "another") is None
        assert find_query_predictor(tracking, before, "trained", found) is found
    strong, weak = found.predictor.predict(
        description=["gene x pathway ribosome", "gene x pathway olfactory receptor"], numbers=np.full((2, 1), np.nan)
    ).score
    assert strong > weak + 0.2


def test_the_job_learns_prompts_where_a_table_is_named(root, tmp_path):
    random = np.random.default_rng(0)
    names = ("dog", "cat", "train", "clock", "kite", "hand", "boat", "lamp")
    places = ("indoors", "outdoors", "at night", "in rain", "in snow", "on grass", "by a wall", "on a hill")
    lines = ["prompt,score"]
    for i, name in enumerate(names):
        lines += [f"a {name} {place},{i + 0.5 * j + 0.1 * random.normal():.4f}" for j, place in enumerate(places)]
    (tmp_path / "prompts.csv").write_text("\n".join(lines))
    performance = PerformanceConfig(
        prompts=PromptTableConfig(path=str(tmp_path / "prompts.csv")),
        prompt_predictor=PromptPredictorConfig(
            families=("tfidf",), folds=2, outer_folds=2, heteroscedastic=False, bootstrap_draws=20
        ),
    )
    config = dataclasses.replace(build_recipe("demo"), root=str(root), performance=performance)
    console = Console(width=160, record=True)
    stages.predict_performance(config, console)
    assert "Prompts: score" in console.export_text()
    folder, version, tags = find_folder(TrackingConfig().at(root), PROMPT_MODEL)
    assert (version, tags["table"]) == (1, "prompts.csv")
    assert (folder / "scores.json").is_file()
    low, high = load_prompt_predictor(folder).predict(["a dog indoors", "a lamp on a hill"]).score
    assert high > low + 4
    assert PREDICTOR in (folder / "scores.json").read_text()


def test_where_prompts_cannot_be_predicted_the_baseline_is_registered_in_bold_with_the_reason(root, tmp_path):
    random = np.random.default_rng(0)
    names = ("dog", "cat", "train", "clock", "kite", "hand", "boat")
    places = ("indoors", "outdoors", "at night", "in rain", "in snow", "on grass", "by a wall", "on a hill")
    lines = ["prompt,score", *(f"a {name} {place},{random.normal():.4f}" for name in names for place in places)]
    (tmp_path / "prompts.csv").write_text("\n".join(lines))
    performance = PerformanceConfig(
        prompts=PromptTableConfig(path=str(tmp_path / "prompts.csv")),
        prompt_predictor=PromptPredictorConfig(
            families=("ridge",), folds=2, outer_folds=3, heteroscedastic=False, bootstrap_draws=20
        ),
    )
    config = dataclasses.replace(build_recipe("demo"), root=str(root), performance=performance)
    console = Console(width=160, record=True)
    stages.predict_performance(config, console)
    page = (root / "report" / "performance.html").read_text()
    assert '<tr class="first"><td>best baseline</td>' in page
    assert page.count('class="first"') == 1
    assert "is registered, not the predictor" in page
    assert "56 prompts, each predicted by a fit without its group of near-duplicates (3 folds" in page
    assert "is registered, not the predictor" in console.export_text()
    folder, _, tags = find_folder(TrackingConfig().at(root), PROMPT_MODEL)
    assert tags["registered"] in ("mean score", "prompt length", "TF-IDF and ridge")
    assert len(load_prompt_predictor(folder).stack.members) == 1
    assert "best baseline" in (folder / "scores.json").read_text()
