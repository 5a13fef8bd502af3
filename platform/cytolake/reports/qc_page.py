"""The page of quality control: which plates, wells and sites failed, by which rule, in which channel, how they look.

Every number is a row of qc_verdicts or qc_metrics; pictures are read from the sites' own pixels. It is one
file because it follows the template section by section.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.control_failures import failing_controls
from cytolake.qc.levels import median_and_sd
from cytolake.qc.rules import QcRule
from cytolake.qc.verdicts import profile_of
from cytolake.reports.page import write_page
from cytolake.reports.plate_maps import PlateGrid, PlateMap, limit_colour, measured_colour, share_colour
from cytolake.reports.qc_pictures import in_turn, pictures_of, treatment

Floats = NDArray[np.float64]
Row = dict[str, Any]

PAGE_FILE = "qc.html"
ROWS_SHOWN = 40
"""Of each plate's failed wells and failed sites; the tables hold them all."""
REASONS_SHOWN = 3
"""Of why a rule did not judge, the most frequent."""
ALL_CHANNELS = "all channels"
MEASURED = {
    "mean": "mean, counts",
    "background_floor": "background, counts",
    "unevenness": "unevenness of the background",
    "focus_slope": "focus slope",
    "foreground_share": "foreground share",
    "object_count": "objects",
}
"""Metrics that are drawn as they are, with what a reader calls them."""


@dataclass(slots=True)
class _Plate:
    """What the page says about one plate."""

    plate_id: str
    name: str
    screen: str
    batch: str
    n_sites: int = 0
    n_judged_sites: int = 0
    n_failed_sites: int = 0
    n_failed_wells: int = 0
    failed_map: PlateMap | None = None
    rules: list[tuple[str, int]] = field(default_factory=list)
    """Rules that failed on it and on how many sites, most frequent first."""
    plate_rows: list[Row] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    """Columns of the maps of limits."""
    limits: list[tuple[str, list[PlateMap | None]]] = field(default_factory=list)
    stains: list[str] = field(default_factory=list)
    """Columns of the maps of measurements."""
    measured: list[tuple[str, list[PlateMap | None]]] = field(default_factory=list)
    wells: list[Row] = field(default_factory=list)
    n_well_rows: int = 0
    sites: list[Row] = field(default_factory=list)
    n_site_rows: int = 0

    @property
    def failed_share(self) -> float:
        return self.n_failed_sites / self.n_sites if self.n_sites else 0.0

    @property
    def failed_plate_rules(self) -> list[str]:
        return sorted({row["rule"] for row in self.plate_rows if not row["is_pass"]})

    @property
    def has_plate_verdict(self) -> bool:
        return any(row["is_judged"] for row in self.plate_rows)


def write_qc_page(catalog: Catalog, qc_id: str, folder: Path, *, n_worst: int = 24) -> Path:
    """Write one self-contained HTML page (no script, no outside file) about the verdicts of one set of rules.

    Args:
        catalog: Its tables plates, wells, sites, qc_metrics and qc_verdicts, and the pixels of the sites shown.
        qc_id: From `judge_sites`, or of a detector that wrote verdicts.
        folder: Where `qc.html` is written; made if need be.
        n_worst: How many failed sites are shown as pictures: the furthest beyond its limit of each rule, then the
            second of each, and so on.

    Returns:
        The page's path.

    Raises:
        CatalogError: There are no verdicts of this id.
    """
    verdicts_of = {
        row["plate_id"]: row
        for row in catalog.sql(
            "select p.plate_id, p.plate, p.screen, p.batch from plates p where plate_id in "
            "(select plate_id from qc_verdicts where qc_id = $qc_id) order by screen, plate",
            parameters={"qc_id": qc_id},
        ).to_pylist()
    }
    if not verdicts_of:
        known = catalog.sql("select distinct qc_id from qc_verdicts order by qc_id").column(0).to_pylist()
        raise CatalogError(
            f"{catalog.root}: no verdicts of qc_id {qc_id!r}. There are {', '.join(known) or 'none'}. "
            "Judge the sites first: `cytolake curate`."
        )
    profile = profile_of(qc_id)
    rules = profile.rules if profile else ()
    says = {rule.name: rule.says for rule in rules}
    plates: list[_Plate] = []
    tally = _Tally()
    worst: list[Row] = []
    typical: dict[str, str] = {}
    suspended: list[str] = []
    for plate_id, named in verdicts_of.items():
        with _tables_of(catalog, qc_id, plate_id, rules) as tables:
            tally.add(tables)
            plates.append(_plate(tables, named, list(says)))
            suspended += [_suspension(row, named["plate"]) for row in _query(tables, _SUSPENDED)]
            worst += _query(tables, _WORST.format(n_worst=n_worst))
            for row in _query(tables, _TYPICAL):
                typical[plate_id] = row["site_id"]
    n_sites, n_failed = (sum(getattr(plate, name) for plate in plates) for name in ("n_sites", "n_failed_sites"))
    return write_page(
        folder / PAGE_FILE,
        "qc_page.html.j2",
        qc_id=qc_id,
        profile=profile.name if profile else "",
        counts=[
            ("plates", f"{len(plates):,}"),
            ("sites judged", f"{sum(plate.n_judged_sites for plate in plates):,}"),
            ("sites failed", f"{n_failed:,}"),
            ("of all sites", f"{n_failed / max(n_sites, 1):.1%}"),
            ("wells with a failure", f"{sum(plate.n_failed_wells for plate in plates):,}"),
            ("plates with a failure of their own", f"{sum(bool(plate.failed_plate_rules) for plate in plates):,}"),
        ],
        rules=tally.rows(says),
        channels=tally.channels,
        plates=plates,
        pictures=[_shown(row) for row in pictures_of(catalog, in_turn(worst, n_worst), typical)],
        suspended=suspended,
        n_shown=ROWS_SHOWN,
    )


