"""The demo: the whole chain on the reference models, from recorded gating to a validated plan."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.curves.curve import CurvePoint, curve
from engine.plan.plan import Plan, plan_from_dict
from engine.plan.tables import Scalar, WeightsPlan
from engine.replay.passes import Replayed
from engine.replay.replay import replay
from engine.replay.result import Result
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.report import content
from experiments.statistics.request_shares import RequestShares
from experiments.statistics.speeds import MODELLED, speed_interval
from experiments.validation.comparison import Validation
from experiments.validation.page import panel
from experiments.validation.validate import validate
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import TracekitError
from tracekit.rows import UNUSED
from tracekit.trace import Trace

HARDWARE, SHAPE = "rtx3060", "mixtral-8x7b"
WEIGHTS = {"experts": "hqq-2bit", "attention": "hqq-4bit"}
PROMPTS, NEW_TOKENS = 12, 48
VALIDATED_PROMPTS = 3
# A link of this speed makes the mini models' copies take about as long as their computation, as on a real machine.
EMULATED_BYTES_PER_S = 300_000_000
MARK = ".tracekit-demo"

PLANS = (
    ("no cache", Plan("0/layer", weights=WEIGHTS)),
    ("LRU", Plan("4/layer", eviction="lru", weights=WEIGHTS)),
    ("LFU", Plan("4/layer", eviction="lfu", weights=WEIGHTS)),
    ("perfect LFU", Plan("4/layer", eviction="lfu-perfect", weights=WEIGHTS)),
    ("LRU", Plan("4/layer", eviction="lru", prefetch="gate", weights=WEIGHTS)),
    ("perfect LFU", Plan("4/layer", eviction="lfu-perfect", prefetch="gate", weights=WEIGHTS)),
    ("Belady", Plan("4/layer", eviction="belady", weights=WEIGHTS)),
    ("Belady", Plan("4/layer", eviction="belady", prefetch="oracle", weights=WEIGHTS)),
)


class DemoRow(msgspec.Struct, frozen=True, kw_only=True):
    """One plan's replay; `name` is its eviction policy's."""

    name: str
    plan: dict[str, dict[str, Scalar]]
    is_bound: bool
    result: Result
    ends: tuple[float, float] | None = None
    """Between which tokens per second the plan is, over requests."""

    @property
    def title(self) -> str:
        """The policy, the prefetcher if there is one, and whether the pair needs the future."""
        predictor = self.plan["prefetch"]["predictor"]
        prefetch = "" if predictor == "none" else f" + {predictor} prefetch"
        return f"{self.name}{prefetch}{' (needs the future)' if self.is_bound else ''}"


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found; `winner` is the plan that was validated."""

    rows: list[DemoRow]
    basis: str
    """What the rows' speeds rest on."""
    curves: list[CurvePoint]
    winner: str
    validation: Validation
    report: str
    folder: str


def run_demo(folder: Path, say: Callable[[str], object]) -> DemoResult:
    """Record, replay, choose, validate, report; everything is written to `folder`. Raises TracekitError."""
    import altair  # noqa: F401 - what is missing should be missed now, not after the work
    import torch
    import vl_convert  # noqa: F401

    prepare(folder)
    # The mini models' products are too small to share out: a second thread only waits, and copying needs a core.
    torch.set_num_threads(1)
    prompts_file = write_prompts(folder / "prompts.jsonl")
    traces = []
    for name in NAMES:
        say(f"recording {name}: {PROMPTS} prompts from the standard library, {NEW_TOKENS} new tokens each")
        traces.append(record_model(name, prompts_file, folder / f"{name}.trace"))
    trace = traces[0]
    say(f"replaying {len(PLANS)} plans on a modelled {HARDWARE} at {SHAPE}'s shape")
    rows = [replay_plan(trace, name, plan) for name, plan in PLANS]
    say("hit ratio against cache size")
    curves = curve(trace, ["lru", "lfu", "lfu-perfect", "belady"])
    winner = max(
        (row for row in rows if not row.is_bound),
        key=lambda row: (row.result.time.tokens_per_second or 0.0) if row.result.time else 0.0,
    )
    plan = plan_from_dict(winner.plan)
    (folder / "winner.plan.toml").write_text(plan.to_toml())
    say(f"validating {winner.title!r}: the same decisions in the offloading engine and in the simulator")
    validation = validate_plan(plan, prompts_file, say)
    say("writing the report")
    report = write(folder / "report.html", traces, rows, curves, winner, validation)
    return DemoResult(
        rows=rows,
        basis=MODELLED,  # HARDWARE is a data sheet
        curves=curves,
        winner=winner.title,
        validation=validation,
        report=str(report),
        folder=str(folder),
    )


def prepare(folder: Path) -> None:
    """An empty folder for the demo; what an earlier demo left there is replaced, anything else is never touched."""
    if folder.exists():
        if not (folder / MARK).is_file():
            raise TracekitError(f"{folder} exists and is not an earlier demo's: choose another with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def write_prompts(path: Path) -> Path:
    """Held-out prompts of the reference models' text, in three domains."""
    from experiments.demo.stdlib_text import prompts

    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts(PROMPTS)))
    return path


