"""A block choice in words and tables, for the terminal and for the report: every claim is made from its protocol."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cytolake.benchmark.linear_probe import CROP_METRIC, WELL_METRIC
from cytolake.benchmark.split import WITHIN_PLATES
from cytolake.benchmark.unit_scores import MIN_UNITS, units_in_words
from cytolake.models.objectives import ObjectiveConfig
from cytolake.tracking import Baseline
from cytolake.train.config import PretrainConfig
from cytolake.tune.block_search import BlockChoice, held_out_text, interval_text

_LEVEL = {WELL_METRIC: "wells", CROP_METRIC: "crops"}


def headline(choice: BlockChoice) -> str:
    """The result in one sentence: what training gained, over what, measured how, and whether that is shown."""
    over = choice.best_baseline.kind.replace("_", " ")
    measured = (
        f"{_measured(choice)} of {choice.label}, {held_out_text(choice.split)}" if choice.split else _measured(choice)
    )
    interval = interval_text(choice.gain_low, choice.gain_high)
    if choice.has_gain:
        return f"Training gained {choice.gain:.3f} {interval} over {_named(over)} ({measured})."
    if choice.gain_low is None:
        return (
            f"Training changed the score by {choice.gain:+.3f} compared with {_named(over)} ({measured}); "
            f"{len(choice.units)} {_units(choice)} are too few for an interval, so no gain is shown."
        )
    return f"No gain shown: {choice.gain:+.3f} {interval} compared with {_named(over)} ({measured})."


def how_measured(choice: BlockChoice) -> str:
    """What a score and its interval are, and what they are not, for the protocol of this choice."""
    if not choice.is_nested:
        return (
            f"The block is the best of {choice.n_candidates} on the wells that it is scored on, so its score reads "
            "high; the baselines' are chosen in the same way. The interval of the gain is the widest that both "
            "scores allow."
        )
    texts = [
        f"Each of {len(choice.units)} {_units(choice)} is scored by probes that never saw it, with the block that the "
        f"others choose among {choice.n_candidates} (blocks and poolings); baselines are chosen in the same way."
    ]
    if choice.ci_low is None:
        texts.append(f"Fewer than {MIN_UNITS} {_units(choice)} give no interval; single values are shown.")
    else:
        texts.append(f"Intervals are 95 % over {_units(choice)} (Student's t).")
    if choice.split in WITHIN_PLATES:
        texts.append("The held-out wells are of plates that the probe saw, so scores read higher than for a new plate.")
    if choice.encoder_saw_units:
        texts.append("The encoder was trained, without labels, on crops of all plates (see hold_out_plates).")
    else:
        texts.append("These plates were held out of pretraining too.")
    return " ".join(texts)


def why_no_interval(choices: Sequence[BlockChoice]) -> str:
    """Which rows of `measures` have no interval, and why; empty where all have one."""
    few = [each for each in choices if each.is_nested and each.ci_low is None]
    return " ".join(
        f"{measure_name(each).capitalize()}: {len(each.units)} {_units(each)} are too few for an interval (at least "
        f"{MIN_UNITS}), so no gain is shown there."
        for each in few
    )


def measure_name(choice: BlockChoice) -> str:
    """`wells, by plate`"""
    level = _LEVEL.get(choice.metric, choice.metric.replace("_", " "))
    return f"{level}, by {choice.split.replace('_', ' ')}" if choice.split else level


def measures(choices: Sequence[BlockChoice]) -> tuple[tuple[str, ...], ...]:
    """A header and one row for each choice: scores of the chosen block and of every baseline, chance, and the gain."""
    kinds = list(dict.fromkeys(each.kind for choice in choices for each in choice.baselines))
    header = (
        "held out",
        "chosen block",
        *(kind.replace("_", " ") for kind in kinds),
        "chance",
        "gain over the best baseline",
    )
    rows = []
    for choice in choices:
        of_kind = [choice.baseline(kind) for kind in kinds]
        rows.append(
            (
                measure_name(choice),
                _score(choice),
                *("" if each is None else _score(each) for each in of_kind),
                "" if choice.chance is None else f"{choice.chance:.3f}",
                f"{choice.gain:+.3f} {interval_text(choice.gain_low, choice.gain_high)} "
                f"({choice.best_baseline.kind.replace('_', ' ')})",
            )
        )
    return (header, *rows)


def choice_table(choices: Sequence[BlockChoice]) -> Table:
    """The same for a terminal: a column for each choice."""
    header, *rows = measures(choices)
    shown = Table(
        "balanced accuracy of", *(escape(row[0]) for row in rows), box=None, header_style="dim", pad_edge=False
    )
    for place, name in enumerate(header[1:], start=1):
        name, *values = map(escape, (name, *(row[place] for row in rows)))
        shown.add_row(*((f"[bold]{each}[/]" for each in (name, *values)) if place == 1 else (name, *values)))
    return shown


def objective_text(config: PretrainConfig) -> str:
    """What was trained, in a sentence."""
    objective: ObjectiveConfig = config.objective
    text = f"Objective: {objective.name}, architecture {config.model.architecture}."
    if objective.name == "mae" and objective.mae.contrastive_weight > 0:
        positives = "two crops of one well" if config.second_view == "well" else "two views of one crop"
        text = (
            f"Objective: masked autoencoder with a contrastive term of weight {objective.mae.contrastive_weight:g}, "
            f"whose positive pairs are {positives}; architecture {config.model.architecture}."
        )
    return text


def _measured(choice: BlockChoice) -> str:
    of = {WELL_METRIC: "balanced accuracy of wells, classes", CROP_METRIC: "balanced accuracy of crops, classes"}
    return of.get(choice.metric, f"{choice.benchmark.replace('_', ' ')}, {choice.metric.replace('_', ' ')}")


def _named(kind: str) -> str:
    return {"untrained": "the untrained encoder", "cell count": "the cell count"}.get(kind, kind)


def _units(choice: BlockChoice) -> str:
    return units_in_words(choice.unit)


def _score(score: BlockChoice | Baseline) -> str:
    return f"{score.score:.3f} {interval_text(score.ci_low, score.ci_high)}"
