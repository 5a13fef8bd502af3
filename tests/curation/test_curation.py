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
from cytolake.curation.curate import CurateConfig, Curation, CurationError, curate, curation_spec, qc_of_curation
from cytolake.curation.rules import ForegroundStep, QcStep
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
    """Crops kept of each well."""
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept").to_pylist()
    return Counter(row["crop_id"].rsplit("/", 1)[0] for row in rows)


def test_the_default_keeps_crops_that_show_cells_and_gives_the_others_a_reason(catalog):
    curation = curate(catalog, CurateConfig())
    assert curation.n_considered == len(WELLS) * N_CROPS
    assert curation.reasons == {"foreground_share below 0.05": N_CROPS}
    assert kept(catalog, curation) == {f"P1/{well}": N_CROPS for well in WELLS if well != "A02"}
    rows = catalog.table("curations").to_pylist()
    assert len(rows) == curation.n_considered
    assert all(row["is_kept"] == (row["reason"] == "") for row in rows)


def test_the_same_again_has_the_same_id_and_writes_nothing(catalog):
    first = curate(catalog, CurateConfig())
    before = catalog.versions()
    assert curate(catalog, CurateConfig()) == first
    assert catalog.versions() == before


def test_another_rule_or_another_plate_is_another_curation(catalog, run):
    ids = {run(min_foreground_share=0.05).curation_id, run(min_foreground_share=0.06).curation_id}
    add_plate(catalog, "P2")
    ids.add(run(min_foreground_share=0.05).curation_id)
    assert len(ids) == 3


def test_the_pinned_versions_are_those_that_were_read(catalog, run):
    curation = run(min_foreground_share=0.05)
    row = catalog.table("curations").to_pylist()[0]
    versions = json.loads(row["table_versions"])
    add_plate(catalog, "P2")
    assert catalog.at(versions).table("crops").num_rows == curation.n_considered
    run_row = catalog.table("curation_runs").to_pylist()[0]
    assert run_row["table_versions"] == row["table_versions"]
    assert json.loads(run_row["spec"])["steps"] == [{"rule": "foreground", "min_share": 0.05}]


def test_the_report_says_what_each_rule_removed_of_what_the_rules_before_it_left(catalog, run):
    add_plate(catalog, "P2", {"A01": {1: {"focus_slope": -9.0}}})
    curation = run(qc={"profile": "default"}, min_foreground_share=0.05, max_crops_per_perturbation=5)
    counts = [(step.rule, step.n_considered, step.n_removed, step.n_kept) for step in curation.steps]
    qc, foreground = N_CROPS, 2 * N_CROPS
    total = 2 * len(WELLS) * N_CROPS
    assert counts[:2] == [
        ("qc", total, qc, total - qc),
        ("foreground", total - qc, foreground, total - qc - foreground),
    ]
    assert counts[2] == ("cap", counts[1][3], counts[1][3] - curation.n_kept, curation.n_kept)
    assert sum(step.n_removed for step in curation.steps) == sum(curation.reasons.values())


def test_a_site_with_a_failing_channel_loses_all_its_crops(catalog, run):
    add_plate(
        catalog, "P2", {"A01": {1: {"focus_slope": -9.0}}, "A03": {0: {"saturated_share": 0.5, "focus_slope": -9.0}}}
    )
    curation = run(qc={"profile": "default"})
    assert curation.reasons == {"qc: defocus": N_CROPS, "qc: defocus, saturation": N_CROPS}
    assert not {"P2/A01", "P2/A03"} & set(kept(catalog, curation))


def test_only_the_rules_named_exclude(catalog, run):
    add_plate(catalog, "P2", {"A01": {1: {"focus_slope": -9.0}}, "A03": {0: {"saturated_share": 0.5}}})
    assert run(qc={"profile": "default", "rules": ["saturation"]}).reasons == {"qc: saturation": N_CROPS}
    assert run(qc=None).reasons == {}


def test_failed_channels_are_tolerated_up_to_the_number_given(catalog, run):
    one, two = {1: {"focus_slope": -9.0}}, {0: {"saturated_share": 0.5}, 1: {"focus_slope": -9.0}}
    add_plate(catalog, "P2", {"A01": one, "A03": two})
    curation = run(qc={"profile": "default", "max_failed_channels": 1})
    assert curation.reasons == {"qc: defocus, saturation": N_CROPS}
    assert "P2/A01" in kept(catalog, curation)


