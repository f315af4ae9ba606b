"""study.json: what a study found, in the structure that is built, written, and validated when it is read back."""

import json

import msgspec

from engine.hardware import HardwareProfile
from experiments.quality.measurement import Estimate
from experiments.statistics.comparison import Comparison
from experiments.study.conditions import Conditions
from experiments.study.leaders import Leader
from experiments.study.study_file import Objective, Search, Statistics


class End(msgspec.Struct, frozen=True):
    """The last plan that a search kept, or the first that it pruned."""

    plan: str
    value: float

    def __str__(self) -> str:
        return f"{self.plan} ({self.value:.4g})"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a search did on a beginning of the traces: `share` of their decode steps."""

    round: int
    share: float
    plans: int
    kept: int
    pruned: int
    too_large: int
    too_lossy: int = 0
    failed: int
    last_kept: End | None
    first_pruned: End | None


class SettingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Who won in one setting (`Conditions`), and by how much; None where nobody did.

    `room_bytes`: what plans may take of the device. `value` is of the objective, in `unit`. `best` are the best plans,
    the winner first, `alike` what all of these have in common, and `verdict` how sure it is that the winner is best.
    """

    hardware: str | None
    engine: str | None
    model_shape: str | None
    batch: int | None
    room_bytes: int | None
    contestants: int
    too_large: int
    too_lossy: int = 0
    winner: str | None = None
    plan_toml: str | None = None
    value: float | None = None
    unit: str | None = None
    device_bytes: int | None = None
    share_of_bound: float | None = None
    modelled: bool = False
    """Whether the objective is a time on a machine that nobody measured."""
    loss: Estimate | None = None
    """Of quality, as it was measured; None: it was not."""
    statement: str
    answers: list[str] = []
    """Each policy against the baseline, a sentence each: at which cache sizes it is better, worse, level."""
    best: list[Leader] = []
    alike: str = ""
    verdict: str = ""
    comparisons: list[Comparison] = []
    ranking: list[str] = []
    notes: list[str]
    search: list[Round]

    @property
    def conditions(self) -> Conditions:
        """Machine, model shape, batch size and engine."""
        return Conditions(self.hardware, self.model_shape, self.batch, self.engine)


class Failure(msgspec.Struct, frozen=True):
    """Cells that failed for one reason."""

    error: str
    cells: int
    first_plan: str


class QualitySource(msgspec.Struct, frozen=True, kw_only=True):
    """Which measurement of quality the losses are from."""

    model: str
    model_digest: str
    text_digest: str
    documents: int
    tokens: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What it all was made from; `traces`: digests by path."""

    moe_tracekit: str
    results_version: int
    traces: dict[str, str]
    hardware: list[HardwareProfile]
    model_shapes: list[str]
    quality: QualitySource | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `files` holds the sha256 of each table beside it."""

    objective: Objective
    baseline: str
    max_device_bytes: int | None
    quality_loss: float | None = None
    """The most that winners may lose of quality, as a share of bits per byte."""
    cells: int
    failed: int
    errors: list[Failure]
    settings: list[SettingSummary]
    warnings: list[str]
    counted_once: dict[str, list[int]]
    """Requests of a trace, by its path, that another trace has as well, where they are counted."""
    statistics: Statistics
    search: Search | None
    provenance: Provenance
    files: dict[str, str]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(msgspec.to_builtins(self), indent=1, allow_nan=False) + "\n"
