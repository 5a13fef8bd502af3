"""Scores of an expression screen in the catalog: its embeddings as `representations`, the six tasks as `scores`.

Such a screen needs no ingest: the content of its file and the spec are its identity. This identity takes the place of
the pack of image representations, so embeddings of one screen are ranked together and never with those of another.
Each embedding is scored and written separately, and existing scores are not computed again, so a killed run can resume.

A task that is not possible on the screen (one batch, too few rows, no features) is left out with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cytolake.benchmark.leaderboard import EXPRESSION
from cytolake.benchmark.relations.relation_files import Relations
from cytolake.benchmark.transcriptomics.benchmark import EmbeddingScores, check_request, rows_of, score_embeddings
from cytolake.benchmark.transcriptomics.config import (
    FITTED,
    SETTINGS_OF,
    TASKS,
    WITHOUT_SPLIT,
    TranscriptomicsConfig,
)
from cytolake.benchmark.transcriptomics.embeddings import (
    BUILT_IN,
    DRAWN_BY_SEED,
    EmbeddingConfig,
    check_name,
    embed,
    import_scvi,
    settings_of,
)
from cytolake.benchmark.transcriptomics.perturbation_signal import target_rows, targets_of
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.post_processing import check_method
from cytolake.benchmark.transcriptomics.screen import Screen, ScreenSpec, load_screen
from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import DIGEST_BYTES, content_id, representation_id

Progress = Callable[[str, int, int], None]
NO_BLOCK, POOLING = -1, "all"
PROTOCOL = 2
"""Version of the tasks; scores of different versions are never in one ranking."""
FIRST_SPEC = frozenset({"perturbation", "control", "batch", "values", "layer", "matrix_key", "gene_name", "embeddings"})
"""Fields of the first version of `ScreenSpec`; later fields are part of a screen's identity only where they are set."""
SPLIT = "batch"
"""`scores.split` of tasks that are fitted on some batches and scored on others, for any name of the column."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A task without a score of an embedding."""

    embedding: str
    task: str
    post_processing: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScreenScores:
    """Scores of a screen, and tasks that were not possible."""

    pack_id: str
    """Identity of the screen: `LeaderboardFilter(pack_id=...)` selects its rankings."""
    representation_ids: dict[str, str]
    """Id of each embedding, by its name."""
    rows: list[dict[str, Any]]
    """Rows of the `scores` table, including those of earlier runs with the same settings."""
    n_new: int
    """Number of rows that this run wrote."""
    left_out: tuple[LeftOut, ...]

    def notes(self) -> list[str]:
        """Rows of the file that were left out, with reasons and names, and notes on the labels."""
        found = (json.loads(row["details"]) for row in self.rows)
        return list(dict.fromkeys(note for details in found for note in details.get("notes", [])))

    def target_rows(self) -> list[dict[str, Any]]:
        """Results of perturbation_signal for each perturbation, as `perturbation_signal.TARGETS_SCHEMA`."""
        names = {identity: name for name, identity in self.representation_ids.items()}
        rows = []
        for row in self.rows:
            targets = targets_of(json.loads(row["details"]))
            if targets is not None:
                rows += target_rows(names[row["representation_id"]], row["alignment"], row["seed"], targets)
        return rows

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Tasks and embeddings without scores, with their reason; each reason once."""
        by_reason: dict[str, list[LeftOut]] = {}
        for each in self.left_out:
            by_reason.setdefault(each.reason, []).append(each)
        for reason, those in by_reason.items():
            tasks, embeddings = dict.fromkeys(each.task for each in those), dict.fromkeys(e.embedding for e in those)
            yield f"{', '.join(tasks)} of {', '.join(embeddings)}", reason


def score_expression_screen(
    catalog: Catalog,
    path: str | Path,
    spec: ScreenSpec,
    embeddings: Sequence[str],
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    post_processing: Sequence[str] = ("centred",),
    relations: Sequence[Relations] = (),
    config: TranscriptomicsConfig | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> ScreenScores:
    """Score embeddings of a screen on the tasks, and write the scores that the catalog does not have yet.

    Args:
        catalog: Catalog with `representations` and `scores`.
        path: The screen, a `.h5ad`. Its bytes are hashed, so the same data written again may count as another screen.
        spec: Names of its perturbations, batches and embeddings.
        embeddings: Built-in ones (`embeddings.BUILT_IN`) and keys of `obsm` in the spec.
        tasks: Names of `TASKS`.
        seeds: Different numbers from 0 up.
        post_processing: `none`, `centred`, `centre_scaled`, `tvn`, or a variant of `embed.alignment`.
        relations: From `read_relations`, each of another source; `known_relations` needs one or more.
        config: Settings. A changed setting starts a new ranking of the tasks that read it, and only these are computed
            again; embeddings with different `config.embedding` are in one ranking.
        name: Name of the screen in rankings; the file's name where empty.
        progress: Called with the embedding and the task, and the numbers of its finished and of all tasks.

    Returns:
        Rows of `scores`: one for each seed, and the mean over seeds with seed -1, which the leaderboard reads.

    Raises:
        ImportError: scanpy or scvi-tools is missing and needed.
        ValueError: An unknown name, a missing file or column, or no task that can be scored.
    """
    request = _Request(
        spec=spec,
        name=name or Path(path).stem,
        content=_content(Path(path)),
        seeds=tuple(sorted(seeds)),
        relations=_by_source(relations),
        config=config or TranscriptomicsConfig(),
    )
    check_request(tasks, request.seeds, request.relations)
    _check_names(spec, embeddings, post_processing)
    ids = {each: request.representation_id(each) for each in embeddings}
    known = _known(catalog, request, ids, tasks, post_processing)
    done = {(row["representation_id"], row["benchmark"], row["alignment"]) for row in known}
    wanted = [(method, task) for method in dict.fromkeys(post_processing) for task in dict.fromkeys(tasks)]
    todo = {each: [(method, task) for method, task in wanted if (ids[each], task, method) not in done] for each in ids}
    if todo.get("scvi"):
        import_scvi()  # where it is missing, stop now and not after hours of other work
    new: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    screen: Screen | None = None
    for each, unscored in todo.items():
        if not unscored:
            continue
        if progress is not None:
            progress(f"{each}, {'reading the screen' if screen is None else 'embedding'}", 0, len(unscored))
        screen = screen or load_screen(path, spec)
        try:
            screen = _with_vectors(screen, each, request.config.embedding)
        except ValueError as error:
            left_out += [LeftOut(each, task, method, str(error)) for method, task in unscored]
            continue
        rows: list[dict[str, Any]] = []
        for n_done, (method, task) in enumerate(unscored):
            if progress is not None:
                progress(f"{each}, {task}", n_done, len(unscored))
            try:
                scored = score_embeddings(
                    screen, spec, [each], [task], request.seeds,
                    post_processing=[method], relations=request.relations, config=request.config,
                )  # fmt: skip
            except ValueError as error:
                left_out.append(LeftOut(each, task, method, str(error)))
            else:
                rows += request.rows(screen, scored)
        if progress is not None:
            progress(each, len(unscored), len(unscored))
        if rows:
            _write(catalog, request.representation(screen, each), rows)
            new += rows
    if left_out and not known and not new:
        first = left_out[0]
        raise ValueError(f"{path}: nothing could be scored; {first.task} of {first.embedding}: {first.reason}")
    return ScreenScores(request.pack_id, ids, [*known, *new], len(new), tuple(left_out))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """The requested scores of a screen, with ids and rows of the catalog's tables."""

    spec: ScreenSpec
    name: str
    content: str
    """Hash of the file."""
    seeds: tuple[int, ...]
    relations: dict[str, list[tuple[str, str]]]
    config: TranscriptomicsConfig

    @property
    def pack_id(self) -> str:
        """Identity of the screen, which does not depend on the embeddings that are read."""
        unset = ScreenSpec(perturbation="-", control="-", batch="-")
        where = {
            name: value
            for name, value in asdict(replace(self.spec, embeddings=())).items()
            if name in FIRST_SPEC or value != getattr(unset, name)
        }
        return content_id(EXPRESSION, self.content, json.dumps(where, sort_keys=True))

    def model_id(self, embedding: str) -> str:
        settings = settings_of(embedding, self.config.embedding)
        return content_id(EXPRESSION, self.content, embedding, json.dumps(settings, sort_keys=True))

    def representation_id(self, embedding: str) -> str:
        return representation_id(self.model_id(embedding), NO_BLOCK, POOLING, self.pack_id)

    def protocol(self, task: str) -> str:
        """Hash of everything that a task reads except the embedding; scores of one protocol are comparable."""
        settings = {name: value for name, value in asdict(self.config).items() if name in SETTINGS_OF[task]}
        relations = self.relations if task == "known_relations" else {}
        return content_id(self.pack_id, task, json.dumps([PROTOCOL, self.seeds, settings, relations], sort_keys=True))

    def representation(self, screen: Screen, embedding: str) -> dict[str, Any]:
        """Row of `representations` of an embedding."""
        config = self.config.embedding
        vectors = embed(screen, embedding, config, pca=screen.embeddings.get("pca"))
        return dict.fromkeys(table_contract("representations").schema.names) | {
            "representation_id": self.representation_id(embedding),
            "kind": EXPRESSION,
            "model_id": self.model_id(embedding),
            "architecture": _shown(embedding, config),
            "block": NO_BLOCK,
            "pooling": POOLING,
            "dim": vectors.shape[1],
            "pack_id": self.pack_id,
            "curation_id": "",
            "checkpoint": "",
            "run_id": "",
            "created_at": datetime.now(UTC),
        }

    def rows(self, screen: Screen, scored: Sequence[EmbeddingScores]) -> list[dict[str, Any]]:
        """Rows of `scores` of one task: one for each seed, and the mean."""
        scored_at = datetime.now(UTC)
        # The convergence of a fit is no score.
        converged = {each.metric: [score.value for score in each.scores] for each in scored if _is_of_fit(each)}
        rows = []
        for each in scored:
            if _is_of_fit(each):
                continue
            label, metric, n_classes = self._labelled(each, screen)
            identity, protocol = self.representation_id(each.embedding), self.protocol(each.task)
            fit = converged.get("converged_standardised" if metric.endswith("_standardised") else "converged")
            details = {"screen": self.name, "n_rows": screen.n_rows, "seeds": list(each.seeds)}
            details |= {"notes": [*map(str, screen.excluded), *screen.notes]}
            details |= {} if fit is None else {"converged": fit}
            targets = {
                seed: score.targets.details()
                for seed, score in zip(each.seeds, each.scores, strict=True)
                if score.targets is not None
            }
            over = list(dict.fromkeys(score.interval_over for score in each.scores if score.interval_over))
            details |= {"interval_over": over} if over else {}
            for row in rows_of(each):
                of_row = {name: row[name] for name in ("chance", "chance_majority") if row[name] is not None}
                of_row |= targets.get(row["seed"], {})
                rows.append(
                    {
                        "score_id": content_id(identity, protocol, label, metric, each.post_processing, row["seed"]),
                        "representation_id": identity,
                        "benchmark": each.task,
                        "label": label,
                        "metric": metric,
                        "split": SPLIT if each.task in FITTED else "",
                        "seed": row["seed"],
                        "value": row["value"],
                        "ci_low": row["ci_low"],
                        "ci_high": row["ci_high"],
                        "n_train": None,
                        "n_test": row["n"],
                        "n_classes": n_classes,
                        "held_out": self._held_out(screen, each.task, row["seed"]),
                        "scored_at": scored_at,
                        "alignment": each.post_processing,
                        "protocol": protocol,
                        "details": json.dumps(details | of_row, sort_keys=True),
                    }
                )
        return rows

    def _labelled(self, scored: EmbeddingScores, screen: Screen) -> tuple[str, str, int | None]:
        """Label, metric, and number of classes of the label."""
        if scored.task == "known_relations":
            return scored.metric.removeprefix("recall_"), "recall", None
        if scored.task == "batch_mixing":
            return self.spec.batch, scored.metric, len(screen.batches)
        return self.spec.perturbation, scored.metric, len(screen.perturbations)

    def _held_out(self, screen: Screen, task: str, seed: int) -> str:
        """Batches in the test part of a seed."""
        is_whole = task in WITHOUT_SPLIT or (task == "batch_mixing" and self.config.mixing_rows == "all")
        if seed < 0 or is_whole:
            return ""
        seen = set(split_screen(screen, seed, self.config.train_share).train_batches.tolist())
        return ",".join(batch for place, batch in enumerate(screen.batches) if place not in seen)