def test_where_chooses_by_columns_of_crops_and_wells(catalog, run):
    curation = run(where="gene = 'TP53' AND x < 128")
    assert kept(catalog, curation) == {"P1/A01": 2, "P1/A02": 2}
    assert list(curation.reasons) == ["not where gene = 'TP53' AND x < 128"]


def test_where_may_be_unknown_for_a_crop_which_excludes_it(catalog, run):
    assert run(where="dose > 0 OR well = 'A01'").n_kept == N_CROPS


@pytest.mark.parametrize(
    "where", ["colour = 'red'", "gene = ", "1) FROM wells --", "x IN (SELECT * FROM read_csv('/etc/passwd'))"]
)
def test_a_where_that_cannot_be_used_is_told_with_the_columns(try_to_run, where):
    with pytest.raises(CurationError, match=r"curation tried: where .* cannot be used"):
        try_to_run(where=where)


def test_a_limit_keeps_that_many_of_each_perturbation_and_control(catalog, run):
    add_plate(catalog, "P2")
    curation = run(max_crops_per_perturbation=5, max_crops_per_control=3)
    rows = catalog.sql(
        "SELECT w.perturbation, count(*) AS n FROM curations k JOIN crops c USING (crop_id) "
        "JOIN wells w USING (well_id) "
        f"WHERE k.is_kept AND k.curation_id = '{curation.curation_id}' GROUP BY w.perturbation"
    ).to_pylist()
    assert {row["perturbation"]: row["n"] for row in rows} == {"TP53": 5, "MYC": 5, "": 5, "DMSO": 3}
    assert set(curation.reasons) == {"beyond 5 crops of perturbation", "beyond 3 crops of control"}


def test_the_choice_under_a_limit_follows_the_seed_and_not_the_order_of_plates(catalog, run, tmp_path):
    def choice(catalog: Catalog, curation: Curation) -> set[str]:
        rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
        return set(rows.column("crop_id").to_pylist())

    add_plate(catalog, "P2")
    ours = choice(catalog, run(max_crops_per_perturbation=5))
    other = cytolake.catalog.open(tmp_path / "other", create=True)
    for plate in ("P2", "P1"):
        add_plate(other, plate)
    theirs = choice(other, curate(other, CurateConfig(name="tried", folder=str(tmp_path))))
    assert ours == theirs
    assert choice(catalog, run(max_crops_per_perturbation=5, seed=1)) != ours


def test_a_larger_limit_keeps_what_a_smaller_one_kept(catalog, run):
    small, large = (kept_ids(catalog, run(max_crops_per_perturbation=n)) for n in (3, 6))
    assert small < large


def kept_ids(catalog: Catalog, curation: Curation) -> set[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    return set(rows.column("crop_id").to_pylist())


def test_keeping_nothing_is_an_error_that_counts_what_each_rule_excluded(catalog, run):
    add_plate(catalog, "P2", {"A01": {1: {"focus_slope": -9.0}}})
    with pytest.raises(CurationError) as caught:
        run(qc={"profile": "default"}, min_foreground_share=0.9)
    text = str(caught.value)
    assert f"keeps none of {2 * len(WELLS) * N_CROPS} crops" in text
    assert f"foreground_share below 0.9: {(2 * len(WELLS) - 1) * N_CROPS}" in text
    assert f"qc: defocus: {N_CROPS}" in text
    assert catalog.table("curations").num_rows == 0


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"min_foreground": 0.1}, "unknown keys min_foreground"),
        ({"qc": {"rule": "all"}}, "qc: unknown keys rule"),
        ({"qc": {"rules": ["blurred"]}}, "QC rules blurred are not in profile default. There are: autofluorescence"),
        ({"min_foreground_share": 5}, "min_foreground_share: foreground.min_share is 5; expected 0 to 1"),
        ({"max_crops_per_control": 0}, "max_crops_per_control is 0; expected 1 or more"),
    ],
)
def test_a_spec_that_is_not_sound_says_what_is_wrong(try_to_run, declared, said):
    with pytest.raises(CurationError, match=said.replace(".", r"\.")):
        try_to_run(**declared)


