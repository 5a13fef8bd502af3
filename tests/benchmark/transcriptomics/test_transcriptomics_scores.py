"""Scores of an expression screen in the catalog: written, ranked, reused and left out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.benchmark.leaderboard import EXPRESSION, LeaderboardFilter, leaderboard
from cytolake.benchmark.relations.relation_files import Relations
from cytolake.benchmark.transcriptomics import (
    TASKS,
    DecoderConfig,
    EmbeddingConfig,
    ScreenSpec,
    TranscriptomicsConfig,
    score_embeddings,
    scores,
    scores_table,
)
from cytolake.benchmark.transcriptomics.config import SETTINGS_OF, WITHOUT_SPLIT
from cytolake.benchmark.transcriptomics.perturbation_signal import write_targets
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.scores import score_expression_screen
from cytolake.benchmark.transcriptomics.tasks import TaskInput, run_task
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.reports.leaderboard_page import encoder_name, leaderboard_text, write_leaderboard
from cytolake.reports.transcriptomics_page import write_transcriptomics

CONFIG = TranscriptomicsConfig(
    embedding=EmbeddingConfig(n_components=10, random_width=16),
    decoder=DecoderConfig(epochs=12, warm_up_epochs=2, learning_rate=3e-3, minibatch_size=64),
    perplexity=12,
    mixing_rows="all",
    n_neighbours=21,
    signal_draws=39,
    bootstrap_draws=50,
)
RELATIONS = Relations("programmes", tuple((f"gene{2 * i}", f"gene{2 * i + 1}") for i in range(4)), 4)
NAMES = ("pca", "random", "scrambled_pca", "model")
PCA, RANDOM, SCRAMBLED = "pca (n_components=10)", "random (random_width=16)", "scrambled_pca (n_components=10)"
SETTINGS: dict[str, Any] = {"relations": [RELATIONS], "config": CONFIG, "seeds": (0, 1)}


@pytest.fixture(scope="module")
def path(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "simulated.h5ad"
    data.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return empty_catalog(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def scored(catalog, path, spec) -> scores.ScreenScores:
    return score_expression_screen(catalog, path, spec, NAMES, **SETTINGS)


def ranking(catalog, pack_id, benchmark, metric):
    rows = leaderboard(catalog, LeaderboardFilter(pack_id=pack_id, benchmark=benchmark, metric=metric)).to_pylist()
    return [encoder_name(row) for row in rows]


def count_calls(monkeypatch) -> list[tuple[str, str]]:
    """Embedding and task of every scoring from now on."""
    calls: list[tuple[str, str]] = []
    real = scores.score_embeddings

    def counted(screen, spec, embeddings, tasks, *arguments, **keywords):
        calls.extend((each, task) for each in embeddings for task in tasks)
        return real(screen, spec, embeddings, tasks, *arguments, **keywords)

    monkeypatch.setattr(scores, "score_embeddings", counted)
    return calls


@pytest.mark.parametrize(
    ("benchmark", "metric"),
    [
        ("linear_separability", "top1_standardised"),
        ("nearest_neighbours", "top1"),
        ("known_relations", "recall"),
        ("perturbation_signal", "consistent_share"),
        ("perturbation_signal", "distinct_share"),
        ("reconstruction", "r2"),
        ("reconstruction", "pearson"),
        ("reconstruction", "mse"),
    ],
)
def test_principal_components_rank_above_noise(catalog, scored, benchmark, metric):
    ranked = ranking(catalog, scored.pack_id, benchmark, metric)
    assert set(ranked) == {PCA, "model", RANDOM, SCRAMBLED}
    assert ranked.index(PCA) < min(ranked.index(RANDOM), ranked.index(SCRAMBLED))


def test_noise_can_lead_the_mixing_of_batches(catalog, scored):
    assert set(ranking(catalog, scored.pack_id, "batch_mixing", "ilisi_normalised")[:1]) <= {RANDOM, SCRAMBLED}


def test_the_rows_are_those_of_the_benchmark_with_what_the_catalog_needs(catalog, scored, data, spec):
    pairs = {RELATIONS.source: RELATIONS.pairs}
    names = ("random", "model")
    expected = scores_table(
        score_embeddings(data, spec, names, seeds=(0, 1), post_processing=("centred",), relations=pairs, config=CONFIG)
    ).to_pylist()
    ids = {scored.representation_ids[name] for name in names}
    found = {(r["representation_id"], r["benchmark"], r["metric"], r["seed"]): r for r in scored.rows}
    assert len(found) == len(scored.rows) == scored.n_new
    n_compared = 0
    for row in expected:
        if row["metric"].startswith("converged"):
            continue
        metric = "recall" if row["task"] == "known_relations" else row["metric"]
        other = found[scored.representation_ids[row["embedding"]], row["task"], metric, row["seed"]]
        assert (other["value"], other["n_test"]) == (pytest.approx(row["value"]), row["n"])
        assert (other["ci_low"], other["ci_high"]) == (pytest.approx(row["ci_low"]), pytest.approx(row["ci_high"]))
        assert other["label"] == {"known_relations": "programmes", "batch_mixing": "gem"}.get(row["task"], "target")
        is_fitted = row["task"] in ("linear_separability", "nearest_neighbours", "reconstruction")
        assert other["split"] == ("batch" if is_fitted else "")
        assert bool(other["held_out"]) == (is_fitted and row["seed"] >= 0)
        assert other["alignment"] == "centred"
        details = json.loads(other["details"])
        assert (details["screen"], details["n_rows"]) == ("simulated", len(data))
        assert ("converged" in details) == (row["task"] == "linear_separability")
        for chance in ("chance", "chance_majority"):
            assert details.get(chance) == (None if row[chance] is None else pytest.approx(row[chance]))
        assert ("targets" in details) == (row["metric"].endswith("_share") and row["seed"] >= 0)
        n_compared += 1
    assert n_compared == sum(row["representation_id"] in ids for row in scored.rows)
    stored = catalog.table("scores").sort_by("score_id").to_pylist()
    assert [row["score_id"] for row in stored] == sorted(row["score_id"] for row in scored.rows)
    assert {row["seed"] for row in stored} == {-1, 0, 1}
    rows = catalog.table("representations").to_pylist()
    assert {(row["architecture"], row["dim"]) for row in rows} == {
        (PCA, 10), (RANDOM, 16), (SCRAMBLED, 10), ("model", 16)
    }  # fmt: skip
    assert {(row["kind"], row["pack_id"], row["block"], row["pooling"]) for row in rows} == {
        ("expression", scored.pack_id, -1, "all")
    }


def test_a_second_run_computes_nothing_and_a_new_embedding_or_task_alone(catalog, scored, path, spec, monkeypatch):
    calls = count_calls(monkeypatch)
    before = catalog.versions()
    again = score_expression_screen(catalog, path, spec, NAMES, **SETTINGS)
    assert (calls, again.n_new, catalog.versions()) == ([], 0, before)
    by_target = {(row["embedding"], row["test"], row["perturbation"], row["seed"]) for row in again.target_rows()}
    assert len(by_target) == len(again.target_rows()) == len(NAMES) * 2 * 8 * 2  # also of what was computed before
    assert {row["score_id"] for row in again.rows} == {row["score_id"] for row in scored.rows}
    more = score_expression_screen(catalog, path, spec, [*NAMES, "scrambled_pca_within_batch"], **SETTINGS)
    assert calls == [("scrambled_pca_within_batch", task) for task in TASKS]
    assert len(ranking(catalog, more.pack_id, "reconstruction", "r2")) == 5
    calls.clear()
    score_expression_screen(catalog, path, spec, ["random"], **SETTINGS | {"post_processing": ("none", "centred")})
    assert calls == [("random", task) for task in TASKS]


def test_a_killed_run_goes_on_where_it_was(path, spec, tmp_path, monkeypatch):
    catalog = empty_catalog(tmp_path)
    real = scores.score_embeddings

    def killed(screen, spec, embeddings, tasks, *arguments, **keywords):
        if (*embeddings, *tasks) == ("random", "nearest_neighbours"):
            raise KeyboardInterrupt
        return real(screen, spec, embeddings, tasks, *arguments, **keywords)

    tasks = ("linear_separability", "nearest_neighbours")
    with monkeypatch.context() as patched:
        patched.setattr(scores, "score_embeddings", killed)
        with pytest.raises(KeyboardInterrupt):
            score_expression_screen(catalog, path, spec, ["pca", "random"], tasks, **SETTINGS)
    assert catalog.table("representations")["architecture"].to_pylist() == [PCA]
    calls = count_calls(monkeypatch)
    calls_back: list[tuple[str, int, int]] = []
    whole = score_expression_screen(
        catalog, path, spec, ["pca", "random"], tasks, **SETTINGS, progress=lambda *where: calls_back.append(where)
    )
    assert calls == [("random", task) for task in tasks]
    steps = ["reading the screen", *tasks]
    n_done = [0, 0, 1]
    shown = [(f"random, {step}", n, 2) for step, n in zip(steps, n_done, strict=True)]
    assert calls_back == [*shown, ("random", 2, 2)]
    assert len(catalog.table("scores")) == len(whole.rows) > whole.n_new > 0


@pytest.mark.slow
def test_other_settings_start_a_ranking_of_their_own_and_other_components_do_not(path, spec, tmp_path, monkeypatch):
    catalog = empty_catalog(tmp_path)
    wide = dataclasses.replace(CONFIG, embedding=dataclasses.replace(CONFIG.embedding, n_components=5))
    few = dataclasses.replace(CONFIG, n_neighbours=5)
    tasks = ("nearest_neighbours",)
    for config in (CONFIG, wide):
        scored = score_expression_screen(catalog, path, spec, ["pca"], tasks, **SETTINGS | {"config": config})
    assert set(ranking(catalog, scored.pack_id, *tasks, "top1")) == {PCA, "pca (n_components=5)"}
    again = score_expression_screen(catalog, path, spec, ["random"], tasks, **SETTINGS | {"config": few})
    assert again.pack_id == scored.pack_id
    first, *others = ranking(catalog, scored.pack_id, *tasks, "top1")
    assert first == RANDOM  # the newest settings, in a ranking of their own
    assert set(others) == {PCA, "pca (n_components=5)"}
    calls = count_calls(monkeypatch)
    score_expression_screen(catalog, path, spec, ["random"], [*tasks, "known_relations"], **SETTINGS | {"config": few})
    assert calls == [("random", "known_relations")]  # neighbours as before
    score_expression_screen(catalog, path, spec, ["random"], [*tasks, "known_relations"], **SETTINGS)
    assert calls[1:] == [("random", "nearest_neighbours")]  # relations know no neighbours


def test_a_task_is_computed_again_for_every_setting_that_it_reads_and_for_no_other(screen):
    """Each task runs with a config that records what is read of it."""
    read: set[str] = set()

    class Watched:
        def __getattr__(self, name):
            read.add(name)
            return getattr(CONFIG, name)

    pairs = {RELATIONS.source: list(RELATIONS.pairs)}
    for task, settings in SETTINGS_OF.items():
        read.clear()
        split = None if task in WITHOUT_SPLIT else split_screen(screen, 0, Watched().train_share)
        run_task(task, TaskInput(screen, screen.embeddings["model"], split, 0, Watched(), pairs))
        assert read == set(settings)


@pytest.mark.slow
def test_two_screens_and_images_do_not_hide_each_other_s_rankings(path, spec, data, tmp_path):
    catalog = empty_catalog(tmp_path / "lake")
    fewer = tmp_path / "fewer.h5ad"
    data[:400].copy().write_h5ad(fewer)
    ids = [
        score_expression_screen(catalog, each, spec, ["random"], ["nearest_neighbours"], **SETTINGS).pack_id
        for each in (path, fewer)
    ]
    assert len(set(ids)) == 2
    row = catalog.table("scores", where="metric = 'top1' and seed = -1").to_pylist()[0]
    image = {
        "representation_id": "image", "kind": "trained", "model_id": "m", "architecture": "vit", "block": 0,
        "pooling": "mean", "dim": 4, "pack_id": "pack",
    }  # fmt: skip
    add_rows(catalog, "representations", image)
    older = row | {"representation_id": "image", "score_id": "older", "protocol": "wells", "details": None}
    older["scored_at"] = older["scored_at"].replace(year=2020)
    add_rows(catalog, "scores", older)
    rows = leaderboard(catalog, LeaderboardFilter(metric="top1"))
    assert sorted(rows["screen_id"].to_pylist()) == sorted(["", *ids])
    page = write_leaderboard(catalog, tmp_path / "page.html", title="all").read_text(encoding="utf-8")
    assert f"screen fewer {ids[1][:8]}" in page
    assert "held out by batch" in page
    assert len(leaderboard_text(rows).renderables) == 6


def test_one_empty_cell_costs_its_row_and_is_in_the_scores_and_on_the_page(path, spec, data, tmp_path):
    catalog = empty_catalog(tmp_path / "lake")
    faulty = data.copy()
    faulty.obs["target"] = faulty.obs["target"].astype(str).where(np.arange(len(data)) != 3, "")
    counts = faulty.X.tolil()
    counts[5] = 0
    faulty.X = counts.tocsr()
    faulty.write_h5ad(tmp_path / "faulty.h5ad")
    tasks = ["perturbation_signal", "nearest_neighbours"]
    for n_new in (True, False):
        scored = score_expression_screen(
            catalog, tmp_path / "faulty.h5ad", spec, ["model", "random"], tasks, **SETTINGS
        )
        assert (scored.n_new > 0) == n_new
        assert scored.notes() == [
            "1 row left out, no value in target: cell3", "1 row left out, no counts at all: cell5",
        ]  # fmt: skip
    assert {json.loads(row["details"])["n_rows"] for row in scored.rows} == {len(data) - 2}
    rows = leaderboard(catalog, LeaderboardFilter(pack_id=scored.pack_id)).to_pylist()
    page = write_transcriptomics(
        tmp_path / "page.html", "faulty", rows, scored.target_rows(), notes=scored.notes(), targets_file="t.csv"
    ).read_text(encoding="utf-8")
    assert "no counts at all: cell5" in page
    first_sentence = page[page.index('<p class="result">') : page.index("</p>")]
    assert "model, centred is first in 3 of 3 rankings of 2 embeddings" in first_sentence
    assert page.index('class="result"') < page.index("<svg") < page.index("<table>")
    assert "<td>gene7</td>" in page
    # 4 of neighbours, over rows and balanced, and 4 of signal, by p and by q
    assert page.count('<th class="n">chance</th>') == 8
    assert page.count("most frequent class</th>") == 4
    assert "balanced top1" in page
    write_targets(scored.target_rows(), tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 2 * 2 * 8 * 2
    with pytest.raises(ValueError, match=r"expected \.csv or \.parquet"):
        write_targets(scored.target_rows(), tmp_path / "t.xlsx")


def test_a_setting_that_is_new_and_not_used_leaves_a_screen_its_identity(path, spec, catalog, scored):
    other = dataclasses.replace(spec, separator="|")
    again = score_expression_screen(catalog, path, other, ["random"], ["nearest_neighbours"], **SETTINGS)
    assert again.pack_id != scored.pack_id
    where = {
        "perturbation": "target", "control": spec.control, "batch": "gem", "values": "counts", "layer": None,
        "matrix_key": None, "gene_name": None, "embeddings": [],
    }  # fmt: skip
    content = scores._content(path)
    assert scored.pack_id == content_id(EXPRESSION, content, json.dumps(where, sort_keys=True))


def test_what_the_screen_does_not_allow_is_left_out_and_says_why(path, spec, data, tmp_path):
    catalog = empty_catalog(tmp_path / "lake")
    bare = data.copy()
    bare = type(bare)(obs=bare.obs, obsm={"model": bare.obsm["model"]})
    bare.write_h5ad(tmp_path / "bare.h5ad")
    spec = dataclasses.replace(spec, values="features")
    config = dataclasses.replace(CONFIG, perplexity=400)
    scored = score_expression_screen(
        catalog, tmp_path / "bare.h5ad", spec, ["pca", "random", "model"], **SETTINGS | {"config": config}
    )
    reasons = dict(scored.reasons())
    assert set(reasons) == {
        "batch_mixing of random, model", "reconstruction of random, model",
        f"{', '.join(TASKS)} of pca",
    }  # fmt: skip
    assert "set config.perplexity" in reasons["batch_mixing of random, model"]
    assert "X is empty" in reasons["reconstruction of random, model"]
    assert {row["benchmark"] for row in scored.rows} == set(TASKS) - {"batch_mixing", "reconstruction"}
    with pytest.raises(ValueError, match=r"bare\.h5ad: nothing could be scored; reconstruction of model: .*X is empty"):
        score_expression_screen(catalog, tmp_path / "bare.h5ad", spec, ["model"], ["reconstruction"], **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"perturbation": "gene"}}, r"simulated\.h5ad: no column 'gene', found target.*--perturbation"),
        ({"spec": {"batch": "plate"}}, r"simulated\.h5ad: no column 'plate'.*--batch"),
        (
            {"spec": {"control": "DMSO"}},
            r"simulated\.h5ad, column target: no row is 'DMSO'.*control \(.* rows\).*--control",
        ),
        ({"spec": {"matrix_key": "pixels"}}, r"simulated\.h5ad: no obsm 'pixels', found model.*--matrix-key"),
        ({"spec": {"embeddings": ("pca",)}}, r"spec\.embeddings: pca is also the name of a built-in embedding"),
        ({"path": "missing.h5ad"}, r"missing\.h5ad: no such file"),
        ({"embeddings": ["uce"]}, "embedding 'uce' is unknown"),
        ({"embeddings": []}, "embeddings is empty"),
        ({"tasks": ["sorting"]}, "tasks sorting: expected some of batch_mixing"),
        ({"relations": []}, "the task known_relations has no relations"),
        ({"relations": [RELATIONS, RELATIONS]}, "relations: programmes comes twice"),
        ({"post_processing": ["tvn3"]}, "post-processing 'tvn3' is unknown"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name_and_writes_nothing(path, spec, tmp_path, change, message):
    catalog = empty_catalog(tmp_path)
    change = {"embeddings": ["random"], **SETTINGS, **change}
    given = change.pop("path", path)
    requested = dataclasses.replace(spec, **change.pop("spec", {}))
    with pytest.raises(ValueError, match=message):
        score_expression_screen(catalog, given, requested, **change)
    assert catalog.table("representations").num_rows == catalog.table("scores").num_rows == 0


def test_a_missing_extra_is_an_error_before_anything_is_computed(path, spec, tmp_path, monkeypatch):
    catalog = empty_catalog(tmp_path)
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(ImportError, match=r"pip install 'cytolake\[scvi\]'"):
        score_expression_screen(catalog, path, spec, ["random", "scvi"], **SETTINGS)
    assert catalog.table("scores").num_rows == 0


@pytest.mark.slow
@pytest.mark.real_data
def test_principal_components_of_real_cells_rank_above_noise(real_data, tmp_path):
    """Perturb-seq of THP-1 cells: 400 of the interferon pathway, 400 others and 400 controls."""
    import anndata

    source = real_data / "papalexi2021_eccite_subset" / "papalexi2021_thp1_290genes.h5ad"
    if not source.is_file():
        pytest.skip(f"{source.name} is not next to this checkout")
    cells = anndata.read_h5ad(source)
    pathway = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
    labels = cells.obs["perturbation"].astype(str).to_numpy()
    random = np.random.default_rng(0)
    others = ~np.isin(labels, (*pathway, "control"))
    kept = [random.permutation(np.flatnonzero(which))[:400] for which in (np.isin(labels, pathway), others)]
    kept.append(random.permutation(np.flatnonzero(labels == "control"))[:400])
    cells[np.sort(np.concatenate(kept))].copy().write_h5ad(tmp_path / "thp1.h5ad")
    catalog = empty_catalog(tmp_path / "lake")
    related = Relations("ifn_gamma", tuple((a, b) for a in pathway for b in pathway if a < b), 6)
    config = dataclasses.replace(CONFIG, embedding=EmbeddingConfig(), bootstrap_draws=100)
    spec = ScreenSpec(perturbation="perturbation", control="control", batch="bio_rep")
    names = ["pca", "random", "scrambled_pca"]
    settings = SETTINGS | {"relations": [related], "config": config}
    scored = score_expression_screen(catalog, tmp_path / "thp1.h5ad", spec, names, **settings)
    assert scored.left_out == ()
    for benchmark, metric in (
        ("known_relations", "recall"),
        ("perturbation_signal", "distinct_share"),
        ("reconstruction", "r2"),
        ("reconstruction", "pearson"),
    ):
        assert ranking(catalog, scored.pack_id, benchmark, metric)[0] == "pca"
