from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, table_contract
from cytolake.catalog.curation import CurateConfig, Curation, CurationError, curate, curation_spec
from cytolake.catalog.qc import qc_profile
from cytolake.catalog.qc_metrics import METRICS

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


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = cytolake.catalog.open(tmp_path / "catalog", create=True)
    add_plate(catalog, "P1")
    return catalog


@pytest.fixture
def run(catalog: Catalog, tmp_path: Path):
    """Curate under a spec given by its keys."""

    def run_spec(name: str = "tried", **declared: object) -> Curation:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(declared))
        return curate(catalog, CurateConfig(name=name, folder=str(tmp_path)))

    return run_spec


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
    assert json.loads(row["spec"])["min_foreground_share"] == 0.05


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
def test_a_where_that_cannot_be_used_is_told_with_the_columns(run, where):
    with pytest.raises(CurationError, match=r"curation tried: where .* cannot be used"):
        run(where=where)


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
        ({"qc": {"rule": "all"}}, "unknown keys qc.rule"),
        ({"qc": {"rules": ["blurred"]}}, "QC rules blurred are not in profile default. There are: autofluorescence"),
        ({"min_foreground_share": 5}, "min_foreground_share is 5; expected 0 to 1"),
        ({"max_crops_per_control": 0}, "max_crops_per_control is 0; expected 1 or more"),
    ],
)
def test_a_spec_that_is_not_sound_says_what_is_wrong(run, declared, said):
    with pytest.raises(CurationError, match=said.replace(".", r"\.")):
        run(**declared)


def test_an_unknown_curation_is_told_with_those_that_are_there(tmp_path):
    with pytest.raises(CatalogError, match=r"default\.yaml"):
        curation_spec(CurateConfig(name="nowhere"))
    with pytest.raises(CurationError, match="no such file"):
        curation_spec(CurateConfig(name="nowhere", folder=str(tmp_path)))


def test_the_default_spec_is_the_file_people_read():
    spec = curation_spec(CurateConfig())
    assert replace(spec, min_foreground_share=0.0).max_failed_channels == 0
    assert spec.min_foreground_share == 0.05
    assert spec.qc_profile == qc_profile("default").name
    assert spec.max_crops_per_perturbation is None