def test_an_unknown_curation_is_told_with_those_that_are_there(tmp_path):
    with pytest.raises(CatalogError, match=r"default\.yaml"):
        curation_spec(CurateConfig(name="nowhere"))
    with pytest.raises(CurationError, match="no such file"):
        curation_spec(CurateConfig(name="nowhere", folder=str(tmp_path)))


def test_the_default_spec_is_the_file_people_read():
    assert curation_spec(CurateConfig()).steps == (QcStep(profile="default"), ForegroundStep(min_share=0.05))


def test_a_file_with_the_simple_keys_means_the_same_as_its_steps(catalog, run):
    simple = run(
        "simple", qc={"rules": "all"}, min_foreground_share=0.05, where="x > 0", max_crops_per_control=3, seed=4
    )
    steps = [
        {"rule": "qc", "profile": "default"},
        {"rule": "foreground", "min_share": 0.05},
        {"rule": "where", "where": "x > 0"},
        {"rule": "cap", "max_crops_per_control": 3},
    ]
    composed = run("composed", seed=4, steps=steps)
    assert kept_ids(catalog, simple) == kept_ids(catalog, composed)
    assert simple.reasons == composed.reasons


def test_each_rule_sees_only_what_the_rules_before_it_kept(catalog, run):
    cap, where = {"rule": "cap", "max_crops_per_perturbation": 4}, {"rule": "where", "where": "x >= 256"}
    assert run(steps=[where, cap]).n_kept == 3 * 4 + 2 * 4  # wells of two perturbations, of none; 2 controls
    assert run(steps=[cap, where]).n_kept < 3 * 4 + 2 * 4


@pytest.mark.parametrize("name", [path.stem for path in declared_path("curation").glob("*.yaml")])
def test_every_spec_that_comes_with_the_package_is_sound(name):
    spec = curation_spec(CurateConfig(name=name))
    assert spec.steps
    assert json.loads(spec.as_json())["steps"][0]["rule"] == spec.steps[0].rule


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "steps is []; expected a list of entries with a key `rule`"),
        ([{"rule": "blur"}], "step 1: rule 'blur'; expected one of qc, foreground, where, support"),
        ([{"rule": "qc"}, "cap"], "step 2: rule 'cap'; expected one of"),
        ([{"rule": "foreground"}], "step 1 (foreground): unknown keys none, missing keys min_share"),
        ([{"rule": "cap", "max": 3}], "step 1 (cap): unknown keys max"),
        ([{"rule": "support", "experiment": "day"}], "support.experiment is 'day'; expected plate or batch"),
        ([{"rule": "support", "min_wells": "x"}], "min_wells is 'x'; expected a whole number"),
        ([{"rule": "support", "condition": ["colour"]}], "support.condition: no column colour. Columns of crops and"),
        ([{"rule": "consistency", "alpha": 1e-9}], "consistency.alpha is 1e-09; expected more than 1 / (1 + n_draws)"),
        ([{"rule": "near_duplicates", "min_cosine": "high"}], "min_cosine is 'high'; expected a number"),
        ([{"rule": "cluster_balanced"}], "cluster_balanced.max_crops is None; expected a number here or in"),
        ([{"rule": "qc", "qc_id": "abc"}], "qc_id abc has no verdicts. There are: none"),
        ([{"rule": "near_duplicates"}], "representation pixel_statistics: not in the table representations"),
    ],
)
def test_steps_that_are_not_sound_say_what_is_wrong(try_to_run, steps, said):
    with pytest.raises(CatalogError, match=re.escape(said)):
        try_to_run(steps=steps)


def test_steps_and_simple_keys_in_one_file_are_refused(try_to_run):
    with pytest.raises(CurationError, match="found steps and where"):
        try_to_run(steps=[{"rule": "qc"}], where="x > 0")


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


def test_a_spec_without_modalities_is_written_as_before_there_were_any():
    step = json.loads(curation_spec(CurateConfig()).as_json())["steps"][0]
    assert step["rule"] == "qc"
    assert "modalities" not in step
