"""Share of the simulated screens' artefacts that fail a rule meant for them, on seeds that no rule was chosen with.

Each screen is judged as an ingest and a curation would: metrics of every site, then the default profile plate by plate
with its wells. The bench also falls short where more than CLEAN_BAR of the sites without an artefact fail any rule of
level site.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from cytolake.catalog import table_contract
from cytolake.qc.levels import places
from cytolake.qc.metrics import measure_site
from cytolake.qc.verdicts import qc_profile
from cytolake.screens.positions import well_position
from cytolake.screens.simulated.cells import CHANNELS
from cytolake.screens.simulated.imaging import ARTEFACTS
from cytolake.screens.simulated.screen import SimulatedScreen, simulated_site, simulated_wells

BAR = 0.9
CLEAN_BAR = 0.02
SCREENS = tuple(
    SimulatedScreen(n_plates=2, n_batches=2, artefact_share=0.3, seed=seed, site_size_px=size)
    for seed, size in ((201, 192), (202, 192), (203, 256))
)
RULES_FOR = {
    "blur": {"defocus", "soft_focus"},
    "saturation": {"saturation"},
    "debris": {"debris", "common_debris"},
    "empty": {"empty"},
    "noise": {"noise"},
    "autofluorescence": {"autofluorescence"},
}


def judged(config: SimulatedScreen) -> tuple[list[tuple[str, float, set[str]]], list[float]]:
    """Artefact (empty for none), severity and failed rules of each site; and the seconds that measuring each took."""
    sites: dict[str, list[dict[str, object]]] = defaultdict(list)
    metrics: dict[str, list[dict[str, object]]] = defaultdict(list)
    artefacts: dict[str, tuple[str, float]] = {}
    seconds = []
    for well in simulated_wells(config):
        plate, name = well.row["plate"], well.row["well"]
        row, column = well_position(name)
        for site in range(1, config.sites_per_well + 1):
            site_id = f"{plate}-{name}-{site}"
            pixels = simulated_site(config, well, site)
            started = time.process_time()
            measured = measure_site(pixels)
            seconds.append(time.process_time() - started)
            metrics[plate] += [
                {"site_id": site_id, "plate_id": plate, "channel": channel, "channel_index": index, **values}
                for index, (channel, values) in enumerate(zip(CHANNELS, measured, strict=True))
            ]
            sites[plate].append(
                {"site_id": site_id, "well_id": f"{plate}-{name}", "row": row, "column": column}
                | {"control": well.row["control"]}
            )
            is_spoilt = well.row["artefact_site"] == str(site)
            artefacts[site_id] = (
                (well.row["artefact"], float(well.row["artefact_severity"])) if is_spoilt else ("", 0.0)
            )
    failed: dict[str, set[str]] = defaultdict(set)
    for plate in metrics:
        verdicts = qc_profile("default").judge(
            table_contract("qc_metrics").rows(metrics[plate]), places(pa.Table.from_pylist(sites[plate]))
        )
        for row in verdicts.to_pylist():
            if row["level"] == "site" and not row["is_pass"]:
                failed[row["site_id"]].add(row["rule"])
    return [(*artefact, failed[site_id]) for site_id, artefact in artefacts.items()], seconds


def main() -> int:
    found: list[tuple[str, float, set[str]]] = []
    seconds: list[float] = []
    for config in SCREENS:
        rows, took = judged(config)
        found += rows
        seconds += took
    table = Table("artefact", "sites", "caught", "missed at severity", "rules that failed")
    n_spoilt = n_caught = 0
    for kind in ARTEFACTS:
        spoilt = [(severity, rules) for artefact, severity, rules in found if artefact == kind]
        missed = [severity for severity, rules in spoilt if not rules & RULES_FOR[kind]]
        n_spoilt, n_caught = n_spoilt + len(spoilt), n_caught + len(spoilt) - len(missed)
        rules = Counter(rule for _, failed in spoilt for rule in failed).most_common(4)
        table.add_row(
            kind,
            str(len(spoilt)),
            str(len(spoilt) - len(missed)),
            ", ".join(f"{severity:.2f}" for severity in sorted(missed)),
            ", ".join(f"{rule} {n}" for rule, n in rules),
        )
    clean = [rules for artefact, _, rules in found if not artefact]
    wrong = sum(map(bool, clean))
    rules = Counter(rule for failed in clean for rule in failed).most_common(4)
    table.add_row("none", str(len(clean)), str(wrong), "", ", ".join(f"{rule} {n}" for rule, n in rules))
    Console(width=140).print(table)
    print(
        f"{wrong / len(clean):.2%} of {len(clean)} clean sites failed, at most {CLEAN_BAR:.0%} may; measuring a site "
        f"of 5 channels of {SCREENS[0].site_size_px} px took {1e3 * np.median(seconds):.0f} ms of one core (median)"
    )
    share = n_caught / n_spoilt
    is_ok = share >= BAR and wrong <= CLEAN_BAR * len(clean)
    print(f"qc_rules: figure={share:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
