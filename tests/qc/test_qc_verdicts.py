from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from scipy.stats import median_abs_deviation
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows, table_rows

from cytolake.catalog import Catalog, CatalogError, table_contract
from cytolake.qc.levels import Places, places
from cytolake.qc.metrics import METRICS, measure_site
from cytolake.qc.rules import QcRule
from cytolake.qc.verdicts import QcConfig, QcProfile, judge_sites, parse_profile, profile_of, qc_profile
from cytolake.screens.simulated.cells import CHANNELS
from cytolake.screens.simulated.imaging import ARTEFACTS
from cytolake.screens.simulated.screen import SimulatedScreen, simulated_site, simulated_wells

SITES_PER_WELL = 2
RULES_FOR = {
    "blur": {"defocus", "soft_focus"}, "saturation": {"saturation"}, "debris": {"debris", "common_debris"},
    "empty": {"empty"}, "noise": {"noise"}, "autofluorescence": {"autofluorescence"},
}  # fmt: skip


def metric_rows(plate: str, sites: dict[str, np.ndarray], channels: tuple[str, ...] = CHANNELS) -> pa.Table:
    return table_contract("qc_metrics").rows(
        {"site_id": site, "plate_id": plate, "channel": channels[index], "channel_index": index, **measured}
        for site, pixels in sites.items()
        for index, measured in enumerate(measure_site(pixels))
    )


def invented_metrics(plate: str, n: int = 12, channel: str = "DNA", seed: int = 0, **columns: object) -> pa.Table:
    rng = np.random.default_rng([len(plate), seed])
    values = {name: rng.normal(0.5, 0.1, n) for name in METRICS} | columns
    rows = (
        {name: float(of_site[i]) for name, of_site in values.items()} | {"site_id": f"{plate}-{i}"} for i in range(n)
    )
    return table_rows("qc_metrics", *rows, plate_id=plate, channel=channel, channel_index=0)


def rule(**changes: object) -> QcRule:
    return QcRule(**{"name": "r", "metric": "noise_share", "fails": "above", "says": "s", "mads": 3.0} | changes)


