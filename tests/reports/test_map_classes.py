from __future__ import annotations

import pandas as pd
import pytest

from cytolake.reports.report_figures import CONTROL_GREYS, class_styles, map_classes

OBS = pd.DataFrame(
    {
        "perturbation": ["TP53", "non-targeting", "DMSO", "drug"],
        "pathway": ["division", "", "", ""],
        "plate": ["P1", "P1", "P2", "P2"],
        "control": ["", "negative", "positive", ""],
    }
)


def test_a_control_is_no_treatment_and_a_missing_value_no_control():
    assert map_classes(OBS, "perturbation").tolist() == [
        "TP53", "non-targeting, negative control", "DMSO, positive control", "drug",
    ]  # fmt: skip
    assert map_classes(OBS, "pathway").tolist() == ["division", "negative control", "positive control", "no pathway"]
    assert map_classes(OBS, "plate").tolist() == ["P1", "P1", "P2", "P2"]


@pytest.mark.parametrize("n", [3, 8, 16, 60])
def test_no_two_classes_look_alike_and_only_controls_are_grey(n):
    treated = [f"gene-{i}" for i in range(n)]
    styles = class_styles([*treated, "a negative control", "b positive control"])
    assert len(set(styles.values())) == n + 2
    assert {styles[name][0] for name in ("a negative control", "b positive control")} == set(CONTROL_GREYS)
    for name in treated:
        red, green, blue = (int(styles[name][0][i : i + 2], 16) for i in (1, 3, 5))
        assert max(red, green, blue) - min(red, green, blue) > 30, "a colour, no grey"
    if n <= 16:
        assert len({styles[name][0] for name in treated}) == n