_SCORED = """
with judged as (
    select coalesce(v.level, 'site') as level, v.plate_id, coalesce(s.well_id, v.well_id, '') as well_id, v.site_id,
           v.channel, v.rule, v.metric, v.value, v.threshold, v.is_pass, coalesce(v.reason, '') as reason,
           coalesce(k.is_outside, false) as is_outside, coalesce(k.statistic, 'value') as statistic
    from verdicts v left join sites s on s.site_id = v.site_id left join rules k on k.rule = v.rule
), centred as (
    select *, median(case when isfinite(value) then value end) over (partition by level, rule, channel) as middle
    from judged
)
select level, plate_id, well_id, site_id, channel, rule, metric, statistic, value, threshold, is_pass, reason,
       not is_pass or (threshold is not null and value is not null) as is_judged,
       case when threshold is null or value is null then null
            when is_pass then greatest(0, least(1, raw)) else greatest(1.001, raw) end as score
from (
    select *, coalesce(case when is_outside then abs(value) / nullif(threshold, 0)
                            else (value - middle) / nullif(threshold - middle, 0) end,
                       case when is_pass then 0 else 2 end) as raw
    from centred
)
"""
"""`score` is 0 at the plate's median, 1 on the limit and more beyond it, on whichever side the limit lies.
`is_judged` is false where a rule had no limit or no value to hold against it: the table has a pass there."""

_WORST = """
select * from (
    select *, row_number() over (partition by rule order by score desc, site_id, channel) as place
    from scored where level = 'site' and not is_pass
) where place <= {n_worst}
"""

_SUSPENDED = f"select * from ({failing_controls('verdicts')}) order by n_failed desc, rule, channel"

_TYPICAL = """
with passed as (
    select site_id, avg(foreground_share) as foreground from metrics
    where site_id in (select site_id from scored where level = 'site' group by site_id having bool_and(is_pass))
    group by site_id
)
select site_id from passed order by abs(foreground - (select median(foreground) from passed)), site_id limit 1
"""


def _tables_of(catalog: Catalog, qc_id: str, plate_id: str, rules: Sequence[QcRule]) -> duckdb.DuckDBPyConnection:
    """The plate's rows of verdicts, metrics, sites and wells, and `scored`, the verdicts with their scores.

    A database of its own: `Catalog.sql` would open the tables anew for each query.
    """
    of_plate: dict[str, Any] = {"where": "plate_id = ?", "parameters": [plate_id]}
    tables = {
        "verdicts": catalog.table("qc_verdicts", where="qc_id = ? and plate_id = ?", parameters=[qc_id, plate_id]),
        "metrics": catalog.table("qc_metrics", **of_plate),
        "sites": catalog.table("sites", columns=["site_id", "well_id", "site"], **of_plate),
        "wells": catalog.table(
            "wells", columns=["well_id", "well", "row", "column", "perturbation", "control"], **of_plate
        ),
        "rules": pa.table(
            {
                "rule": pa.array([rule.name for rule in rules], pa.string()),
                "is_outside": pa.array([rule.fails == "outside" for rule in rules], pa.bool_()),
                "statistic": pa.array([rule.judged for rule in rules], pa.string()),
            }
        ),
    }
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    connection.execute(f"create temp table scored as {_SCORED}")
    return connection


