"""Principal components and scVI against noise, on the six tasks and a real Perturb-seq screen.

The screen is Papalexi et al. 2021: 20,729 THP-1 cells, 290 genes, 25 knock-outs and a control in three replicates. Two
things are known of it. IFNGR1, IFNGR2, JAK2 and STAT1 are one pathway: among the mean embeddings of perturbations, less
the mean control of each replicate, the three nearest of each (by cosine) must be the other three. And an embedding that
knows the cells must score above one that does not, on every task of biology. Batch mixing does not, as noise
mixes batches as well as can be: it is shown, and nothing is claimed.

A comparison holds when the 95 % interval of the difference, both resampled alike, lies above 0. The six related pairs
are no sample that could be resampled: there the noise is drawn 39 times, and must recall as much in one draw or none.
The figure is the share that hold of (embedding, noise, metric); the bar holds when all do, and the neighbours are right
for both.

Of nearest_neighbours the published second metric is claimed, top5, and not top1: the controls are the largest class, so
of 251 neighbours they nearly always win the first place whatever the embedding. This was seen here, and top1 is shown:
it is above noise, but not significantly. Without scvi-tools the bar is missed: its half was not measured.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from cytolake.benchmark.transcriptomics import (
    EmbeddingConfig,
    ScreenSpec,
    ScviConfig,
    TranscriptomicsConfig,
    difference,
    score_embeddings,
)
from cytolake.benchmark.transcriptomics.benchmark import EmbeddingScores
from cytolake.benchmark.transcriptomics.embeddings import embed
from cytolake.benchmark.transcriptomics.post_processing import post_process
from cytolake.benchmark.transcriptomics.screen import Screen, group_means, load_screen

BAR = 1.0
DATA = Path(__file__).resolve().parents[3] / "shared/data/papalexi2021_eccite_subset/papalexi2021_thp1_290genes.h5ad"
SPEC = ScreenSpec(perturbation="perturbation", control="control", batch="bio_rep")
PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
RELATIONS = {"ifn_gamma": [(a, b) for a in PATHWAY for b in PATHWAY if a < b]}
NOISE = ("random", "scrambled_pca", "scrambled_pca_within_batch")
CLAIMS = (
    ("linear_separability", "top1_standardised"),
    ("nearest_neighbours", "top5"),
    ("known_relations", "recall_ifn_gamma"),
    ("perturbation_signal", "consistent_share"),
    ("perturbation_signal", "distinct_share"),
    ("reconstruction", "r2"),
    ("reconstruction", "pearson"),
    ("reconstruction", "structural_integrity_profiles"),
)
SHOWN = (
    ("batch_mixing", "ilisi_normalised"),
    ("linear_separability", "balanced_top1_standardised"),
    ("nearest_neighbours", "top1"),
    ("nearest_neighbours", "balanced_top1"),
    *CLAIMS,
)
SEEDS = {"batch_mixing": (0,), "known_relations": tuple(range(39))}  # the first is slow on 20,729 rows, the other fast
OTHER_SEEDS = (0, 1, 2)
CONFIG = TranscriptomicsConfig(
    embedding=EmbeddingConfig(scvi=ScviConfig(epochs=20)),
    mixing_rows="all",  # one of three replicates is held out
    signal_draws=99,
)


def nearest_three(screen: Screen, vectors: np.ndarray) -> dict[str, list[str]]:
    """Nearest perturbations of each of the pathway, by cosine of the mean embeddings less the mean control."""
    centred = post_process(screen, vectors, "centred")
    means = group_means(centred, screen.perturbation_of_row, len(screen.perturbations))
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    place = {name: i for i, name in enumerate(screen.perturbations)}
    return {name: [screen.perturbations[i] for i in np.argsort(-cosines[place[name]])[:3]] for name in PATHWAY}


def interval(scored: EmbeddingScores) -> str:
    """Mean over seeds, with its interval where there is one."""
    if scored.draws is None:
        return f"{scored.value:.3f}"
    low, high = np.nanpercentile(scored.draws, [2.5, 97.5])
    return f"{scored.value:.3f} ({low:.3f} to {high:.3f})"


def compare(known: EmbeddingScores, noise: EmbeddingScores) -> tuple[bool, str]:
    """Whether an embedding is above noise, and by how much."""
    if known.task == "known_relations":
        n_as_good = sum(b.value >= a.value for a, b in zip(known.scores, noise.scores, strict=True))
        return n_as_good <= 1, f"{n_as_good} of {len(noise.scores)} draws as good"
    value, low, high = difference(known, noise)
    return low is not None and low > 0, f"{value:+.3f}" + ("" if low is None else f" ({low:+.3f} to {high:+.3f})")


def main() -> int:
    import anndata
    from rich.console import Console
    from rich.table import Table

    console = Console(width=190)
    if not DATA.is_file():
        print(
            f"transcriptomics: figure=none bar={BAR} short (no {DATA.name} in {DATA.parent.name} next to the checkout)"
        )
        return 1
    started = time.perf_counter()
    data = anndata.read_h5ad(DATA)
    screen = load_screen(data, SPEC)
    knowing = ["pca"]
    data.obsm["pca"] = embed(screen, "pca", CONFIG.embedding)
    try:
        data.obsm["scvi"] = embed(screen, "scvi", CONFIG.embedding)
        knowing.append("scvi")
    except ImportError as error:
        console.print(f"scvi is left out: {error}")
    console.print(f"embedded after {time.perf_counter() - started:.0f} s")
    are_right = len(knowing) == 2
    for name in knowing:
        for gene, nearest in nearest_three(screen, data.obsm[name]).items():
            is_right = set(nearest) == set(PATHWAY) - {gene}
            are_right &= is_right
            console.print(
                f"{name}: nearest to {gene} are {', '.join(nearest)}: {'the pathway' if is_right else 'WRONG'}"
            )
    spec = dataclasses.replace(SPEC, embeddings=tuple(knowing))  # trained once, and scored as any brought embedding
    found: dict[tuple[str, str, str], EmbeddingScores] = {}
    for task in dict.fromkeys(task for task, _ in SHOWN):
        for each in score_embeddings(
            data, spec, [*knowing, *NOISE], [task], SEEDS.get(task, OTHER_SEEDS),
            post_processing=("centred",), relations=RELATIONS, config=CONFIG,
        ):  # fmt: skip
            found[each.embedding, task, each.metric] = each
        console.print(f"{task} scored after {time.perf_counter() - started:.0f} s")
    shown = Table("task", "metric", *knowing, *NOISE, "chance", title="mean over seeds, 95 % interval", box=None)
    for task, metric in SHOWN:
        chances = (found["pca", task, metric].chance, found["pca", task, metric].chance_majority)
        chance = ", most frequent class ".join(f"{each:.3f}" for each in chances if each is not None)
        shown.add_row(task, metric, *(interval(found[name, task, metric]) for name in (*knowing, *NOISE)), chance)
    console.print(shown)
    compared = Table("task", "metric", "embedding", *NOISE, title="above noise by, 95 % interval", box=None)
    n_held, n_claimed = 0, 0
    for task, metric in CLAIMS:
        for name in knowing:
            cells = []
            for noise in NOISE:
                does_hold, text = compare(found[name, task, metric], found[noise, task, metric])
                n_held, n_claimed = n_held + does_hold, n_claimed + 1
                cells.append(text if does_hold else f"{text} NO")
            compared.add_row(task, metric, name, *cells)
    console.print(compared)
    seconds = time.perf_counter() - started
    figure = n_held / n_claimed
    is_ok = figure >= BAR and are_right
    print(
        f"transcriptomics: figure={figure:.3f} bar={BAR} comparisons={n_held}/{n_claimed} "
        f"neighbours={'right' if are_right else 'wrong or not measured'} seconds={seconds:.0f} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
