from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import median_abs_deviation

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, table_contract
from cytolake.catalog.qc import QcConfig, QcRule, judge_sites, parse_profile, qc_profile
from cytolake.catalog.qc_metrics import METRICS, measure_site
from cytolake.screens.simulated import SimulatedScreen, simulated_site, simulated_wells
from cytolake.screens.simulated_cells import CHANNELS
from cytolake.screens.simulated_imaging import ARTEFACTS

SITES_PER_WELL = 2
RULE_FOR = {
    "blur": "defocus",
    "saturation": "saturation",
    "debris": "debris",
    "empty": "empty",
    "noise": "noise",
    "autofluorescence": "autofluorescence",
}


def metric_rows(plate: str, sites: dict[str, np.ndarray], channels: tuple[str, ...] = CHANNELS) -> pa.Table:
    return table_contract("qc_metrics").rows(
        {"site_id": site, "plate_id": plate, "channel": channels[index], "channel_index": index, **measured}
        for site, pixels in sites.items()
        for index, measured in enumerate(measure_site(pixels))
    )


def invented_metrics(plate: str, n: int = 12, channel: str = "DNA", **columns: object) -> pa.Table:
    rng = np.random.default_rng(len(plate))
    values = {name: rng.normal(0.5, 0.1, n) for name in METRICS} | columns
    return table_contract("qc_metrics").conform(
        pa.table(
            {
                "site_id": [f"{plate}-{i}" for i in range(n)],
                "plate_id": [plate] * n,
                "channel": [channel] * n,
                "channel_index": pa.array([0] * n, pa.int32()),
                **values,
            }
        )
    )


def rule(**changes: object) -> QcRule:
    return QcRule(**{"name": "r", "metric": "noise_share", "fails": "above", "says": "s", "mads": 3.0} | changes)


