"""One complete, typed config of the whole pipeline: what a recipe returns and every job reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.benchmark.pinned_probe import TrainingProbeConfig
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.split import SplitBy
from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.curation.curate import CurateConfig
from cytolake.embed.extract import EmbedConfig
from cytolake.packs.pack_plan import PackConfig
from cytolake.performance_prediction.catalog_queries import QueriesConfig
from cytolake.performance_prediction.prompt_predictor import PromptPredictorConfig
from cytolake.performance_prediction.prompt_table import PromptTableConfig
from cytolake.pipeline.label_curve import LabelCurveConfig
from cytolake.pipeline.root import DEFAULT_ROOT, default_root
from cytolake.pipeline.session import RayConfig
from cytolake.qc.verdicts import QcConfig
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource
from cytolake.tracking import CHAMPION, TrackingConfig
from cytolake.train.config import PretrainConfig
from cytolake.tune.promotion import PromoteBy
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.sweep_config import SweepConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreensConfig:
    """Which plates enter the catalog."""

    root: str = ""
    """Folder that the sources' paths are relative to; empty means `<catalog root>/screens`."""
    sources: tuple[ScreenSource, ...] = ()
    """Screens on disk."""
    simulate: SimulatedScreen | None = None
    """Write this screen under `root` first, and ingest it too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What `cytolake benchmark` scores."""

    tasks: tuple[tuple[str, SplitBy], ...] = (("perturbation", "plate"), ("pathway", "plate"), ("plate", "well"))
    """Label and what is held out. The last default is a guard rail: a representation that predicts plates carries
    batch effects."""
    profiles: ProfileBenchmarkConfig | None = field(default_factory=ProfileBenchmarkConfig)
    """Benchmarks of well profiles: recall of relations, replicates, mechanisms, guard rails. None means none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceConfig:
    """What `cytolake predict-performance` predicts: queries of the catalog, or prompts where a table is named."""

    prompts: PromptTableConfig = field(default_factory=PromptTableConfig)
    """Prompts with scores; with an empty `path`, queries of the catalog are learnt from instead."""
    prompt_predictor: PromptPredictorConfig = field(default_factory=PromptPredictorConfig)
    queries: QueriesConfig = field(default_factory=QueriesConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """From plates on disk to a promoted representation."""

    name: str
    """The recipe's name, the report's title."""
    root: str = field(default_factory=default_root)
    """Catalog root: Delta tables, packs, runs, MLflow's SQLite file and the report page. Local or shared folder."""
    tables: str = ""
    """Keep the Delta tables there instead of in the root, such as `s3://bucket/prefix`; the root remembers it."""
    screens: ScreensConfig
    ingest: IngestConfig = field(default_factory=IngestConfig)
    qc: QcConfig = field(default_factory=QcConfig)
    """What judges the sites where the curation's file has no rule `qc`; the modalities count in any case."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    hold_out_plates: tuple[str, ...] = ()
    """Plates that the encoder is not trained on, as `plate` or `screen/plate`; probes then score these alone. Empty:
    the encoder is trained, without labels, on all plates, and only the probe holds plates out."""
    pretrain: PretrainConfig
    training_probe: TrainingProbeConfig | None = None
    """Probe the encoder every `pretrain.evaluate_every` steps while it is trained; None means not."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    also_held_out_by: tuple[SplitBy, ...] = ("batch",)
    """Splits that are reported next to `probe.split`, where the screen has plates, batches or positions for them."""
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    label_curve: LabelCurveConfig | None = None
    """Measure how many labels the artefact detector needs, for the report page."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    promote_by: PromoteBy = field(default_factory=PromoteBy)
    """The ranking that chooses what is promoted, where it is not the probe."""
    promote_without_gain: str = ""
    """Why to promote a representation whose gain over its best baseline is not shown (its interval covers 0); kept
    with the model version. Empty: such a one is refused."""
    alias: str = CHAMPION
    """MLflow alias that `promote` moves and serving follows."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        if not self.root.strip():
            raise ValueError(
                f"root: found {self.root!r}, expected a folder; `.` is the working directory. Leave it out for "
                f"CYTOLAKE_ROOT, or {DEFAULT_ROOT} where that is not set."
            )

    @property
    def root_path(self) -> Path:
        """The catalog root, absolute."""
        return Path(self.root).expanduser().resolve()

    @property
    def screens_path(self) -> Path:
        """The folder that sources are relative to, absolute."""
        return Path(self.screens.root).expanduser().resolve() if self.screens.root else self.root_path / "screens"