def _query(tables: duckdb.DuckDBPyConnection, query: str) -> list[Row]:
    rows: list[Row] = tables.sql(query).to_arrow_table().to_pylist()
    return rows


def _suspension(row: Row, plate: str) -> str:
    unit = "sites of negative controls" if row["level"] == "site" else "negative-control wells"
    return (
        f"{row['rule'].replace('_', ' ')} fails {row['n_failed']} of {row['n_judged']} {unit} of plate {plate}"
        f"{' in ' + row['channel'] if row['channel'] else ''}."
    )


class _Tally:
    """Verdicts of all plates by rule, failures also by channel."""

    def __init__(self) -> None:
        self.judged: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()
        self.not_judged: Counter[tuple[str, str]] = Counter()
        self.by_channel: Counter[tuple[str, str, str]] = Counter()
        self.reasons: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        """Why verdicts were not given."""

    @property
    def channels(self) -> list[str]:
        """Those that anything failed in."""
        return _in_order({channel for (_, _, channel), n in self.by_channel.items() if n})

    def add(self, tables: duckdb.DuckDBPyConnection) -> None:
        for row in _query(
            tables,
            "select level, rule, channel, count(*) filter (is_judged) as judged, "
            "count(*) filter (not is_pass) as failed, count(*) filter (not is_judged) as not_judged, "
            "coalesce(list(distinct reason) filter (not is_judged and reason <> ''), []) as reasons from scored "
            "group by all",
        ):
            key = (row["level"], row["rule"])
            self.judged[key] += row["judged"]
            self.failed[key] += row["failed"]
            self.not_judged[key] += row["not_judged"]
            for reason in row["reasons"]:
                self.reasons[key][reason] += row["not_judged"]
            if row["judged"]:
                self.by_channel[*key, row["channel"] or ALL_CHANNELS] += row["failed"]

    def rows(self, says: dict[str, str]) -> list[Row]:
        levels = ("site", "well", "plate")
        place = {rule: index for index, rule in enumerate(says)}
        keys = sorted(self.judged, key=lambda key: (levels.index(key[0]), place.get(key[1], len(place)), key[1]))
        return [
            {
                "level": level,
                "rule": rule,
                "says": says.get(rule, ""),
                "judged": self.judged[level, rule],
                "failed": self.failed[level, rule],
                "not_judged": self.not_judged[level, rule],
                "reasons": [reason for reason, _ in self.reasons[level, rule].most_common(REASONS_SHOWN)],
                "channels": [self.by_channel.get((level, rule, channel)) for channel in self.channels],
            }
            for level, rule in keys
        ]


def _in_order(channels: set[str]) -> list[str]:
    """Stains by name, then what concerns all of them."""
    return sorted(channels, key=lambda channel: (channel == ALL_CHANNELS, channel))


def _plate(tables: duckdb.DuckDBPyConnection, named: Row, order: list[str]) -> _Plate:
    wells = _query(tables, "select * from wells")
    grid = PlateGrid(wells)
    known = {row["well_id"]: row for row in wells}
    plate = _Plate(plate_id=named["plate_id"], name=named["plate"], screen=named["screen"], batch=named["batch"] or "")
    by_well = _query(
        tables,
        """
        select well_id, count(distinct site_id) filter (level = 'site') as n,
               count(distinct site_id) filter (level = 'site' and is_judged) as judged,
               count(distinct site_id) filter (level = 'site' and not is_pass) as failed,
               bool_or(not is_pass) as is_failed
        from scored where level <> 'plate' group by well_id
        """,
    )
    plate.n_sites = sum(row["n"] for row in by_well)
    plate.n_judged_sites = sum(row["judged"] for row in by_well)
    plate.n_failed_sites = sum(row["failed"] for row in by_well)
    plate.n_failed_wells = sum(row["is_failed"] for row in by_well)
    shares = {row["well_id"]: row["failed"] / row["n"] for row in by_well if row["n"]}
    plate.failed_map = grid.map(shares, share_colour, f"{named['plate']}: share of each well's sites that failed", "")
    _add_rules(tables, plate, grid, order)
    _add_measured(tables, plate, grid)
    failed = _query(
        tables,
        "select f.*, s.site from (select * from scored where not is_pass) f left join sites s using (site_id) "
        "order by f.score desc, f.site_id, f.rule, f.channel",
    )
    for row in failed:
        row["well"] = known.get(row["well_id"], {}).get("well", "")
        row["treatment"] = treatment(known.get(row["well_id"], {}))
    sites_of_rules = {(row["rule"], row["site_id"]) for row in failed if row["level"] == "site"}  # not channels
    plate.rules = Counter(rule for rule, _ in sorted(sites_of_rules)).most_common(4)
    plate.wells = [_shown(row) for row in failed if row["level"] == "well"]
    plate.sites = [_shown(row) for row in failed if row["level"] == "site"]
    plate.n_well_rows, plate.n_site_rows = len(plate.wells), len(plate.sites)
    plate.wells, plate.sites = plate.wells[:ROWS_SHOWN], plate.sites[:ROWS_SHOWN]
    of_plate = _query(
        tables, "select * from scored where level = 'plate' order by is_pass, not is_judged, rule, channel"
    )
    plate.plate_rows = [_shown(row) for row in of_plate]
    return plate


