from __future__ import annotations

import io

import pytest
import yaml
from rich.console import Console
from tests.curation.planted_catalog import CROPS_EACH, add_screen, plate_labels

from cytolake.catalog import Catalog
from cytolake.cli.curation_diff import print_curation_diff
from cytolake.curation.curate import CurateConfig, Curation, curate
from cytolake.curation.diff import NOT_THERE, CurationDiff, diff_curations
from cytolake.curation.rules import CurationError

CONTROLS_GONE = {"rule": "where", "where": "control = ''"}
ONE_PLATE_GONE = {"rule": "where", "where": "plate <> 'P3'"}


@pytest.fixture(scope="module")
def catalog(screen: Catalog) -> Catalog:
    return screen


@pytest.fixture(scope="module")
def run(catalog: Catalog, tmp_path_factory):
    folder = tmp_path_factory.mktemp("specs")

    def run_steps(name: str, *steps: dict, seed: int = 0) -> Curation:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"steps": list(steps), "seed": seed}))
        return curate(catalog, CurateConfig(name=name, folder=str(folder)))

    return run_steps


@pytest.fixture(scope="module")
def two(run) -> tuple[Curation, Curation]:
    """A curation without controls, and one without a plate."""
    return run("no_controls", CONTROLS_GONE), run("no_plate", ONE_PLATE_GONE)


def kept(catalog: Catalog, curation: Curation) -> set[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    return set(rows.column("crop_id").to_pylist())


def rendered(diff: CurationDiff) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        print_curation_diff(diff, console)
    return captured.get()


def test_added_and_removed_are_the_differences_of_the_two_sets(catalog, two):
    first, second = two
    diff = diff_curations(catalog, first.curation_id, second.curation_id)
    ours, theirs = kept(catalog, first), kept(catalog, second)
    assert set(diff.added) == theirs - ours
    assert set(diff.removed) == ours - theirs
    assert diff.n_both == len(ours & theirs)
    assert diff.added_by_reason == {"not where control = ''": len(diff.added)}
    assert diff.removed_by_reason == {"not where plate <> 'P3'": len(diff.removed)}
    assert sum(added for added, _ in diff.by_plate.values()) == len(diff.added)
    assert sum(removed for _, removed in diff.by_perturbation.values()) == len(diff.removed)
    assert diff.by_plate["P3"] == (0, len(diff.removed))
    assert set(diff.by_plate) == {f"P{p}" for p in range(6)}
    assert diff.by_perturbation["negative control"][0] == 5 * 12 * CROPS_EACH


def test_the_reverse_diff_swaps_added_and_removed(catalog, two):
    first, second = two
    one = diff_curations(catalog, first.curation_id, second.curation_id)
    other = diff_curations(catalog, second.curation_id, first.curation_id)
    assert (one.added, one.removed) == (other.removed, other.added)
    assert (one.added_by_reason, one.removed_by_reason) == (other.removed_by_reason, other.added_by_reason)


def test_a_curation_does_not_differ_from_itself(catalog, two):
    same = two[0].curation_id
    diff = diff_curations(catalog, same, same)
    assert (diff.added, diff.removed, diff.by_plate, diff.rules, diff.tables) == ((), (), {}, (), ())


def test_changed_rules_and_their_order_are_named(catalog, run):
    cap = {"rule": "cap", "max_crops_per_perturbation": 5}
    first, reverse = run("named", CONTROLS_GONE, cap), run("named", cap, CONTROLS_GONE)
    second = run("named", cap | {"max_crops_per_perturbation": 9}, {"rule": "support", "min_wells": 1}, seed=3)
    assert diff_curations(catalog, first.curation_id, second.curation_id).rules == (
        "seed: 0 -> 3",
        "where: there -> gone",
        "cap.max_crops_per_perturbation: 5 -> 9",
        "support: not there -> there",
    )
    assert diff_curations(catalog, first.curation_id, reverse.curation_id).rules == ("order: where, cap -> cap, where",)


def test_names_and_starts_of_ids_are_accepted_and_one_name_twice_means_its_last_two(catalog, run, two):
    first, second = run("lasting", CONTROLS_GONE), run("lasting", ONE_PLATE_GONE)
    by_name = diff_curations(catalog, "lasting", "lasting")
    assert by_name == diff_curations(catalog, first.curation_id[:8], second.curation_id)
    with pytest.raises(
        CurationError, match=r"curation nothing: 0 with this id or name, expected 1. There are: .*\(lasting"
    ):
        diff_curations(catalog, "nothing", "lasting")
    with pytest.raises(CurationError, match="curation no_plate: there is only one"):
        diff_curations(catalog, "no_plate", "no_plate")


def test_the_terminal_output_shows_numbers_rules_and_plates(catalog, two):
    first, second = two
    diff = diff_curations(catalog, first.curation_id, second.curation_id)
    text = rendered(diff)
    assert f"{len(diff.added):,} added, {len(diff.removed):,} removed" in text
    assert "rules where.where: control = '' -> plate <> 'P3'" in text
    assert "not where plate <> 'P3'" in text
    assert "P3" in text


@pytest.mark.slow
def test_crops_of_a_later_plate_count_as_not_there_before(own, tmp_path):
    (tmp_path / "grown.yaml").write_text(yaml.safe_dump({"steps": [CONTROLS_GONE]}))
    config = CurateConfig(name="grown", folder=str(tmp_path))
    first = curate(own, config)
    wells = [well | {"plate_id": "P9", "plate": "P9", "well_id": f"P9/{well['well']}"} for well in plate_labels()[:40]]
    add_screen(own, wells)
    second = curate(own, config)
    diff = diff_curations(own, first.curation_id, second.curation_id)
    n_treated = sum(well["control"] == "" for well in wells)
    assert diff.added_by_reason == {NOT_THERE: n_treated * CROPS_EACH}
    assert not diff.removed
    assert any(line.startswith("crops: ") for line in diff.tables)
