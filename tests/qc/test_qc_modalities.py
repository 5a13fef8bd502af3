"""Quality control of what is no monolayer in fluorescence: brightfield, organoids, wells with next to no cells."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from simulated_brightfield import background, camera, cells, organoid
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.catalog import CatalogError, table_contract
from cytolake.catalog.declared import channel_vocabulary
from cytolake.curation.curate import CurateConfig, curate
from cytolake.qc.levels import Places, places
from cytolake.qc.metrics import METRICS, foreground_shares, measure_site
from cytolake.qc.modality import MODALITIES, is_transmitted, modality_of, parse_modalities
from cytolake.qc.verdicts import QcConfig, judge_sites, parse_profile, profile_of, qc_profile
from cytolake.reports.qc_page import write_qc_page

SIZE = 128
EMPTY = (5, 40, 77)
N_CONTROLS = 24


@pytest.mark.parametrize("grain_px", [0.0, 1.0])
@pytest.mark.parametrize("name", ["Brightfield", "BF", "a name that nobody declared"])
def test_foreground_of_a_dark_organoid_is_its_area_and_not_the_bright_background(name, grain_px):
    rng = np.random.default_rng(0)
    for radius in (12, 25, 40):
        light, area = organoid(rng, SIZE, radius)
        (measured,) = measure_site(camera(rng, light, grain_px)[None], [name])
        rim = 2 * np.pi * radius * 5 / SIZE**2  # texture is of windows of 9 px
        assert area < measured["foreground_share"] < area + 1.7 * rim
        (as_fluorescence,) = measure_site(camera(rng, light, grain_px)[None])
        assert as_fluorescence["foreground_share"] > 0.8


@pytest.mark.parametrize("grain_px", [0.0, 1.0])
def test_an_empty_bright_field_has_no_foreground_and_more_cells_have_more(grain_px):
    rng = np.random.default_rng(0)
    empty = camera(rng, background(SIZE), grain_px)[None]
    assert measure_site(empty, ["Brightfield"])[0]["foreground_share"] < 0.002
    shares = []
    for n in (5, 20, 60):
        light, area = cells(rng, SIZE, n)
        pixels = camera(rng, light, grain_px)[None]
        shares.append(measure_site(pixels, ["Brightfield"])[0]["foreground_share"])
        assert 0.5 * area < shares[-1] < 1.3 * area
        assert foreground_shares(pixels, [(0, 0, SIZE)], ["Brightfield"])[0] == pytest.approx(shares[-1])
    assert shares == sorted(shares)


def test_fluorescence_measures_the_same_whether_channels_are_named_or_not():
    rng = np.random.default_rng(0)
    pixels = rng.poisson(200 + 900 * (rng.random((2, SIZE, SIZE)) > 0.9)).astype(np.uint16)
    assert measure_site(pixels, ["DNA", "RNA"]) == measure_site(pixels)
    assert measure_site(pixels, ["Phase 7", "RNA"])[1] == measure_site(pixels)[1]
    with pytest.raises(ValueError, match="1 channel names for 2 channels"):
        measure_site(pixels, ["DNA"])


def test_a_bright_field_does_not_count_in_what_is_bright_in_all_channels():
    rng = np.random.default_rng(1)
    stained = rng.poisson(100 + 900 * (rng.random((2, SIZE, SIZE)) > 0.9)).astype(np.uint16)
    with_light = np.concatenate([stained, camera(rng, background(SIZE))[None]])
    brightness = measure_site(stained, ["DNA", "RNA"])[0]["common_brightness"]
    assert measure_site(with_light, ["DNA", "RNA", "Brightfield"])[0]["common_brightness"] == brightness


def test_every_declared_stain_has_a_modality_and_other_names_the_declared_default():
    vocabulary = channel_vocabulary()
    assert set(vocabulary.modalities) == set(vocabulary.names)
    assert set(vocabulary.modalities.values()) | {vocabulary.default_modality} <= set(MODALITIES)
    assert vocabulary.modalities["Brightfield"] == "brightfield"
    dark = np.array([[100.0, 110, 900]] * 3)
    bright = np.array([[9_000.0, 29_000, 31_000]] * 3)
    assert modality_of("DNA", bright, {}) == "fluorescence"  # declared: pixels are not used
    assert modality_of("unheard of", dark, {}) == vocabulary.default_modality
    assert modality_of("unheard of", bright, {}) == "brightfield"
    assert modality_of("unheard of", bright, {"unheard of": "phase"}) == "phase"
    assert is_transmitted("phase contrast", dark[0])
    for wrong in (("DNA",), ("DNA: infrared",), ("DNA: phase", "Hoechst: phase")):
        with pytest.raises(CatalogError, match="expected each channel once as CHANNEL: MODALITY"):
            parse_modalities(wrong, "qc.modalities")


@functools.lru_cache
def organoid_plate(name: str = "Brightfield") -> tuple[pa.Table, Places]:
    """96 wells of one site: a dark organoid in each, 3 without; the last two columns but one are negative controls."""
    rng = np.random.default_rng(4)
    rows, sites = [], []
    for index in range(96):
        row, column = divmod(index, 12)
        light = background(SIZE) if index in EMPTY else organoid(rng, SIZE, rng.uniform(15, 35))[0]
        (measured,) = measure_site(camera(rng, light)[None], [name])
        shared = {"site_id": f"site {index}", "well_id": f"well {index}"}
        rows.append(measured | {"site_id": f"site {index}", "plate_id": "P", "channel": name, "channel_index": 0})
        control = "negative" if column in (3, 6, 9) else ""
        sites.append(shared | {"row": row, "column": column, "control": control})
    return table_contract("qc_metrics").rows(rows), places(pa.Table.from_pylist(sites))


def failed(verdicts: pa.Table, *levels: str) -> set[tuple[str, str]]:
    rows = verdicts.filter(pc.invert(verdicts["is_pass"])).to_pylist()
    return {(row["rule"], row["site_id"] or row["well_id"]) for row in rows if row["level"] in levels}


@pytest.mark.parametrize("name", ["Brightfield", "TL20"])
def test_of_a_plate_of_dark_organoids_only_the_empty_sites_fail(name):
    verdicts = qc_profile("default").judge(*organoid_plate(name))
    assert failed(verdicts, "site", "well") == {("empty", f"site {index}") for index in EMPTY}
    unjudged = {row["rule"]: row["reason"] for row in verdicts.to_pylist() if row["reason"]}
    for rule in ("debris", "few_cells", "defocus", "edge_effect"):
        assert unjudged[rule] == f"made for fluorescence; {name} is brightfield"
    judged_by = {row["rule"] for row in verdicts.to_pylist() if row["threshold"] is not None}
    assert judged_by == {"empty", "saturation", "constant_area"}


def invented_plate(n_sites: int = 1, **metrics: np.ndarray) -> tuple[pa.Table, Places]:
    """96 sound wells in one fluorescent stain; `metrics` are (96,). Columns 3, 6 and 9 are negative controls."""
    rng = np.random.default_rng(0)
    rows, sites = [], []
    for index in range(96):
        row, column = divmod(index, 12)
        for site in range(n_sites):
            sound = {"mean": 1000 + 10 * rng.standard_normal(), "p99": 2500.0, "background_floor": 200.0}
            sound |= {"sd": 300 + rng.standard_normal(), "focus_slope": -3.0, "laplacian_variance": 0.05}
            sound |= {"foreground_share": 0.3, "object_count": 40.0}
            given = {name: float(values[index]) for name, values in metrics.items()}
            site_id = f"site {index}-{site}"
            rows.append(
                dict.fromkeys(METRICS, 0.0) | sound | given
                | {"site_id": site_id, "plate_id": "P", "channel": "DNA", "channel_index": 0}
            )  # fmt: skip
            control = "negative" if column in (3, 6, 9) else ""
            sites.append(
                {"site_id": site_id, "well_id": f"well {index}", "row": row, "column": column, "control": control}
            )
    return table_contract("qc_metrics").rows(rows), places(pa.Table.from_pylist(sites))


def test_wells_of_0_or_1_cells_are_not_judged_by_their_number_of_cells():
    few = np.random.default_rng(0).poisson(0.8, 96)
    verdicts = qc_profile("default").judge(*invented_plate(object_count=few))
    rows = [row for row in verdicts.to_pylist() if row["rule"] in ("few_cells", "many_cells")]
    assert len(rows) == 2 * 96
    assert all(row["is_pass"] and row["threshold"] is None for row in rows)
    assert {row["reason"] for row in rows} == {
        "reference wells (controls) have 1 objects in the median, expected 10 or more"
    }


def test_cells_of_all_sites_of_a_well_count_towards_what_is_enough():
    one, four = (
        qc_profile("default").judge(*invented_plate(n_sites, object_count=np.full(96, 4.0))) for n_sites in (1, 4)
    )
    for verdicts, is_judged in ((one, False), (four, True)):
        (threshold,) = {row["threshold"] for row in verdicts.to_pylist() if row["rule"] == "few_cells"}
        assert (threshold is not None) == is_judged


def test_one_object_in_a_site_is_debris_only_where_sites_have_several():
    bright = np.full(96, 0.1)
    bright[17] = 0.95
    crowded = qc_profile("default").judge(*invented_plate(brightest_share=bright))
    assert failed(crowded, "site") == {("debris", "site 17-0")}
    alone = qc_profile("default").judge(*invented_plate(brightest_share=np.full(96, 0.95), object_count=np.ones(96)))
    assert failed(alone, "site") == set()
    reasons = {row["reason"] for row in alone.to_pylist() if row["rule"] == "debris"}
    assert reasons == {"sites have 1 objects in the median, expected 2 or more"}


def stored(root, metrics: pa.Table, placed: Places):
    """A catalog of one plate with a crop for each site."""
    catalog = empty_catalog(root)

    named = {"screen": "S", "plate": "P", "plate_id": "P", "batch": "B"}
    add_rows(catalog, "plates", named)
    catalog.append("qc_metrics", metrics, transaction="qc_metrics")
    wells = [
        {"well_id": well, "well": f"{chr(65 + row)}{column + 1:02}", "row": int(row), "column": int(column)}
        | {"control": control, "is_negative_control": control == "negative"}
        for well, row, column, control in zip(placed.wells, placed.row, placed.column, placed.control, strict=True)
    ]
    add_rows(catalog, "wells", *wells, **named, perturbation="x")
    sites = [{"site_id": site, "well_id": well} for site, well in placed.well_of_site.items()]
    image = {"channels": ["DNA"], "image_paths": ["gone.tif"], "reader": "files", "timepoint": 0, "z": ""}
    add_rows(catalog, "sites", *sites, **named, **image, site="1")
    crops = [site | {"crop_id": f"crop of {site['site_id']}"} for site in sites]
    add_rows(catalog, "crops", *crops, **named, site="1", foreground_share=0.5, size=64)
    return catalog


def curated(catalog, tmp_path, **qc):
    lines = "".join(f"    {key}: {value}\n" for key, value in qc.items())
    (tmp_path / "only_qc.yaml").write_text(f"steps:\n  - rule: qc\n{lines}", encoding="utf-8")
    return curate(catalog, CurateConfig(name="only_qc", folder=str(tmp_path)))


def test_a_rule_that_fails_most_controls_of_a_plate_is_shown_and_excludes_nothing(tmp_path):
    saturated = np.where(np.arange(96) % 7 > 0, 0.1, 0.0)  # six wells of seven, controls as others
    noisy = np.zeros(96)
    noisy[[2, 13]] = 0.95  # of no control: this rule counts
    catalog = stored(tmp_path / "root", *invented_plate(saturated_share=saturated, noise_share=noisy))
    curation = curated(catalog, tmp_path)
    assert curation.reasons == {"qc: noise": 2}
    spared = curated(catalog, tmp_path, even_if_controls_fail="true")
    assert spared.reasons == {"qc: saturation": 80, "qc: noise, saturation": 2}
    qc_id = judge_sites(catalog, QcConfig())
    assert catalog.sql(f"select count(*) n from qc_verdicts where qc_id = '{qc_id}' and rule = 'saturation' "
                       "and not is_pass")["n"].to_pylist() == [82]  # fmt: skip
    page = write_qc_page(catalog, qc_id, tmp_path).read_text(encoding="utf-8")
    n_controls = sum(saturated[i] > 0 for i in range(96) if i % 12 in (3, 6, 9))
    assert f"saturation fails {n_controls} of {N_CONTROLS} sites of negative controls of plate P in DNA." in page
    assert "even_if_controls_fail" in page
    assert "noise fails" not in page


def test_sites_that_a_wrong_rule_fails_still_count_in_their_wells():
    """All sites fail `saturation`; without them no well would have a mean, and no rule of wells a value."""
    means = np.full(96, 1000.0) + np.arange(96) % 5
    means[0] = 500.0
    verdicts = qc_profile("default").judge(*invented_plate(saturated_share=np.full(96, 0.1), mean=means))
    assert ("edge_well", "well 0") in failed(verdicts, "well")


def test_the_reason_of_each_verdict_not_given_is_on_the_page(tmp_path):
    catalog = stored(tmp_path / "root", *invented_plate(object_count=np.ones(96)))
    page = write_qc_page(catalog, judge_sites(catalog, QcConfig()), tmp_path).read_text(encoding="utf-8")
    assert "not judged: reference wells (controls) have 1 objects in the median, expected 10 or more" in page
    assert "not judged: sites have 1 objects in the median, expected 2 or more" in page


def test_a_config_sets_the_modality_and_the_verdicts_are_found_as_those_of_the_profile(tmp_path):
    catalog = stored(tmp_path / "root", *invented_plate(brightest_share=np.full(96, 0.95)))
    plain = judge_sites(catalog, QcConfig())
    by_hand = judge_sites(catalog, QcConfig(modalities=("Hoechst: brightfield",)))
    assert plain != by_hand
    assert profile_of(by_hand) == profile_of(plain) == qc_profile("default")
    n_failed = dict(
        catalog.sql("select qc_id, count(*) filter (not is_pass and rule = 'debris') n from qc_verdicts group by qc_id")
        .to_pandas()
        .itertuples(index=False)
    )
    assert n_failed == {plain: 96, by_hand: 0}
    declared = {"like": "default", "modalities": {"DNA": "phase"}}
    assert parse_profile("mine", declared, {"default": {"rules": [
        {"name": "r", "metric": "mean", "fails": "below", "absolute": 1.0, "says": "dark"}
    ]}}).modalities == (("DNA", "phase"),)  # fmt: skip
