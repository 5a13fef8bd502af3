from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError
from cytolake.curation.rules import QcStep
from cytolake.models import VisionTransformer, save_encoder
from cytolake.models.config import ModelConfig
from cytolake.qc.detector import learned as qc_learned
from cytolake.qc.detector import plates as qc_plates
from cytolake.qc.detector.detector import ArtefactDetector, DetectorError, Example
from cytolake.qc.detector.encoders import FeatureConfig, FeatureError, build_extractors, features_key
from cytolake.qc.detector.features import feature_names
from cytolake.qc.detector.learned import QcTrainConfig, judge_with_detector, labelled_sites, train_detector
from cytolake.qc.detector.plates import PlateSites, Spoiling
from cytolake.qc.labels import read_label_sheet
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS

LABEL_OF = {"blur": "defocus"}
"""Label of an artefact of the simulated screen, where the names differ."""
FEATURES = FeatureConfig(reference_sites=8)
CONFIG = QcTrainConfig(features=FEATURES)


@pytest.fixture(scope="module")
def ingested(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of three plates of twelve sites, a quarter of them spoilt, and a sheet with labels of two plates."""
    root = tmp_path_factory.mktemp("learned") / "copy"
    shutil.copytree(simulated_root, root)
    catalog = cytolake.catalog.open(root / "catalog")
    with (root / "screens" / "simulated" / "platemap.csv").open() as file:
        artefacts = {(row["plate"], row["well"]): row["artefact"] for row in csv.DictReader(file)}
    with (root / "labels.csv").open("w") as file:
        file.write("site_id,label\n")
        for site in catalog.table("sites").to_pylist():
            artefact = artefacts[site["plate"], site["well"]]
            if site["plate"] != "P03":
                file.write(f"{site['site_id']},{LABEL_OF.get(artefact, artefact) or 'normal'}\n")
    return root


@pytest.fixture(scope="module")
def labelled(ingested: Path) -> Catalog:
    """The catalog with the labels of two plates; tests leave it as it is."""
    found = cytolake.catalog.open(ingested / "catalog")
    read_label_sheet(found, ingested / "labels.csv", "ann")
    return found


@pytest.fixture(scope="module")
def detector(labelled: Catalog) -> ArtefactDetector:
    return train_detector(labelled, CONFIG)


@pytest.fixture(scope="module")
def judged(labelled: Catalog, detector: ArtefactDetector, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A copy with the detector's verdicts."""
    catalog = copy_of(labelled, tmp_path_factory.mktemp("judged"))
    judge_with_detector(catalog, detector)
    return catalog


def copy_of(catalog: Catalog, folder: Path, *, without: str = "") -> Catalog:
    shutil.copytree(catalog.root, folder / "catalog")
    if without:
        shutil.rmtree(folder / "catalog" / "tables" / without)
    return cytolake.catalog.open(folder / "catalog", create=True)


def spoilt_wells(ingested: Path) -> set[tuple[str, str]]:
    with (ingested / "screens" / "simulated" / "platemap.csv").open() as file:
        return {(row["plate"], row["well"]) for row in csv.DictReader(file) if row["artefact"]}


def test_a_detector_trained_on_labels_of_two_plates_finds_the_spoilt_sites_of_the_third(judged, ingested):
    rows = judged.sql(
        "SELECT s.plate, s.well, max(value) AS value FROM qc_verdicts v JOIN sites s ON s.site_id = v.site_id "
        "WHERE rule = 'learned_artefact' AND s.plate = 'P03' GROUP BY ALL"
    ).to_pylist()
    spoilt = spoilt_wells(ingested)
    assert len(rows) == 12
    found = sorted(rows, key=lambda row: -row["value"])
    n = sum(plate == "P03" for plate, _ in spoilt)
    assert n == 3
    assert sum((row["plate"], row["well"]) in spoilt for row in found[:n]) >= n - 1


def test_verdicts_say_channel_kind_and_well(judged):
    verdicts = judged.table("qc_verdicts").to_pylist()
    sites = {row["site_id"]: row for row in judged.table("sites").to_pylist()}
    each = [row for row in verdicts if row["rule"] == "learned_artefact"]
    assert {(row["site_id"], row["channel_index"]) for row in each} == {(s, c) for s in sites for c in range(5)}
    for row in each:
        assert row["level"] == "site"
        assert row["well_id"] == sites[row["site_id"]]["well_id"]
        assert row["channel"] == sites[row["site_id"]]["channels"][row["channel_index"]]
        assert row["is_pass"] == (row["value"] <= row["threshold"] == 0.5)
    failed = {(row["site_id"], row["channel_index"]): row["value"] for row in each if not row["is_pass"]}
    assert failed
    kinds = [row for row in verdicts if row["rule"] not in ("learned_artefact", "learned_spoilt_sites")]
    assert {(row["site_id"], row["channel_index"]): row["value"] for row in kinds} == failed
    assert {row["rule"] for row in kinds} <= {f"learned_{kind}" for kind in ARTEFACT_KINDS}
    wells = {row["well_id"]: row for row in verdicts if row["level"] == "well"}
    assert len(wells) == 36
    assert {well for well, row in wells.items() if not row["is_pass"]} == {sites[s]["well_id"] for s, _ in failed}


def test_judging_again_reads_and_writes_nothing(judged, detector, monkeypatch):
    calls: list[tuple[object, ...]] = []
    version = judged.versions()["qc_verdicts"]
    monkeypatch.setattr(qc_learned, "PlateSites", None)
    qc_id = judge_with_detector(judged, detector, lambda *progress: calls.append(progress))
    assert {qc_id} == set(judged.table("qc_verdicts").column("qc_id").to_pylist())
    assert judged.versions()["qc_verdicts"] == version
    assert calls == [("plates judged", n, 3) for n in (1, 2, 3)]


def test_judging_that_was_cut_off_goes_on_to_the_same_verdicts(labelled, judged, detector, monkeypatch, tmp_path):
    catalog = copy_of(labelled, tmp_path)
    append, n = Catalog.append, 0

    def killed(self, name, rows, **named):
        nonlocal n
        n += name == "qc_verdicts"
        if n == 2:
            raise KeyboardInterrupt
        return append(self, name, rows, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            judge_with_detector(catalog, detector)
    assert catalog.sql("SELECT count(DISTINCT plate_id) FROM qc_verdicts").column(0)[0].as_py() == 1
    judge_with_detector(catalog, detector)
    written = [
        {tuple(value for name, value in row.items() if name != "judged_at") for row in each.to_pylist()}
        for each in (catalog.table("qc_verdicts"), judged.table("qc_verdicts"))
    ]
    assert written[0] == written[1]
    assert catalog.table("qc_verdicts").num_rows == len(written[0])


def test_a_curation_can_leave_out_what_a_detector_fails(judged):
    qc_id = judged.table("qc_verdicts").column("qc_id")[0].as_py()
    step = QcStep(qc_id=qc_id).resolved(judged, "test")
    failed = judged.sql("SELECT DISTINCT site_id FROM qc_verdicts WHERE NOT is_pass AND level = 'site'").column(0)
    assert sorted(step._failed(judged, "site").column("site_id").to_pylist()) == sorted(failed.to_pylist())


def test_a_detector_read_from_its_file_has_the_verdicts_of_the_one_that_was_trained(judged, detector, tmp_path):
    detector.save(tmp_path / "detector.safetensors")
    again = ArtefactDetector.load(tmp_path / "detector.safetensors")
    version = judged.versions()["qc_verdicts"]
    assert judge_with_detector(judged, again) == judged.table("qc_verdicts").column("qc_id")[0].as_py()
    assert judged.versions()["qc_verdicts"] == version


def test_a_site_has_the_same_features_with_whatever_others_it_is_measured(labelled):
    plate = labelled.table("plates").column("plate_id")[0].as_py()
    features = FeatureConfig(reference_sites=5)
    key = features_key(features, build_extractors(features))
    sites = PlateSites(labelled, plate, key)
    assert len(sites.reference_ids) == 5
    together = {site.site_id: site.deviations for site in sites.measure(sites.site_ids)}
    (alone,) = PlateSites(labelled, plate, key).measure([sites.site_ids[-1]])
    np.testing.assert_array_equal(alone.deviations, together[sites.site_ids[-1]])


def test_a_spoiled_site_has_the_features_of_its_spoilt_pixels_and_says_which_channels(labelled):
    plate = labelled.table("plates").column("plate_id")[0].as_py()
    key = features_key(FEATURES, build_extractors(FEATURES))
    sites = PlateSites(labelled, plate, key)
    site = sites.reference_ids[0]
    plain, spoilt = sites.measure([site, site], {1: Spoiling("dead_channel", 1.0, 3)})
    assert not plain.is_spoilt.any()
    assert spoilt.is_spoilt.sum() == 1
    own = slice(0, -4)  # the last ones compare a channel with the others
    has_changed = plain.deviations[:, own] != spoilt.deviations[:, own]
    common = feature_names(build_extractors(FEATURES)).index("common_brightness")  # of the site
    np.testing.assert_array_equal(np.delete(has_changed, common, axis=1).any(axis=1), spoilt.is_spoilt)


@pytest.mark.slow
def test_without_labels_there_is_a_detector_of_simulated_artefacts(labelled, tmp_path):
    catalog = copy_of(labelled, tmp_path, without="qc_labels")
    sites = labelled_sites(catalog, replace(CONFIG, simulated_per_kind=4))
    labels = [example.label for example in sites.examples]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(("normal", *ARTEFACT_KINDS), 4)
    assert all(example.is_spoilt.any() for example in sites.examples if example.label != "normal")
    assert len(set(sites.plates)) == 3
    detector = ArtefactDetector.fit(sites.examples, sites.features, features_key=sites.features_key)
    plate = PlateSites(catalog, sites.plates[0], sites.features_key)
    for kind in ("defocus", "saturation"):
        spoilings = {12 + i: Spoiling(kind, 1.0, i) for i in range(12)}
        measured = plate.measure([*plate.site_ids, *plate.site_ids], spoilings)
        found = detector.artefact_probabilities([site.deviations for site in measured])
        assert np.mean(found[12:, None] > found[None, :12]) > 0.9


@pytest.mark.slow
def test_what_is_simulated_is_decided_by_the_seed(labelled, tmp_path):
    catalog = copy_of(labelled, tmp_path, without="qc_labels")
    with pytest.raises(CatalogError, match="no site has a label"):
        labelled_sites(catalog)
    config = replace(CONFIG, simulated_per_kind=1)
    first, again, other = (labelled_sites(catalog, replace(config, seed=seed)) for seed in (0, 0, 1))
    same = [
        np.array_equal(one.deviations, two.deviations) for one, two in zip(first.examples, again.examples, strict=True)
    ]
    assert all(same)
    assert any(
        (one.deviations != two.deviations).any() for one, two in zip(first.examples, other.examples, strict=True)
    )


@pytest.mark.slow
def test_only_plates_with_unlabelled_sites_are_spoiled(labelled):
    sites = labelled_sites(labelled, replace(CONFIG, simulated_per_kind=1))
    (third,) = labelled.table("plates", columns=["plate_id"], where="plate = 'P03'").column(0).to_pylist()
    assert len(sites.examples) == 24 + 11
    assert sites.plates.count(third) == 11


def test_labels_that_name_channels_spoil_only_those(labelled, tmp_path):
    catalog = copy_of(labelled, tmp_path, without="qc_labels")
    site = catalog.table("sites", where="plate = 'P03'").to_pylist()[0]
    (tmp_path / "more.csv").write_text(f"site_id,label,spoilt_channels\n{site['site_id']},debris,ER;Mito\n")
    assert read_label_sheet(catalog, tmp_path / "more.csv", "bob") == 1
    sites = labelled_sites(catalog, CONFIG)
    (example,) = sites.examples
    assert sites.plates == (site["plate_id"],)
    assert [c for c, is_spoilt in zip(site["channels"], example.is_spoilt, strict=True) if is_spoilt] == ["ER", "Mito"]


@pytest.mark.slow
def test_an_encoder_can_be_added_to_the_statistics_and_must_be_the_same_when_judging(labelled, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(VisionTransformer(ModelConfig(crop_size=32, width=16, depth=1, heads=2)), path)
    config = replace(CONFIG, features=FeatureConfig(checkpoint=str(path), windows_per_side=1, reference_sites=4))
    detector = train_detector(labelled, config)
    assert "encoder_15" in detector.features
    save_encoder(VisionTransformer(ModelConfig(crop_size=32, width=16, depth=1, heads=2)), path)
    qc_plates._extractors.cache_clear()  # as another process would find it
    with pytest.raises(FeatureError, match="as at its training"):
        judge_with_detector(labelled, detector)


def test_a_detector_without_a_key_of_its_features_is_refused(labelled):
    rng = np.random.default_rng(0)
    examples = [Example(rng.standard_normal((2, 3)), label) for label in ("normal", "noise")]
    detector = ArtefactDetector.fit(examples, ("a", "b", "c"))
    with pytest.raises(DetectorError, match="does not say how its features are measured"):
        judge_with_detector(labelled, detector)


@pytest.mark.parametrize(
    "values",
    [{"simulated_per_kind": -1}, {"seed": -1}, {"simulated_severity": (0.0, 1.0)}, {"simulated_severity": (0.6, 0.5)}],
)
def test_a_config_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=r"QC training: .*expected"):
        qc_learned.QcTrainConfig(**values)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_numbers_are_the_same_where_ray_measures(labelled):
    """The last test of the file: those before it measure in this process."""
    plate = labelled.table("plates").column("plate_id")[0].as_py()
    features = FeatureConfig(reference_sites=1)
    sites = PlateSites(labelled, plate, features_key(features, build_extractors(features)))
    again = [*sites.site_ids, *sites.site_ids]
    spoilings = {i: Spoiling("noise", 0.5, i) for i in range(len(again))}
    with_ray = sites.measure(again, spoilings)  # two tasks
    alone = [sites.measure([site], {0: spoilings[i]})[0] for i, site in enumerate(again[:3])]
    assert len(with_ray) == 24
    for one, other in zip(with_ray, alone, strict=False):
        np.testing.assert_array_equal(one.deviations, other.deviations)