def _known(
    catalog: Catalog, request: _Request, ids: dict[str, str], tasks: Sequence[str], post_processing: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows that are already in `scores`."""
    protocols = [request.protocol(task) for task in tasks]
    rows = catalog.table("scores", where="protocol in $protocols", parameters={"protocols": protocols}).to_pylist()
    return [row for row in rows if row["representation_id"] in ids.values() and row["alignment"] in post_processing]


def _write(catalog: Catalog, representation: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    described = table_contract("representations").rows([representation])
    catalog.append("representations", described, transaction=f"representations/{representation['representation_id']}")
    ids = sorted(row["score_id"] for row in rows)
    catalog.append("scores", table_contract("scores").rows(rows), transaction=f"scores/{content_id(*ids)}")


def _with_vectors(screen: Screen, embedding: str, config: EmbeddingConfig) -> Screen:
    """The screen with an embedding, or with the one that it is made from, computed once for all tasks."""
    made = embedding if embedding not in DRAWN_BY_SEED else "" if embedding == "random" else "pca"
    if not made or made in screen.embeddings:
        return screen
    return replace(screen, embeddings={**screen.embeddings, made: embed(screen, made, config)})


def _shown(embedding: str, config: EmbeddingConfig) -> str:
    """Name of an embedding in a ranking, with the settings that differ from the defaults."""
    usual = settings_of(embedding, EmbeddingConfig())
    changed = {name: value for name, value in settings_of(embedding, config).items() if value != usual[name]}
    return f"{embedding} ({', '.join(f'{name}={value}' for name, value in changed.items())})" if changed else embedding


def _is_of_fit(scored: EmbeddingScores) -> bool:
    return scored.metric.startswith("converged")


def _check_names(spec: ScreenSpec, embeddings: Sequence[str], post_processing: Sequence[str]) -> None:
    ambiguous = sorted(set(spec.embeddings) & set(BUILT_IN))
    if ambiguous:
        raise ValueError(
            f"spec.embeddings: {', '.join(ambiguous)} is also the name of a built-in embedding. Give the key of obsm "
            "another name, such as X_pca."
        )
    for name, given in (("embeddings", embeddings), ("post_processing", post_processing)):
        if not given:
            raise ValueError(f"{name} is empty, expected one or more names.")
    for each in embeddings:
        check_name(each, spec.embeddings)
    for method in post_processing:
        check_method(method)


def _by_source(relations: Sequence[Relations]) -> dict[str, list[tuple[str, str]]]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for each in relations:
        if each.source in pairs:
            raise ValueError(
                f"relations: {each.source} comes twice, expected one file of each source. Rename a file, or put their "
                "pairs together."
            )
        pairs[each.source] = list(each.pairs)
    return pairs


def _content(path: Path) -> str:
    """Hash of a file's bytes."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a .h5ad. Correct the path.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