def _shown(row: Row) -> Row:
    return row | {
        "channel": row["channel"] or ALL_CHANNELS,
        "judged": row["metric"] + ("" if row["statistic"] == "value" else f", {row['statistic'].replace('_', ' ')}"),
        "value": _number(row["value"]),
        "threshold": _number(row["threshold"]),
        "verdict": ("pass" if row["is_pass"] else "fail") if row["is_judged"] else "not judged",
        "why": row["reason"] if not row["is_judged"] else "",
    }


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _add_rules(tables: duckdb.DuckDBPyConnection, plate: _Plate, grid: PlateGrid, order: list[str]) -> None:
    rows = _query(
        tables,
        """
        select rule, level, channel, well_id, max(score) as score, count(*) filter (not is_pass) as failed,
               any_value(threshold) as threshold
        from scored where level <> 'plate' group by all
        """,
    )
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["rule"]][row["channel"] or ALL_CHANNELS].append(row)
    plate.channels = _in_order({channel for of_rule in found.values() for channel in of_rule})
    for rule in sorted(found, key=lambda rule: (order.index(rule) if rule in order else len(order), rule)):
        maps: list[PlateMap | None] = []
        for channel in plate.channels:
            here = found[rule].get(channel, [])
            limit = next((row["threshold"] for row in here if row["threshold"] is not None), None)
            n_failed = sum(row["failed"] for row in here)
            unit = "wells" if here and here[0]["level"] == "well" else "sites"
            maps.append(
                grid.map(
                    {row["well_id"]: row["score"] for row in here},
                    limit_colour,
                    f"{rule}, {channel}: {n_failed} {unit} failed, limit {_number(limit)}",
                    "no limit" if limit is None else f"limit {_number(limit)}",
                    n_failed,
                )
                if here
                else None
            )
        plate.limits.append((rule, maps))


def _add_measured(tables: duckdb.DuckDBPyConnection, plate: _Plate, grid: PlateGrid) -> None:
    means = ", ".join(f"avg(m.{metric}) as {metric}" for metric in MEASURED)
    rows = _query(
        tables, f"select s.well_id, m.channel, {means} from metrics m join sites s using (site_id) group by all"
    )
    plate.stains = sorted({row["channel"] for row in rows})
    for metric, name in MEASURED.items():
        maps: list[PlateMap | None] = []
        for channel in plate.stains:
            values = {
                row["well_id"]: row[metric] for row in rows if row["channel"] == channel and row[metric] is not None
            }
            if not values:
                maps.append(None)
                continue
            low, high = _usual_range(np.array(list(values.values())))
            maps.append(
                grid.map(
                    {well: (value - low) / max(high - low, 1e-12) for well, value in values.items()},
                    measured_colour,
                    f"{name}, {channel}: {_number(low)} to {_number(high)}",
                    f"{_number(low)} – {_number(high)}",
                )
            )
        if any(maps):
            plate.measured.append((name, maps))


def _usual_range(values: Floats) -> tuple[float, float]:
    """All values, or three robust standard deviations around their median where some lie further out."""
    low, high = float(values.min()), float(values.max())
    median, sd = median_and_sd(values)
    return (max(low, median - 3 * sd), min(high, median + 3 * sd)) if sd > 0 else (low, high)
