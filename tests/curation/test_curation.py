from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, table_contract
from cytolake.catalog.declared import declared_path
from cytolake.curation.curate import (
    CurateConfig,
    Curation,
    CurationError,
    curate,
    curation_spec,
    qc_of_curation,
)
from cytolake.curation.rules import ForegroundStep, QcStep
from cytolake.curation.runs import newest_run, qc_of_run
from cytolake.qc.metrics import METRICS
from cytolake.qc.verdicts import QcConfig, judge_sites

GOOD = dict.fromkeys(METRICS, 0.0) | {
    "foreground_share": 0.3,
    "focus_slope": -3.0,
    "laplacian_variance": 0.1,
    "background_level": 200.0,
    "noise_share": 0.1,
}
WELLS = {  # perturbation, control, foreground share of the well's crops
    "A01": ("TP53", "", 0.5),
    "A02": ("TP53", "", 0.02),
    "A03": ("MYC", "", 0.5),
    "B01": ("DMSO", "negative", 0.5),
    "B02": ("DMSO", "negative", 0.5),
    "B03": ("", "", 0.5),
}
N_CROPS = 8  # of each well, which has one site of two channels


def add_plate(catalog: Catalog, plate: str, failing: dict[str, dict[int, dict[str, float]]] | None = None) -> None:
    """A plate of WELLS; `failing` says for wells and channel indices which metrics are not good."""
    rows: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("wells", "sites", "crops", "qc_metrics", "plates")
    }

    def add(name: str, **values: object) -> None:
        blank = dict.fromkeys(table_contract(name).schema.names)
        rows[name].append(blank | {"plate_id": plate, "screen": "S", "plate": plate} | values)

    rng = np.random.default_rng(0)
    for well, (perturbation, control, share) in WELLS.items():
        identity = f"{plate}/{well}"
        add("wells", well_id=identity, well=well, perturbation=perturbation, control=control, gene=perturbation)
        add("sites", well_id=identity, site_id=identity, well=well, site="1", channels=["DNA", "ER"])
        for index, channel in enumerate(("DNA", "ER")):
            bad = (failing or {}).get(well, {}).get(index, {})
            rows["qc_metrics"].append(
                {"site_id": identity, "plate_id": plate, "channel": channel, "channel_index": index} | GOOD | bad
            )
        for number in range(N_CROPS):
            jitter = share * (1 + 0.01 * rng.random())
            add("crops", crop_id=f"{identity}/{number}", site_id=identity, well_id=identity, well=well, site="1")
            rows["crops"][-1] |= {"n_channels": 2, "y": 0, "x": 64 * number, "size": 64, "foreground_share": jitter}
    add("plates")
    for name, listed in rows.items():
        catalog.append(name, table_contract(name).rows(listed), transaction=f"{name} {plate}")


@pytest.fixture(scope="module")
def one_plate(tmp_path_factory) -> Catalog:
    """Read only, for specs that are refused."""
    catalog = cytolake.catalog.open(tmp_path_factory.mktemp("one plate") / "catalog", create=True)
    add_plate(catalog, "P1")
    return catalog


@pytest.fixture
def catalog(one_plate: Catalog, tmp_path: Path) -> Catalog:
    shutil.copytree(one_plate.root, tmp_path / "catalog")
    return cytolake.catalog.open(tmp_path / "catalog")


@pytest.fixture
def run(catalog: Catalog, tmp_path: Path):
    """Curate under a spec given by its keys."""
    return partial(run_spec, catalog, tmp_path)


@pytest.fixture
def try_to_run(one_plate: Catalog, tmp_path: Path):
    """The same, where nothing is written."""
    return partial(run_spec, one_plate, tmp_path)


def run_spec(catalog: Catalog, folder: Path, name: str = "tried", **declared: object) -> Curation:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(declared))
    return curate(catalog, CurateConfig(name=name, folder=str(folder)))


def kept(catalog: Catalog, curation: Curation) -> Counter[str]:
    """Kept crops of each well."""
    return Counter(crop.rsplit("/", 1)[0] for crop in kept_ids(catalog, curation))


