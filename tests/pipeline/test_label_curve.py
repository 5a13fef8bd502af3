from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from cytolake.pipeline.label_curve import label_efficiency_svg
from cytolake.qc.detector.detector import Example
from cytolake.qc.detector.label_efficiency import LabelEfficiency, LabelEfficiencyConfig, label_efficiency


@pytest.fixture(scope="module")
def result() -> LabelEfficiency:
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.standard_normal((2, 6)) + 1.5 * (label != "normal"), label)
        for _ in range(4) for label in ("normal", "blur") for _ in range(12)
    ]  # fmt: skip
    config = LabelEfficiencyConfig(labels_per_class=(1, 5, 20), seeds=(0, 1, 2), n_resamples=30)
    return label_efficiency(examples, np.repeat(["P1", "P2", "P3", "P4"], 24).tolist(), tuple("abcdef"), config)


def test_the_drawing_is_an_svg_that_takes_the_pages_colour_and_escapes_names(result):
    drawn = label_efficiency_svg({"a < b & c": result, "second": result}, "auprc")
    root = ElementTree.fromstring(drawn)
    assert root.tag == "svg"
    assert root.get("fill") == "currentColor"
    texts = [element.text for element in root.iter("text")]
    assert "a < b & c" in texts
    assert {"1", "5", "20"} <= set(texts)
    circles = list(root.iter("circle"))
    assert len(circles) == 6
    heights = [float(circle.get("cy")) for circle in circles[:3]]
    values = [point.value for point in result.curve("auprc")]
    assert np.argsort(heights).tolist() == np.argsort([-value for value in values]).tolist()
    assert all(0 <= float(circle.get("cy")) <= 320 and 0 <= float(circle.get("cx")) <= 560 for circle in circles)


def test_what_cannot_be_drawn_is_refused(result):
    with pytest.raises(ValueError, match="no metric 'speed'"):
        label_efficiency_svg({"a": result}, "speed")
    with pytest.raises(ValueError, match="0 curves"):
        label_efficiency_svg({})