@pytest.fixture(scope="module")
def simulated() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels of each site of a simulated plate, and its artefact."""
    config = SimulatedScreen(
        n_plates=1,
        n_batches=1,
        n_pathways=2,
        guides_per_gene=2,
        n_compounds=1,
        n_negative_controls=6,
        sites_per_well=SITES_PER_WELL,
        site_size_px=160,
        artefact_share=0.5,
        seed=5,
    )
    pixels, artefacts = {}, {}
    for well in simulated_wells(config):
        for site in range(1, SITES_PER_WELL + 1):
            name = f"{well.row['well']}-{site}"
            pixels[name] = simulated_site(config, well, site)
            artefacts[name] = well.row["artefact"] if well.row["artefact_site"] == str(site) else ""
    return pixels, artefacts


def failures(verdicts: pa.Table) -> dict[str, set[str]]:
    failed: dict[str, set[str]] = defaultdict(set)
    for row in verdicts.filter(pc.invert(verdicts.column("is_pass"))).to_pylist():
        failed[row["site_id"]].add(row["rule"])
    return failed


def test_four_of_five_artefacts_fail_their_own_rule_and_nine_of_ten_clean_sites_pass_all(simulated):
    pixels, artefacts = simulated
    failed = failures(qc_profile("default").judge(metric_rows("P", pixels)))
    spoilt = {site: artefact for site, artefact in artefacts.items() if artefact}
    assert set(spoilt.values()) == set(ARTEFACTS)
    caught = [artefact for site, artefact in spoilt.items() if RULE_FOR[artefact] in failed[site]]
    assert set(caught) == set(ARTEFACTS)
    # Missed here: blur of severity 0.36 (0 to 1), and debris no brighter than the cells it lies on.
    assert len(caught) >= 0.8 * len(spoilt)
    clean = [site for site in pixels if site not in spoilt]
    assert np.mean([not failed[site] for site in clean]) >= 0.9


def test_a_gain_on_every_pixel_of_the_plate_changes_no_verdict(simulated):
    pixels, _ = simulated
    profile = qc_profile("default")
    once = profile.judge(metric_rows("P", pixels))
    tripled = profile.judge(metric_rows("P", {site: 3 * image.astype(np.uint32) for site, image in pixels.items()}))
    assert once.select(["site_id", "channel", "rule", "is_pass"]) == tripled.select(
        ["site_id", "channel", "rule", "is_pass"]
    )


def test_a_verdict_says_value_and_limit_for_every_site_channel_and_rule(simulated):
    pixels, _ = simulated
    metrics, profile = metric_rows("P", pixels), qc_profile("default")
    verdicts = profile.judge(metrics)
    assert verdicts.num_rows == metrics.num_rows * len(profile.rules)
    measured = {(row["site_id"], row["channel"]): row for row in metrics.to_pylist()}
    sides = {rule.name: rule.fails for rule in profile.rules}
    for row in verdicts.to_pylist():
        assert row["value"] == measured[row["site_id"], row["channel"]][row["metric"]]
        if row["threshold"] is not None:
            is_below = row["value"] < row["threshold"]
            is_above = row["value"] > row["threshold"]
            assert row["is_pass"] != (is_below if sides[row["rule"]] == "below" else is_above)


def test_a_relative_limit_is_scipys_robust_deviation_from_the_median():
    values = np.random.default_rng(0).gamma(2, 3, 40)
    distance = 3 * median_abs_deviation(values, scale="normal")
    assert rule().limit(values, min_sites=8) == pytest.approx(np.median(values) + distance, rel=1e-4)
    assert rule(fails="below").limit(values, min_sites=8) == pytest.approx(np.median(values) - distance, rel=1e-4)


def test_a_relative_limit_keeps_its_least_distance():
    even = np.full(20, 10.0)
    assert rule(min_distance=2.0).limit(even, min_sites=8) == 12
    assert rule(min_share=0.5, fails="below").limit(even, min_sites=8) == 5


def test_few_sites_have_no_relative_limit():
    few, enough = np.arange(7.0), np.arange(8.0)
    assert np.isnan(rule().limit(few, min_sites=8))
    assert np.isfinite(rule().limit(enough, min_sites=8))
    assert rule(absolute=3.0).limit(few, min_sites=8) == 3
    assert rule().passes(few, np.nan).all()


def test_of_two_limits_the_stricter_counts():
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 7])
    relative = rule().limit(values, min_sites=8)
    assert rule(absolute=relative - 1).limit(values, min_sites=8) == relative - 1
    assert rule(absolute=relative + 1).limit(values, min_sites=8) == relative


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
        ({"fails": "beside"}, "below or above"),
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


def test_an_unknown_profile_is_told_with_those_that_are_there():
    with pytest.raises(CatalogError, match=r"QC profile strict: not in .* There are: default"):
        qc_profile("strict")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return cytolake.catalog.open(tmp_path, create=True)


def add_plate(catalog: Catalog, plate: str, metrics: pa.Table) -> None:
    contract = table_contract("plates")
    row = dict.fromkeys(contract.schema.names) | {"plate_id": plate, "screen": "S", "plate": plate}
    catalog.append("qc_metrics", metrics, transaction=f"metrics {plate}")
    catalog.append("plates", contract.rows([row]), transaction=f"plate {plate}")


def test_each_plate_is_judged_once(catalog):
    add_plate(catalog, "P1", invented_metrics("P1"))
    qc_id = judge_sites(catalog, QcConfig())
    first = catalog.table("qc_verdicts")
    version = catalog.versions()["qc_verdicts"]
    assert judge_sites(catalog, QcConfig()) == qc_id
    assert catalog.versions()["qc_verdicts"] == version
    add_plate(catalog, "P22", invented_metrics("P22"))
    seen = []
    assert judge_sites(catalog, QcConfig(), lambda *told: seen.append(told)) == qc_id
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
    n = 12 * len(qc_profile("default").rules)
    assert counts == [{"plate_id": "P1", "n": n}, {"plate_id": "P22", "n": n}]


def test_a_catalog_without_plates_is_refused(catalog):
    with pytest.raises(CatalogError, match="no plate to judge"):
        judge_sites(catalog, QcConfig())