def record_model(name: str, prompts_file: Path, output: Path) -> Trace:
    """Record a reference model with the lookahead that gate prefetching replays."""
    from tracekit.recorder.models import load_model
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import read_prompts
    from tracekit.recorder.recorder import record

    model, tokenizer = load_model(CHECKPOINTS / name, "float32", "cpu")
    # Sampled: decoded greedily, models of this size soon repeat themselves, and so does their routing.
    options = RecordOptions(max_new_tokens=NEW_TOKENS, lookahead=(1,), do_sample=True)
    return Trace.open(record(model, tokenizer, read_prompts(prompts_file), output, options))


def replay_plan(trace: Trace, name: str, plan: Plan) -> DemoRow:
    """Replay one plan of `PLANS`."""
    is_bound = eviction_policy(plan.eviction.policy).bound or prefetcher(plan.prefetch.predictor).bound
    passes: list[Replayed] = []
    result = replay(trace, plan, HARDWARE, model_shape=SHAPE, on_done=passes.append)
    ends = speed_interval(RequestShares.of(trace), passes[0].step_ns, result.time.scale) if result.time else None
    return DemoRow(name=name, plan=plan.to_dict(), is_bound=is_bound, result=result, ends=ends)


def validate_plan(plan: Plan, prompts_file: Path, say: Callable[[str], object]) -> Validation:
    """The plan in the engine: the mini model's own weights instead of the large model's format."""
    from engine.runtime.links.thread_link import EmulatedLink
    from tracekit.recorder.prompts import read_prompts

    prompts = read_prompts(prompts_file)
    own = plan.replace(weights=WeightsPlan())
    return validate(
        CHECKPOINTS / NAMES[0],
        own,
        prompts[:VALIDATED_PROMPTS],
        calibration_prompts=prompts[-2:],
        max_new_tokens=NEW_TOKENS,
        dtype="float32",
        emulate_link=EmulatedLink(EMULATED_BYTES_PER_S),
        progress=lambda text: say(f"  {text}"),
    )


def expert_shares(trace: Trace) -> np.ndarray:
    """Each expert's share of its layer's assignments: f64 [layers, experts]."""
    counts = np.stack(
        [
            np.bincount(layer[layer != UNUSED].ravel(), minlength=trace.num_experts)
            for layer in trace.experts.transpose(1, 0, 2)
        ]
    )
    shares: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def write(
    path: Path,
    traces: Sequence[Trace],
    rows: Sequence[DemoRow],
    curves: Sequence[CurvePoint],
    winner: DemoRow,
    validation: Validation,
) -> Path:
    """The report as one self-contained HTML file."""
    from experiments.report.page import write_report

    time = validation.time
    stored = ", ".join(f"{part} {word}" for part, word in WEIGHTS.items())
    # A policy has one name on the page: its filter shows and hides by it.
    names = {str(row.plan["eviction"]["policy"]): row.name for row in rows}
    return write_report(
        path,
        content.ReportContent(
            title="Expert offloading, from recorded gating to a validated plan",
            subtitle=(
                ("models", ", ".join(NAMES)),
                ("text", "held-out parts of Python's standard library"),
                ("modelled machine", f"{HARDWARE} at {SHAPE}'s shape, {stored}"),
            ),
            rows=tuple(_policy_row(row) for row in rows),
            modelled=True,
            curves=tuple(
                content.CurvePoint(
                    policy=names.get(point.policy, point.policy),
                    capacity=point.capacity,
                    share_held=point.share,
                    hit_ratio=point.hit_ratio,
                    is_bound=eviction_policy(point.policy).bound,
                )
                for point in curves
            ),
            heat_maps=tuple(
                content.HeatMap(model=name, shares=expert_shares(trace))
                for name, trace in zip(NAMES, traces, strict=True)
            ),
            validation=panel(validation),
            warnings=(
                *winner.result.warnings,
                f"The validation ran {winner.title} on {NAMES[0]} itself, on this machine's CPU, over a link that was "
                f"slowed down to {time.emulated_link}; its times say nothing about a {HARDWARE}.",
                "The table's experts are quantised; in the validation they are as the model stores them.",
                f"Policies and hit ratios are of {NAMES[0]}'s routing; the heat maps are of both models.",
                f"The profile of the {HARDWARE} is a data sheet with stated assumptions, not a measurement.",
            ),
            reproduce=(
                "tracekit demo",
                "tracekit replay demo/mixtral-mini.trace --plan demo/winner.plan.toml "
                f"--hardware {HARDWARE} --model-shape {SHAPE}",
            ),
        ),
    )


def _bytes_per_token(result: Result) -> float | None:
    """Bytes over the link per decode token of the large model: its layers, not the trace's."""
    decode = result.phases.decode
    if decode.bytes_loaded is None or result.time is None or decode.tokens == 0:
        return None
    return decode.bytes_loaded * result.time.scale / decode.tokens


def _policy_row(row: DemoRow) -> content.PolicyRow:
    result = row.result
    return content.PolicyRow(
        name=row.name,
        capacity=str(row.plan["cache"]["capacity"]),
        prefetch=str(row.plan["prefetch"]["predictor"]),
        hit_ratio=result.hit_ratio,
        decode_hit_ratio=result.phases.decode.hit_ratio,
        hits_prefetched=result.hits_by.prefetch / result.hits if result.hits else 0.0,
        tokens_per_second=None if result.time is None else result.time.tokens_per_second,
        bound_tokens_per_second=None if result.bounds is None else result.bounds.best_tokens_per_second,
        bytes_loaded_per_token=_bytes_per_token(result),
        is_bound=row.is_bound,
        low=None if row.ends is None else row.ends[0],
        high=None if row.ends is None else row.ends[1],
    )
