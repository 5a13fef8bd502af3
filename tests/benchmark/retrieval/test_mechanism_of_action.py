"""Nearest-neighbour mechanisms: BBBC021's protocol on its published profiles, and small answers known beforehand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from cytolake.benchmark.retrieval.mechanism_of_action import nearest_mechanism

COMPOUNDS = ["a", "a", "b", "c", "d"]
MECHANISMS = ["x", "x", "x", "y", "y"]
BATCHES = [["1"], ["2"], ["2"], ["1"], ["1"]]


def directions(*degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.fixture(scope="module")
def bbbc021(real_data):
    medians = pd.read_csv(real_data / "oracles" / "bbbc021_treatment_median.csv")
    wells = pd.read_csv(
        real_data / "bbbc021_ljosa_profiles" / "morpheus" / "csvs" / "BBBC021_feature_selected_mad_robustize.csv",
        usecols=["Metadata_Plate", "Metadata_Compound", "Metadata_Concentration"],
    )
    wells["treatment"] = wells["Metadata_Compound"] + "@" + wells["Metadata_Concentration"].astype(str)
    weeks = wells["Metadata_Plate"].str.split("_").str[0].groupby(wells["treatment"]).agg(lambda each: set(each))
    return (
        medians.filter(regex="^(?!Metadata_)").to_numpy(),
        medians["Metadata_Compound"].tolist(),
        medians["Metadata_moa"].tolist(),
        weeks[medians["Metadata_Treatment"]].tolist(),
    )


@pytest.mark.real_data
def test_published_profiles_of_bbbc021_have_nsc_913_and_nscb_739_of_92(bbbc021):
    profiles, compounds, mechanisms, batches = bbbc021
    nsc = nearest_mechanism(profiles, compounds, mechanisms, normalisation="plate controls, MAD robustise")
    assert nsc.n_scored == 103
    assert nsc.accuracy.value == 94 / 103
    assert nsc.accuracy.low < 94 / 103 < nsc.accuracy.high
    nscb = nearest_mechanism(
        profiles, compounds, mechanisms, normalisation="plate controls, MAD robustise", batches=batches
    )
    assert nscb.n_scored == 92
    assert nscb.accuracy.value == 68 / 92
    unscored = {m for m, why in zip(mechanisms, nscb.reason, strict=True) if why is not None}
    assert unscored == {"Cholesterol-lowering", "Kinase inhibitors"}
    assert (nsc.protocol, nscb.protocol) == ("NSC", "NSCB")
    assert nscb.normalisation == "plate controls, MAD robustise"


@pytest.mark.real_data
def test_neighbours_of_bbbc021_are_those_of_a_loop(bbbc021):
    profiles, compounds, mechanisms, batches = bbbc021
    result = nearest_mechanism(profiles, compounds, mechanisms, normalisation="-", batches=batches)
    unit = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
    truth, predicted = [], []
    for i in range(103):
        allowed = [j for j in range(103) if compounds[j] != compounds[i] and not batches[i] & batches[j]]
        best = max(allowed, key=lambda j: unit[i] @ unit[j])
        if any(mechanisms[j] == mechanisms[i] for j in allowed):
            assert result.neighbour[i] == best
            assert result.cosine[i] == pytest.approx(unit[i] @ unit[best])
            truth.append(mechanisms[i])
            predicted.append(mechanisms[best])
        else:
            assert result.neighbour[i] == -1
    np.testing.assert_array_equal(result.confusion, confusion_matrix(truth, predicted, labels=list(result.mechanisms)))
    assert result.recall["Aurora kinase inhibitors"] == 1
    assert "Kinase inhibitors" not in result.recall


def test_neither_the_compound_itself_nor_its_batch_is_a_neighbour():
    profiles = directions(0, 1, 30, 3, 40)
    nsc = nearest_mechanism(profiles, COMPOUNDS, MECHANISMS, normalisation="none")
    assert nsc.neighbour.tolist() == [3, 3, 4, 1, 2]
    nscb = nearest_mechanism(profiles, COMPOUNDS, MECHANISMS, normalisation="none", batches=BATCHES)
    assert nscb.neighbour.tolist() == [2, -1, 4, -1, -1]
    assert nscb.reason[1] == "no other compound of its mechanism in another batch"
    assert nscb.n_scored == 2


def test_a_treatment_of_several_batches_shares_each_of_them():
    batches = [["1", "2"], ["1"], ["2"], ["3"], ["1"]]
    result = nearest_mechanism(
        directions(0, 1, 2, 90, 91), list("abcde"), list("xxxyy"), normalisation="-", batches=batches
    )
    assert result.reason[0] is not None
    assert result.neighbour[1] == 2


def test_lengths_and_order_of_treatments_change_nothing():
    rng = np.random.default_rng(0)
    profiles = rng.normal(size=(40, 8))
    compounds = [f"c{i // 2}" for i in range(40)]
    mechanisms = [f"m{i // 8}" for i in range(40)]
    expected = nearest_mechanism(profiles, compounds, mechanisms, normalisation="none")
    order = rng.permutation(40)
    got = nearest_mechanism(
        (profiles * rng.uniform(0.1, 10, (40, 1)))[order],
        [compounds[i] for i in order],
        [mechanisms[i] for i in order],
        normalisation="none",
    )
    assert got.accuracy.value == expected.accuracy.value
    np.testing.assert_array_equal(got.confusion, expected.confusion)
    np.testing.assert_array_equal(order[got.neighbour], expected.neighbour[order])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"normalisation": " "}, "normalisation is empty"),
        ({"compounds": ["a"]}, "1 compounds for 5 profiles"),
        ({"mechanisms": ["x", "y", "x", "y", "y"]}, "treatment 1: compound a has the mechanism y here and x before"),
        ({"batches": [["1"], [], ["2"], ["1"], ["1"]]}, r"treatment 1 \(a\) has the batches \[\]"),
        ({"batches": ["1", "2", "2", "1", "1"]}, "expected a list"),
        ({"batches": [["1"]] * 5}, "none of 5 treatments can be scored: .* in several batches"),
        ({"mechanisms": ["x", "x", "y", "z", "w"]}, "none of 5 treatments can be scored"),
        ({"profiles": np.zeros((5, 2))}, "row 0 has the length 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(changed, match):
    given = {
        "profiles": directions(0, 1, 30, 3, 40), "compounds": COMPOUNDS, "mechanisms": MECHANISMS,
        "normalisation": "none",
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        nearest_mechanism(**{**given, **changed})
