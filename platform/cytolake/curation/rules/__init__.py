"""The rules of a curation, one file each. A rule excludes some of the crops that the rules before it keep.

The fields of a rule are its keys in catalog/curation/*.yaml; phenoprints.yaml there shows most of them with comments.
Rules read the catalog at the table versions that the curation pinned.
"""

from __future__ import annotations

from cytolake.curation.rules.cap import CapStep
from cytolake.curation.rules.cluster_balanced import ClusterBalancedStep
from cytolake.curation.rules.consistency import ConsistencyStep
from cytolake.curation.rules.contract import Candidates, CurationError, Exclusions, Rule
from cytolake.curation.rules.exact_duplicates import ExactDuplicatesStep
from cytolake.curation.rules.foreground import ForegroundStep
from cytolake.curation.rules.near_duplicates import NearDuplicatesStep
from cytolake.curation.rules.qc import QcStep
from cytolake.curation.rules.support import SupportStep
from cytolake.curation.rules.undersample_controls import UndersampleControlsStep
from cytolake.curation.rules.where import WhereStep

__all__ = ["RULES", "Candidates", "CapStep", "CurationError", "Exclusions", "ForegroundStep", "QcStep", "Rule",
           "WhereStep"]  # fmt: skip

RULES: dict[str, type[Rule]] = {
    step.rule: step
    for step in (
        QcStep, ForegroundStep, WhereStep, SupportStep, UndersampleControlsStep, ConsistencyStep, ExactDuplicatesStep,
        NearDuplicatesStep, ClusterBalancedStep, CapStep,
    )
}  # fmt: skip
"""Rule name to class."""