def kept_ids(catalog: Catalog, curation: Curation) -> set[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    return set(rows.column("crop_id").to_pylist())


def test_the_default_keeps_crops_of_cells_and_a_repeated_run_writes_nothing(catalog):
    curation = curate(catalog, CurateConfig())
    assert curation.n_considered == len(WELLS) * N_CROPS
    assert curation.reasons == {"foreground_share below 0.05": N_CROPS}
    assert kept(catalog, curation) == {f"P1/{well}": N_CROPS for well in WELLS if well != "A02"}
    rows = catalog.table("curations").to_pylist()
    assert len(rows) == curation.n_considered
    assert all(row["is_kept"] == (row["reason"] == "") for row in rows)
    before = catalog.versions()
    assert curate(catalog, CurateConfig()) == curation
    assert catalog.versions() == before


def test_another_rule_or_another_plate_is_another_curation_of_pinned_tables(catalog, run):
    first = run(min_foreground_share=0.05)
    row = catalog.table("curations").to_pylist()[0]
    versions = json.loads(row["table_versions"])
    ids = {first.curation_id, run(min_foreground_share=0.06).curation_id}
    add_plate(catalog, "P2")
    ids.add(run(min_foreground_share=0.05).curation_id)
    assert len(ids) == 3
    assert catalog.at(versions).table("crops").num_rows == first.n_considered
    (run_row,) = catalog.table("curation_runs", where=f"curation_id = '{first.curation_id}'").to_pylist()
    assert run_row["table_versions"] == row["table_versions"]
    assert json.loads(run_row["spec"])["steps"] == [{"rule": "foreground", "min_share": 0.05}]


def test_later_stages_work_on_what_curate_found_last(catalog, run, tmp_path):
    """Also where rules were changed and changed back: that curation is older than the one in between."""
    config = CurateConfig(name="tried", folder=str(tmp_path))
    (tmp_path / "tried.yaml").write_text("min_foreground_share: 0.05\n")
    assert newest_run(catalog, config) is None
    first, second = run(min_foreground_share=0.05), run(max_crops_per_perturbation=5)
    assert newest_run(catalog, config)[0]["curation_id"] == second.curation_id
    before = catalog.versions()
    assert run(min_foreground_share=0.05) == first
    row, is_current = newest_run(catalog, config)
    assert (row["curation_id"], is_current) == (first.curation_id, True)
    (tmp_path / "tried.yaml").write_text("min_foreground_share: 0.07\n")
    row, is_current = newest_run(catalog, config)
    assert (row["curation_id"], is_current) == (second.curation_id, False)  # curated last, by other rules
    assert catalog.versions() == before


def test_the_verdicts_of_a_curation_are_those_it_excluded_by_whatever_its_file_says_now(catalog, run, tmp_path):
    config = CurateConfig(name="tried", folder=str(tmp_path))
    run(qc={"profile": "default"})
    judged = catalog.versions()
    (tmp_path / "tried.yaml").write_text("qc: {profile: gross}\n")
    row, is_current = newest_run(catalog, config)
    assert not is_current
    assert qc_of_run(row) == judge_sites(catalog, QcConfig(profile="default"))
    assert catalog.versions() == judged
    run(qc={"profile": "gross"})
    row, is_current = newest_run(catalog, config)
    assert is_current
    assert qc_of_run(row) == judge_sites(catalog, QcConfig(profile="gross"))
    run(min_foreground_share=0.0)
    row, _ = newest_run(catalog, config)
    assert qc_of_run(row) == ""


def test_failed_channels_exclude_by_the_profile_and_reports_count_each_rule(catalog, run):
    one, two = {1: {"focus_slope": -9.0}}, {0: {"saturated_share": 0.5}, 1: {"focus_slope": -9.0}}
    add_plate(catalog, "P2", {"A01": one, "A03": two})
    curation = run(qc={"profile": "default"}, min_foreground_share=0.05, max_crops_per_perturbation=5)
    qc = {"qc: defocus": N_CROPS, "qc: defocus, saturation": N_CROPS}
    assert {reason: n for reason, n in curation.reasons.items() if reason.startswith("qc")} == qc
    assert not {"P2/A01", "P2/A03"} & set(kept(catalog, curation))
    total, foreground = 2 * len(WELLS) * N_CROPS, 2 * N_CROPS
    counts = [(step.rule, step.n_considered, step.n_removed, step.n_kept) for step in curation.steps]
    assert counts[:2] == [
        ("qc", total, 2 * N_CROPS, total - 2 * N_CROPS),
        ("foreground", total - 2 * N_CROPS, foreground, total - 2 * N_CROPS - foreground),
    ]
    assert counts[2] == ("cap", counts[1][3], counts[1][3] - curation.n_kept, curation.n_kept)
    assert sum(step.n_removed for step in curation.steps) == sum(curation.reasons.values())
    named = run(qc={"profile": "default", "rules": ["saturation"]})
    assert named.reasons == {"qc: saturation": N_CROPS}
    tolerant = run(qc={"profile": "default", "max_failed_channels": 1})
    assert tolerant.reasons == {"qc: defocus, saturation": N_CROPS}


@pytest.mark.slow
def test_the_choice_of_a_cap_does_not_depend_on_the_order_of_plates(catalog, run, tmp_path):
    add_plate(catalog, "P2")
    ours = kept_ids(catalog, run(max_crops_per_perturbation=5))
    other = cytolake.catalog.open(tmp_path / "other", create=True)
    for plate in ("P2", "P1"):
        add_plate(other, plate)
    assert kept_ids(other, curate(other, CurateConfig(name="tried", folder=str(tmp_path)))) == ours


def test_the_simple_keys_of_a_file_stand_for_steps(tmp_path):
    simple = {"qc": {"rules": "all"}, "min_foreground_share": 0.05, "where": "x > 0", "max_crops_per_control": 3}
    steps = [
        {"rule": "qc", "profile": "default"},
        {"rule": "foreground", "min_share": 0.05},
        {"rule": "where", "where": "x > 0"},
        {"rule": "cap", "max_crops_per_control": 3},
    ]
    for name, declared in (("simple", simple), ("composed", {"steps": steps})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(declared | {"seed": 4}))
    one, other = (curation_spec(CurateConfig(name=name, folder=str(tmp_path))) for name in ("simple", "composed"))
    assert (one.steps, one.seed) == (other.steps, other.seed)


def test_a_curation_that_keeps_nothing_is_refused_with_the_counts_of_each_rule(catalog, run):
    add_plate(catalog, "P2", {"A01": {1: {"focus_slope": -9.0}}})
    with pytest.raises(CurationError) as caught:
        run(qc={"profile": "default"}, min_foreground_share=0.9)
    text = str(caught.value)
    assert f"keeps 0 of {2 * len(WELLS) * N_CROPS} crops" in text
    assert f"foreground_share below 0.9: {(2 * len(WELLS) - 1) * N_CROPS}" in text
    assert f"qc: defocus: {N_CROPS}" in text
    assert catalog.table("curations").num_rows == 0


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"min_foreground": 0.1}, "unknown keys min_foreground"),
        ({"qc": {"rule": "all"}}, "qc: unknown keys rule"),
        ({"qc": {"rules": ["blurred"]}}, "QC rules blurred are not in profile default. There are: autofluorescence"),
        ({"min_foreground_share": 5}, "min_foreground_share: foreground.min_share is 5; expected 0 to 1"),
        ({"max_crops_per_control": 0}, "max_crops_per_control is 0; expected 1 or more"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_reason(try_to_run, declared, message):
    with pytest.raises(CurationError, match=message.replace(".", r"\.")):
        try_to_run(**declared)


def test_an_unknown_curation_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"default\.yaml"):
        curation_spec(CurateConfig(name="nowhere"))
    with pytest.raises(CurationError, match="no such file"):
        curation_spec(CurateConfig(name="nowhere", folder=str(tmp_path)))