@pytest.fixture(scope="module")
def simulated() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels of each site of a simulated plate, and its artefact."""
    config = SimulatedScreen(
        n_plates=1, n_batches=1, n_pathways=2, guides_per_gene=2, n_compounds=1, n_negative_controls=6,
        sites_per_well=SITES_PER_WELL, site_size_px=160, artefact_share=0.5, seed=5,
    )  # fmt: skip
    pixels, artefacts = {}, {}
    for well in simulated_wells(config):
        for site in range(1, SITES_PER_WELL + 1):
            name = f"{well.row['well']}-{site}"
            pixels[name] = simulated_site(config, well, site)
            artefacts[name] = well.row["artefact"] if well.row["artefact_site"] == str(site) else ""
    return pixels, artefacts


@pytest.fixture(scope="module")
def measured(simulated) -> pa.Table:
    return metric_rows("P", simulated[0])


def sites_only(profile: QcProfile) -> list[QcRule]:
    return [rule for rule in profile.rules if rule.level == "site" and not rule.joint]


def failures(verdicts: pa.Table) -> dict[str, set[str]]:
    failed: dict[str, set[str]] = defaultdict(set)
    for row in verdicts.filter(pc.invert(verdicts.column("is_pass"))).to_pylist():
        failed[row["site_id"]].add(row["rule"])
    return failed


def test_nine_of_ten_artefacts_fail_their_own_rule_and_49_of_50_clean_sites_pass_all(simulated, measured):
    pixels, artefacts = simulated
    failed = failures(qc_profile("default").judge(measured))
    spoilt = {site: artefact for site, artefact in artefacts.items() if artefact}
    assert set(spoilt.values()) == set(ARTEFACTS)
    caught = [artefact for site, artefact in spoilt.items() if RULES_FOR[artefact] & failed[site]]
    assert set(caught) == set(ARTEFACTS)
    assert len(caught) >= 0.9 * len(spoilt)
    clean = [site for site in pixels if site not in spoilt]
    assert np.mean([not failed[site] for site in clean]) >= 0.98


@pytest.mark.slow
def test_a_gain_on_every_pixel_of_the_plate_changes_no_verdict(simulated, measured):
    pixels, _ = simulated
    profile = qc_profile("default")
    once = profile.judge(measured)
    tripled = profile.judge(metric_rows("P", {site: 3 * image.astype(np.uint32) for site, image in pixels.items()}))
    assert once.select(["site_id", "channel", "rule", "is_pass"]) == tripled.select(
        ["site_id", "channel", "rule", "is_pass"]
    )


def test_a_verdict_says_value_and_limit_for_every_site_channel_and_rule(measured):
    profile = qc_profile("default")
    verdicts = profile.judge(measured)
    assert verdicts.filter(pc.greater_equal(verdicts["channel_index"], 0)).num_rows == measured.num_rows * len(
        sites_only(profile)
    )
    metrics = {(row["site_id"], row["channel"]): row for row in measured.to_pylist()}
    sides = {rule.name: rule.fails for rule in profile.rules}
    for row in verdicts.to_pylist():
        if row["channel"]:
            assert row["value"] == metrics[row["site_id"], row["channel"]][row["metric"]]
        if row["threshold"] is not None:
            is_below = row["value"] < row["threshold"]
            is_above = row["value"] > row["threshold"]
            assert row["is_pass"] != (is_below if sides[row["rule"]] == "below" else is_above)


def test_a_relative_limit_is_scipys_robust_deviation_from_the_median():
    values = np.random.default_rng(0).gamma(2, 3, 40)
    distance = 3 * median_abs_deviation(values, scale="normal")
    assert rule().limit(values, min_values=8) == pytest.approx(np.median(values) + distance, rel=1e-4)
    assert rule(fails="below").limit(values, min_values=8) == pytest.approx(np.median(values) - distance, rel=1e-4)


def test_a_relative_limit_keeps_its_least_distance():
    even = np.full(20, 10.0)
    assert rule(min_distance=2.0).limit(even, min_values=8) == 12
    assert rule(min_share=0.5, fails="below").limit(even, min_values=8) == 5


def test_few_sites_have_no_relative_limit():
    few, enough = np.arange(7.0), np.arange(8.0)
    assert np.isnan(rule().limit(few, min_values=8))
    assert np.isfinite(rule().limit(enough, min_values=8))
    assert rule(absolute=3.0).limit(few, min_values=8) == 3
    assert rule().passes(few, np.nan).all()


def test_of_two_limits_the_stricter_counts():
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 7])
    relative = rule().limit(values, min_values=8)
    assert rule(absolute=relative - 1).limit(values, min_values=8) == relative - 1
    assert rule(absolute=relative + 1).limit(values, min_values=8) == relative


def test_the_id_follows_the_limits_and_not_the_words():
    entry = {"name": "r", "metric": "noise_share", "fails": "above", "says": "noisy", "absolute": 0.5}
    first = parse_profile("one", {"rules": [entry]})
    assert parse_profile("two", {"rules": [entry | {"says": "too noisy"}]}).qc_id == first.qc_id
    assert parse_profile("one", {"rules": [entry | {"absolute": 0.6}]}).qc_id != first.qc_id
    assert parse_profile("one", {"rules": [entry], "min_sites": 3}).qc_id != first.qc_id


def test_a_rule_leaves_its_excepted_stains_alone():
    entry = {"name": "r", "metric": "noise_share", "fails": "above", "says": "noisy", "absolute": -1.0}
    excepting = parse_profile("p", {"rules": [entry | {"except_channels": ["Brightfield"]}]})
    assert excepting.judge(invented_metrics("P", channel="Brightfield")).num_rows == 0
    assert excepting.judge(invented_metrics("P", channel="DNA")).num_rows == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "sharpness"}, "metric 'sharpness' to be one of"),
        ({"fails": "near"}, "below, above, outside, found 'near'"),
        ({"fails": "outside"}, "outside only with statistic deviation or edge_shift"),
        ({"level": "batch"}, "level to be one of site, well, plate"),
        ({"level": "well", "statistic": "separation"}, "statistic to be one of value, deviation"),
        ({"level": "plate", "statistic": "edge_shift"}, "absolute and no mads where a plate is judged"),
        ({"level": "well", "joint": True}, "joint only with level site"),
        ({"metric": ["mean", "sd"]}, "one metric, or statistic separation"),
        ({"scale": "cubic"}, "scale to be one of linear, log"),
        ({"min_wells": 1}, "min_wells of 2 or more"),
        ({"mads": None}, "a limit"),
        ({"mads": -1}, "mads above 0"),
        ({"says": ""}, "a sentence"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
    ],
)
def test_a_rule_that_is_not_sound_is_named(changes, said):
    entry = {"name": "odd", "metric": "noise_share", "fails": "above", "says": "s", "mads": 3}
    with pytest.raises(CatalogError, match=said) as caught:
        parse_profile("p", {"rules": [entry | changes]})
    assert "rule odd" in str(caught.value)


def test_a_profile_is_found_again_by_the_id_of_its_verdicts():
    assert profile_of(qc_profile("default").qc_id) == qc_profile("default")
    assert profile_of("no such id") is None


def test_an_unknown_profile_is_refused_with_the_existing_ones():
    with pytest.raises(CatalogError, match=r"QC profile strict: not in .* There are: default"):
        qc_profile("strict")


N_ROWS, N_COLUMNS = 8, 12
NEGATIVE, POSITIVE = (3, 5), (6, 5)  # columns 4 and 6 of six rows each; no control on the rim


def plate_of_96(seed: int = 0, sites_per_well: int = 2, **metrics: np.ndarray) -> tuple[pa.Table, Places]:
    """Healthy metrics of two channels of a plate of 96 wells; `metrics` are (8, 12) means of the wells, one channel."""
    rng = np.random.default_rng(seed)
    rows, sites = [], []
    for row in range(N_ROWS):
        for column in range(N_COLUMNS):
            control = {NEGATIVE[0]: "negative", POSITIVE[0]: "positive"}.get(column, "") if 1 <= row <= 6 else ""
            well = f"{chr(65 + row)}{column + 1:02}"
            for site in range(sites_per_well):
                site_id = f"{well}-{site}"
                sites.append(
                    {"site_id": site_id, "well_id": well, "row": row, "column": column, "control": control}
                )  # fmt: skip
                for index, channel in enumerate(("DNA", "RNA")):
                    healthy = {
                        "mean": rng.normal(1000, 20),
                        "sd": rng.normal(300, 10),
                        "p99": 2500.0,
                        "background_floor": 200.0,
                        "focus_slope": rng.normal(-3, 0.1),
                        "laplacian_variance": np.exp(rng.normal(-3, 0.05)),
                        "foreground_share": rng.normal(0.5, 0.02),
                        "object_count": float(rng.poisson(120)),
                        "common_brightness": np.exp(rng.normal(0.5, 0.05)),
                    }
                    if channel == "DNA":
                        healthy |= {name: values[row, column] for name, values in metrics.items()}
                    rows.append(
                        dict.fromkeys(METRICS, 0.0)
                        | {"site_id": site_id, "plate_id": "P", "channel": channel, "channel_index": index}
                        | healthy
                    )
    return table_contract("qc_metrics").rows(rows), places(pa.Table.from_pylist(sites))


def wells_with(value: float, *changed: tuple[int, int, float], noise: float = 0.02) -> np.ndarray:
    """(8, 12): about `value` in each well, and other values in some (row, column, value)."""
    wells = value * np.random.default_rng(7).normal(1, noise, (N_ROWS, N_COLUMNS))
    for row, column, other in changed:
        wells[row, column] = other
    return wells


def failed_rows(verdicts: pa.Table, level: str) -> list[dict[str, object]]:
    wanted = pc.and_(pc.equal(verdicts["level"], level), pc.invert(verdicts["is_pass"]))
    return verdicts.filter(wanted).to_pylist()


def test_a_healthy_plate_fails_no_rule_of_wells_or_plates_but_that_its_controls_look_alike():
    verdicts = qc_profile("default").judge(*plate_of_96())
    assert failed_rows(verdicts, "well") == []
    assert {row["rule"] for row in failed_rows(verdicts, "plate")} == {"control_separation"}


def test_verdicts_of_all_levels_have_the_tables_key():
    contract = table_contract("qc_verdicts")
    verdicts = qc_profile("default").judge(*plate_of_96())
    assert verdicts.group_by(contract.key).aggregate([]).num_rows == verdicts.num_rows
    assert set(verdicts["level"].to_pylist()) == {"site", "well", "plate"}
    for row in verdicts.to_pylist():
        assert bool(row["site_id"]) == (row["level"] == "site")
        assert bool(row["well_id"]) == (row["level"] != "plate")
        assert bool(row["channel"]) == (row["channel_index"] >= 0)


def test_wells_with_too_few_and_too_many_cells_fail_by_name_against_the_controls():
    counts = wells_with(120, (2, 8, 30.0), (5, 9, 300.0), (4, 7, 90.0))
    verdicts = qc_profile("default").judge(*plate_of_96(object_count=counts))
    failed = {(row["rule"], row["well_id"], row["channel"], row["metric"]) for row in failed_rows(verdicts, "well")}
    assert failed == {("few_cells", "C09", "DNA", "object_count"), ("many_cells", "F10", "DNA", "object_count")}
    (few,) = {row["threshold"] for row in verdicts.to_pylist() if row["rule"] == "few_cells"}
    in_controls = np.log(counts[1:7, NEGATIVE[0]])
    distance = max(0.7, 5 * median_abs_deviation(in_controls, scale="normal"))
    assert few == pytest.approx(np.exp(np.median(in_controls) - distance), rel=1e-4)


def test_cells_are_counted_against_the_controls_even_where_most_of_the_library_is_toxic():
    counts = wells_with(40)
    counts[1:7, NEGATIVE[0]] = wells_with(120)[1:7, NEGATIVE[0]]
    verdicts = qc_profile("default").judge(*plate_of_96(object_count=counts))
    assert len([row for row in failed_rows(verdicts, "well") if row["rule"] == "few_cells"]) == 96 - 6


def test_without_controls_the_plates_own_wells_are_the_reference():
    metrics, placed = plate_of_96(object_count=wells_with(120, (2, 8, 30.0)))
    unknown = replace(placed, control=("",) * len(placed.wells))
    verdicts = qc_profile("default").judge(metrics, unknown)
    assert [row["well_id"] for row in failed_rows(verdicts, "well")] == ["C09"]
    separation = next(row for row in verdicts.to_pylist() if row["rule"] == "control_separation")
    assert separation["is_pass"]
    assert separation["threshold"] is None


def test_a_dim_rim_fails_the_plate_and_one_dim_well_of_the_rim_fails_alone():
    rim = np.ones((N_ROWS, N_COLUMNS), bool)
    rim[1:-1, 1:-1] = False
    inside = wells_with(1000)
    dim_rim = qc_profile("default").judge(*plate_of_96(mean=np.where(rim, 0.9 * inside, inside)))
    assert ("edge_effect", "DNA") in {(row["rule"], row["channel"]) for row in failed_rows(dim_rim, "plate")}
    assert "RNA" not in {row["channel"] for row in failed_rows(dim_rim, "plate")}
    one = qc_profile("default").judge(*plate_of_96(mean=wells_with(1000, (0, 4, 500.0), (4, 4, 500.0))))
    assert [(row["rule"], row["well_id"], row["channel"]) for row in failed_rows(one, "well")] == [
        ("edge_well", "A05", "DNA")
    ]
    assert {row["rule"] for row in failed_rows(one, "plate")} == {"control_separation"}


def test_a_rim_that_is_dim_as_a_whole_is_held_against_the_inside_well_by_well():
    """Against all wells, the dim ones among them, none of the rim would stand out."""
    rim = np.ones((N_ROWS, N_COLUMNS), bool)
    rim[1:-1, 1:-1] = False
    inside = wells_with(1000)
    little_contrast = np.full((N_ROWS, N_COLUMNS), 600.0)
    verdicts = qc_profile("default").judge(*plate_of_96(mean=np.where(rim, 0.85 * inside, inside), p99=little_contrast))
    failed = [row["well_id"] for row in failed_rows(verdicts, "well") if row["rule"] == "edge_well"]
    assert len(failed) == rim.sum() == 36


def test_a_gradient_over_the_plate_is_a_position_effect_of_its_channel():
    gradient = wells_with(1000) + 40 * np.arange(N_COLUMNS)
    failed = failed_rows(qc_profile("default").judge(*plate_of_96(mean=gradient)), "plate")
    assert ("position_effect", "DNA") in {(row["rule"], row["channel"]) for row in failed}
    assert ("position_effect", "RNA") not in {(row["rule"], row["channel"]) for row in failed}
    seeded = wells_with(120) + 8 * np.arange(N_ROWS)[:, None]
    failed = failed_rows(qc_profile("default").judge(*plate_of_96(object_count=seeded)), "plate")
    assert "seeding" in {row["rule"] for row in failed}


def test_controls_that_differ_pass_and_the_verdict_names_the_metric_that_separates_them():
    spread = wells_with(300)
    spread[1:7, POSITIVE[0]] *= 1.5
    verdicts = qc_profile("default").judge(*plate_of_96(sd=spread))
    (row,) = (row for row in verdicts.to_pylist() if row["rule"] == "control_separation")
    assert row["is_pass"]
    assert row["metric"] == "sd"
    assert row["value"] > 2 > row["threshold"] >= 1


def test_a_site_that_failed_does_not_count_in_its_well_unless_the_rule_says_so():
    means = wells_with(1000)
    metrics, placed = plate_of_96(mean=means)
    rows = metrics.to_pylist()
    for row in rows:
        if row["site_id"] == "A05-0":  # saturated, and bright for it
            row |= {"saturated_share": 0.5, "mean": 50_000.0}
        if row["site_id"].startswith("C09"):  # both sites empty: no cells, and that is worth a verdict
            row |= {"foreground_share": 0.0, "object_count": 0.0}
    verdicts = qc_profile("default").judge(table_contract("qc_metrics").rows(rows), placed)
    failed = {(row["rule"], row["well_id"]) for row in failed_rows(verdicts, "well")}
    assert failed == {("few_cells", "C09")}


def test_a_plate_without_the_rules_stain_is_judged_in_its_channel_of_most_contrast():
    metrics, placed = plate_of_96(object_count=wells_with(120, (2, 8, 30.0)))
    renamed = metrics.set_column(
        metrics.column_names.index("channel"),
        "channel",
        pc.replace_substring(metrics["channel"], "DNA", "some nuclear dye"),
    )
    brighter = renamed.to_pylist()
    for row in brighter:
        row["p99"] *= 2 if row["channel"] != "RNA" else 1
    verdicts = qc_profile("default").judge(table_contract("qc_metrics").rows(brighter), placed)
    assert [(row["well_id"], row["channel"]) for row in failed_rows(verdicts, "well")] == [("C09", "some nuclear dye")]


def test_metrics_that_an_older_catalog_lacks_fail_nothing():
    metrics, placed = plate_of_96()
    newer = {"tenengrad", "background_floor", "unevenness", "object_count", "common_brightness"}
    rows = [row | dict.fromkeys(newer) for row in metrics.to_pylist()]
    verdicts = qc_profile("default").judge(table_contract("qc_metrics").rows(rows), placed)
    about_newer = [row for row in verdicts.to_pylist() if row["metric"] in newer]
    assert about_newer
    assert all(row["is_pass"] and row["value"] is None and row["threshold"] is None for row in about_newer)


def test_six_wells_have_no_verdict_on_edges_and_positions():
    metrics, placed = plate_of_96(sites_per_well=1)
    few = [well for well in placed.wells if well in ("A01", "A02", "A03", "B01", "B02", "B03")]
    keep = [placed.wells.index(well) for well in few]
    small = Places(
        well_of_site={site: well for site, well in placed.well_of_site.items() if well in few},
        wells=tuple(few),
        row=placed.row[keep],
        column=placed.column[keep],
        control=tuple(placed.control[i] for i in keep),
    )
    verdicts = qc_profile("default").judge(
        metrics.filter(pc.is_in(metrics["site_id"], pa.array(list(small.well_of_site)))), small
    )
    on_plate = [row for row in verdicts.to_pylist() if row["level"] == "plate"]
    assert on_plate
    assert all(row["is_pass"] and row["threshold"] is None for row in on_plate)


@pytest.mark.real_data
def test_the_rules_find_the_real_planes_out_of_focus_and_no_other(real_data: Path):
    folder = real_data / "bbbc006_focus"
    rows, expected = [], set()
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["note"] not in ("in focus", "out of focus"):
                continue
            with Image.open(folder / row["path"]) as image:
                (measured,) = measure_site(np.asarray(image)[None])
            rows.append({"site_id": row["path"], "plate_id": "P", "channel": "DNA", "channel_index": 0, **measured})
            if row["note"] == "out of focus":
                expected.add(row["path"])
    failed = failures(qc_profile("default").judge(table_contract("qc_metrics").rows(rows)))
    assert {site: rules for site, rules in failed.items() if rules} == {site: {"defocus"} for site in expected}


@pytest.mark.real_data
def test_real_wells_with_few_cells_have_few_in_the_replicates_too_and_controls_never(real_data: Path):
    """Counts of 8 plates of 384 wells, two replicates of each layout; no label is used to find the failures."""
    folder = real_data / "lincs_plates_metadata"
    maps = folder / "platemaps" / "2016_04_01_a549_48hr_batch1"
    with (maps / "barcode_platemap.csv").open(newline="") as file:
        layout_of = {row["Assay_Plate_Barcode"]: row["Plate_Map_Name"] for row in csv.DictReader(file)}
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    with gzip.open(folder / "cell_counts_batch1.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            counts[row["Image_Metadata_Plate"]][row["Image_Metadata_Well"]] = float(row["cell_count"])
    replicates: dict[str, list[str]] = defaultdict(list)
    for plate in sorted(counts):
        replicates[layout_of[plate]].append(plate)
    profile = qc_profile("default")
    n_failed = n_again = n_controls = 0
    for layout in sorted(replicates)[:4]:
        with (maps / "platemap" / f"{layout}.txt").open(newline="") as file:
            compound = {row["well_position"]: row["broad_sample"] for row in csv.DictReader(file, delimiter="\t")}
        failed = []
        for plate in replicates[layout][:2]:
            metrics = table_contract("qc_metrics").rows(
                dict.fromkeys(METRICS, 0.0)
                | {"site_id": well, "plate_id": plate, "channel": "DNA", "channel_index": 0}
                | {"foreground_share": 0.5, "object_count": count}
                for well, count in counts[plate].items()
            )
            placed = places(
                pa.Table.from_pylist(
                    [
                        {
                            "site_id": well,
                            "well_id": well,
                            "row": ord(well[0]) - 65,
                            "column": int(well[1:]) - 1,
                            "control": "" if compound.get(well) else "negative",
                        }
                        for well in counts[plate]
                    ]
                )
            )
            rows = failed_rows(profile.judge(metrics, placed), "well")
            failed.append({row["well_id"] for row in rows if row["rule"] == "few_cells"})
            n_controls += sum(not compound.get(str(row["well_id"])) for row in rows)
        n_failed += len(failed[0]) + len(failed[1])
        n_again += 2 * len(failed[0] & failed[1])
    assert n_controls == 0
    assert n_failed > 100
    assert n_again / n_failed > 0.85


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return empty_catalog(tmp_path)


def add_plate(catalog: Catalog, plate: str, metrics: pa.Table) -> None:
    catalog.append("qc_metrics", metrics, transaction=f"metrics {plate}")
    add_rows(catalog, "plates", {"plate_id": plate, "screen": "S", "plate": plate})


def test_each_plate_is_judged_once(catalog):
    add_plate(catalog, "P1", invented_metrics("P1"))
    qc_id = judge_sites(catalog, QcConfig())
    first = catalog.table("qc_verdicts")
    version = catalog.versions()["qc_verdicts"]
    assert judge_sites(catalog, QcConfig()) == qc_id
    assert catalog.versions()["qc_verdicts"] == version
    add_plate(catalog, "P22", invented_metrics("P22"))
    seen = []
    assert judge_sites(catalog, QcConfig(), lambda *call: seen.append(call)) == qc_id
    assert seen == [("plates judged", 1, 2), ("plates judged", 2, 2)]
    after = catalog.table("qc_verdicts")
    assert after.num_rows == 2 * first.num_rows
    of_first = catalog.table("qc_verdicts", where="plate_id = 'P1'")
    assert sorted(map(str, of_first.to_pylist())) == sorted(map(str, first.to_pylist()))


def test_a_plate_judged_by_a_run_that_died_before_the_next_is_not_judged_again(catalog):
    add_plate(catalog, "P1", invented_metrics("P1"))
    add_plate(catalog, "P22", invented_metrics("P22"))

    def die(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_sites(catalog, QcConfig(), die)
    judge_sites(catalog, QcConfig())
    counts = catalog.sql(
        "SELECT plate_id, count(*) AS n FROM qc_verdicts GROUP BY plate_id ORDER BY plate_id"
    ).to_pylist()
    n = 12 * sum(rule.level == "site" for rule in qc_profile("default").rules)
    assert counts == [{"plate_id": "P1", "n": n}, {"plate_id": "P22", "n": n}]


def test_judging_a_catalog_takes_places_and_controls_from_its_wells(catalog):
    metrics, placed = plate_of_96(object_count=wells_with(120, (2, 8, 30.0)))
    add_plate(catalog, "P", metrics)
    wells = [
        {"well_id": well, "row": int(row), "column": int(column), "control": control}
        for well, row, column, control in zip(placed.wells, placed.row, placed.column, placed.control, strict=True)
    ]
    add_rows(catalog, "wells", *wells, plate_id="P")
    sites = [{"site_id": site, "well_id": well} for site, well in placed.well_of_site.items()]
    add_rows(catalog, "sites", *sites, plate_id="P")
    judge_sites(catalog, QcConfig())
    columns = ["level", "well_id", "site_id", "channel", "rule", "value", "is_pass"]
    written = catalog.table("qc_verdicts", columns=columns).to_pylist()
    judged = qc_profile("default").judge(metrics, placed).select(columns).to_pylist()
    assert sorted(map(str, written)) == sorted(map(str, judged))
    assert [row["well_id"] for row in written if row["rule"] == "few_cells" and not row["is_pass"]] == ["C09"]


def test_a_catalog_without_plates_is_refused(catalog):
    with pytest.raises(CatalogError, match="no plate to judge"):
        judge_sites(catalog, QcConfig())


def test_a_profile_like_another_differs_in_the_limits_that_it_sets_and_in_nothing_else():
    default, gross = qc_profile("default"), qc_profile("gross")
    changed = {one.name for one, other in zip(default.rules, gross.rules, strict=True) if one != other}
    assert changed == {"common_debris", "noise"}
    assert gross.qc_id != default.qc_id
    assert profile_of(gross.qc_id) == gross
    rules = [{"name": "dark", "metric": "mean", "fails": "below", "absolute": 1.0, "says": "dark"}]
    others = {"base": {"rules": rules}}
    assert parse_profile("x", {"like": "base", "limits": {"dark": {"absolute": 2.0}}}, others).rules[0].absolute == 2.0
    for wrong in ({"like": "lost"}, {"like": "base", "limits": {"bright": {}}}, {"like": "base", "rules": rules}):
        with pytest.raises(CatalogError, match="expected `like` a profile with rules"):
            parse_profile("x", wrong, others)
