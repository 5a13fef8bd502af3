"""Layouts whose confounding is planted, and random layouts that have none."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.benchmark.confounding import confounding_warnings
from cytolake.benchmark.position_confounding import WellPlace, position_confounding, same_positions
from cytolake.benchmark.split import Split, hold_out_groups, hold_out_wells


def plate(name="P0", batch="B0", height=8, width=12):
    return [WellPlace(name, row, column, batch) for row in range(height) for column in range(width)]


def plates(n, n_batches):
    return [well for p in range(n) for well in plate(f"P{p}", f"B{p % n_batches}")]


def shuffled(labels, wells, seed):
    """The labels in a random layout of every plate."""
    random, found = np.random.default_rng(seed), np.asarray(labels, object)
    for name in {well.plate for well in wells}:
        here = [i for i, well in enumerate(wells) if well.plate == name]
        found[here] = random.permutation(found[here])
    return found.tolist()


def by_factor(found):
    return {each.factor: each for each in found}


def in_blocks(wells):
    return [f"drug{well.column // 3}" for well in wells]


def test_four_treatments_in_column_blocks_of_one_plate_are_predicted_from_the_column():
    wells = plate()
    found = by_factor(position_confounding(wells, in_blocks(wells), label="perturbation"))
    assert {name for name, each in found.items() if each.is_confounded} == {"column", "well"}
    assert found["column"].balanced_accuracy == 1.0
    assert found["column"].chance == 0.25
    assert found["column"].null_low < 0.25 < found["column"].null_high < 0.5
    (once, warning) = confounding_warnings(wells, in_blocks(wells), {"perturbation": in_blocks(wells)})
    assert once == "one batch only: no statement about batches is possible."
    assert warning.startswith(
        "perturbation can be predicted from the column alone (balanced accuracy 1.00, chance 0.25"
    )
    assert "split `column_block`" in warning


@pytest.mark.parametrize(
    ("factor", "value_of"),
    [
        ("row", lambda well: well.row // 2),
        ("edge", lambda well: int(well.row in (0, 7) or well.column in (0, 11))),
        ("well", lambda well: (well.row // 4) ^ (well.column // 6)),  # neither a row nor a column predicts quadrants
    ],
)
def test_the_simplest_fact_that_predicts_the_label_is_named(factor, value_of):
    wells = plates(2, 1)
    labels = [f"L{value_of(well)}" for well in wells]
    found = by_factor(position_confounding(wells, labels))
    assert found[factor].balanced_accuracy > 0.95
    assert found[factor].is_confounded
    if factor == "well":
        assert not found["row"].is_confounded
        assert not found["column"].is_confounded
    words = {"row": "the row", "edge": "the distance to the plate's edge", "well": "the position on the plate"}[factor]
    assert f"predicted from {words} alone" in found[factor].sentence


@pytest.mark.parametrize("n_plates", [1, 2])
def test_random_layouts_are_called_confounded_as_often_as_the_level_says(n_plates):
    wells = plates(n_plates, 2)
    called = 0
    for seed in range(20):
        labels = shuffled(in_blocks(wells), wells, seed)
        called += any(each.is_confounded for each in position_confounding(wells, labels, n_draws=79, seed=seed))
    assert called <= 4  # at 5 % there are 5 or more of 20 with probability .003


def test_a_split_that_holds_the_columns_out_removes_what_the_column_predicts():
    """Controls in the first column of every block: one column of each block is held out whole."""
    wells = plate()
    labels = ["control" if well.column % 3 == 0 else "treated" for well in wells]
    columns = np.asarray([well.column for well in wells])
    splits = [Split(s, (f"{s}",), np.isin(columns, range(3 * s, 3 * s + 3))) for s in range(4)]
    as_wells = by_factor(position_confounding(wells, labels))
    as_blocks = by_factor(position_confounding(wells, labels, splits=splits))
    assert as_wells["column"].is_confounded
    assert as_blocks["column"].balanced_accuracy == 0.5
    assert not as_blocks["column"].is_confounded


def test_the_splits_of_a_probe_are_those_of_the_classifier():
    """The layout of the fourth plate is another: what holds within a plate does not carry over to it."""
    wells = plates(4, 2)
    labels = [f"L{(well.column // 3 + int(well.plate[1:])) % 4}" for well in wells]
    names = [well.plate for well in wells]
    of_plates = [f"{name} {label}" for name, label in zip(names, labels, strict=True)]
    held_out_wells = hold_out_wells([str(i) for i in range(len(wells))], of_plates, 0.25, [0])
    over = [
        by_factor(position_confounding(wells, labels, splits=splits, n_draws=1))["column"].balanced_accuracy
        for splits in (hold_out_groups(names, 0.25, range(4)), held_out_wells)
    ]
    assert over[0] == 0
    assert over[1] == pytest.approx(0.25, abs=0.2)


def test_equal_numbers_decide_by_ten_lines():
    """The classifier against a loop: the class of which the largest share of training wells has the value."""
    random = np.random.default_rng(3)
    wells = plates(2, 1)
    labels = random.choice(["a", "b", "b", "c"], size=len(wells)).tolist()
    (split,) = hold_out_wells([str(i) for i in range(len(wells))], labels, 0.25, [0])
    recall = []
    for name in "abc":
        credit = []
        for i in np.flatnonzero(split.is_test & (np.asarray(labels) == name)):
            share = {
                k: np.mean([w.column == wells[i].column for w, x, t in zip(wells, labels, split.is_test, strict=True)
                            if x == k and not t])
                for k in "abc"
            }  # fmt: skip
            best = [k for k in "abc" if share[k] == max(share.values())]
            credit.append((name in best) / len(best))
        recall.append(np.mean(credit))
    found = by_factor(position_confounding(wells, labels, splits=[split], n_draws=19))
    assert found["column"].balanced_accuracy == pytest.approx(np.mean(recall), abs=1e-12)


def test_replicates_in_the_same_wells_of_every_plate_are_confounded_by_design():
    wells = plates(3, 3)
    one_plate = np.random.default_rng(0).permutation([f"drug{i % 24}" for i in range(96)]).tolist()
    same = same_positions(wells, one_plate * 3)
    assert (same.n_same, same.n_repeated, same.is_by_design) == (24, 24, True)
    (warning,) = confounding_warnings(wells, one_plate * 3, {"perturbation": one_plate * 3})
    assert "24 of 24 values of perturbation are in the same wells on all of their plates" in warning
    moved = shuffled(one_plate * 3, wells, 1)
    assert not same_positions(wells, moved).is_by_design
    assert confounding_warnings(wells, moved, {"perturbation": moved}) == []


def test_labels_of_one_plate_each_are_predicted_from_the_plate():
    wells = plates(4, 2)
    labels = [f"L{int(well.plate[1:])}" for well in wells]
    found = by_factor(position_confounding(wells, labels))
    assert found["plate"].balanced_accuracy == 1.0
    assert found["plate"].is_confounded
    assert found["batch"].balanced_accuracy == pytest.approx(0.5, abs=0.01)
    (warning,) = confounding_warnings(wells, labels, {"gene": labels})
    assert warning.startswith("gene is confounded with batch: 4 of 4 values that two or more wells have")


def test_labels_that_lean_to_a_batch_are_predicted_from_it_in_part():
    wells = plates(4, 2)
    random = np.random.default_rng(0)
    labels = [str(random.choice(["a", "b"], p=[0.7, 0.3] if well.batch == "B0" else [0.3, 0.7])) for well in wells]
    (warning,) = confounding_warnings(wells, labels, {"gene": labels})
    assert "gene can be predicted in part from the batch alone" in warning
    assert "split `batch`" in warning


def test_a_table_of_genes_has_no_layout_to_warn_of():
    """One row for each gene, in wells and on plates that were made up; genes of a pathway are neighbours."""
    wells = plates(2, 2)
    genes = [f"gene{i}" for i in range(len(wells))]
    pathways = [f"pathway{i // 12}" for i in range(len(wells))]
    assert confounding_warnings(wells, genes, {"perturbation": genes, "pathway": pathways}) == []


def test_labels_that_share_every_well_are_not_confounded_with_position():
    """A pooled screen: cells of every guide in each well."""
    wells = [well for well in plates(4, 2)[:200] for _ in range(3)]
    guides = [f"g{i % 3}" for i in range(len(wells))]
    assert same_positions(wells, guides).n_same == 0
    assert confounding_warnings(wells, guides, {"perturbation": guides}) == []


def test_wells_without_positions_are_judged_by_plate_and_batch_alone():
    wells = [well._replace(row=None, column=None) for well in plates(4, 2)]
    labels = in_blocks(plates(4, 2))
    assert set(by_factor(position_confounding(wells, labels))) == {"plate", "batch"}
    assert confounding_warnings(wells, labels, {"perturbation": labels}) == []


def test_many_classes_are_sampled_and_counted():
    wells = plates(14, 2)
    labels = [f"drug{i // 2}" for i in range(len(wells))]
    found = by_factor(position_confounding(wells, labels, n_draws=1))["well"]
    assert (found.n_classes, found.n_classes_in_all, found.n_wells) == (500, 672, 1000)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="96 wells, 1 labels"):
        position_confounding(plate(), ["a"])
    with pytest.raises(ValueError, match=r"splits of \[3\]"):
        position_confounding(plate(), ["a"] * 96, splits=[Split(0, (), np.zeros(3, bool))])
    assert position_confounding(plate(), ["a"] * 96) == []