def test_the_default_spec_is_the_file_default_yaml():
    assert curation_spec(CurateConfig()).steps == (QcStep(profile="default"), ForegroundStep(min_share=0.05))


@pytest.mark.parametrize("name", [path.stem for path in declared_path("curation").glob("*.yaml")])
def test_every_spec_of_the_package_can_be_read(name):
    spec = curation_spec(CurateConfig(name=name))
    assert spec.steps
    assert json.loads(spec.as_json())["steps"][0]["rule"] == spec.steps[0].rule


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps is []; expected a list of entries with a key `rule`"),
        ([{"rule": "blur"}], "step 1: rule 'blur'; expected one of qc, foreground, where, support"),
        ([{"rule": "qc"}, "cap"], "step 2: rule 'cap'; expected one of"),
        ([{"rule": "foreground"}], "step 1 (foreground): unknown keys none, missing keys min_share"),
        ([{"rule": "cap", "max": 3}], "step 1 (cap): unknown keys max"),
        ([{"rule": "support", "experiment": "day"}], "support.experiment is 'day'; expected plate or batch"),
        ([{"rule": "support", "min_wells": "x"}], "min_wells is 'x'; expected a whole number"),
        ([{"rule": "consistency", "alpha": 1e-9}], "consistency.alpha is 1e-09; expected more than 1 / (1 + n_draws)"),
        ([{"rule": "near_duplicates", "min_cosine": "high"}], "min_cosine is 'high'; expected a number"),
        ([{"rule": "cluster_balanced"}], "cluster_balanced.max_crops is None; expected a number here or in"),
        ([{"rule": "qc", "qc_id": "abc"}], "qc_id abc has no verdicts. There are: none"),
        ([{"rule": "near_duplicates"}], "representation pixel_statistics: not in the table representations"),
    ],
)
def test_invalid_steps_are_refused_with_the_reason(try_to_run, steps, message):
    with pytest.raises(CatalogError, match=re.escape(message)):
        try_to_run(steps=steps)


def test_steps_and_simple_keys_in_one_file_are_refused(try_to_run):
    with pytest.raises(CurationError, match="found steps and where"):
        try_to_run(steps=[{"rule": "qc"}], where="x > 0")


@pytest.mark.slow
def test_the_verdicts_of_a_recipe_are_those_that_its_curation_excludes_by(catalog):
    """A page of other verdicts would show failures that excluded nothing."""
    plain = QcConfig()
    assert qc_of_curation(CurateConfig(), plain) == plain
    modalities = ("DNA: phase",)
    declared = qc_of_curation(CurateConfig(), QcConfig(modalities=modalities))
    assert declared == QcConfig(modalities=modalities)
    shown = judge_sites(catalog, declared)
    kept = curate(catalog, CurateConfig(), modalities=modalities)
    (run,) = catalog.table("curation_runs", where=f"curation_id = '{kept.curation_id}'").to_pylist()
    assert json.loads(run["spec"])["steps"][0]["qc_id"] == shown
    assert judge_sites(catalog, plain) != shown


def test_a_spec_with_a_profile_or_verdicts_of_its_own_decides(catalog, tmp_path):
    (tmp_path / "strict.yaml").write_text("qc: {profile: strict}\n")
    (tmp_path / "learned.yaml").write_text("qc: {qc_id: abc}\n")
    (tmp_path / "none.yaml").write_text("min_foreground_share: 0.1\n")

    def of(name: str, qc: QcConfig) -> QcConfig | str:
        return qc_of_curation(CurateConfig(name=name, folder=str(tmp_path)), qc)

    assert of("strict", QcConfig()) == QcConfig(profile="strict")
    assert of("strict", QcConfig(profile="strict")) == QcConfig(profile="strict")
    assert of("learned", QcConfig()) == "abc"
    assert of("none", QcConfig(profile="mine")) == QcConfig(profile="mine")
    with pytest.raises(CurationError, match=r"excludes by the profile strict, and qc\.profile is mine"):
        of("strict", QcConfig(profile="mine"))


def test_a_spec_without_modalities_has_no_such_key_in_its_hash():
    step = json.loads(curation_spec(CurateConfig()).as_json())["steps"][0]
    assert step["rule"] == "qc"
    assert "modalities" not in step
