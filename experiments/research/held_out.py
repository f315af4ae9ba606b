"""`python -m experiments.research.held_out`: the simulator against this machine, on plans it was not calibrated on.

One `tracekit calibrate`, then both reference models under every combination of format, prefetching and capacity, other
prompts and other capacities than calibration's. The plans of a model run in turns, again and again, until the median
time of each is known within a few percent; of every decode step the median over rounds counts. Nothing else should run
meanwhile; how far single runs are from their median is printed beside the error, for what is below it says nothing.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer

from experiments.research import markdown
from tracekit.errors import HardwareError, ModelError

if TYPE_CHECKING:
    from engine.hardware import HardwareProfile
    from engine.plan.plan import Plan
    from engine.runtime.clocks.timing import Timings
    from engine.runtime.offload_state import OffloadState
    from tracekit.trace import Trace

app = typer.Typer(name="python -m experiments.research.held_out", add_completion=False, pretty_exceptions_enable=False)

FORMATS = {"mixtral-mini": ("", "hqq-4bit", "hqq-2bit"), "qwen3-moe-mini": ("", "hqq-4bit", "hqq-2bit-g64")}
"""By model; hqq-2bit's groups of scales do not divide the experts of the second."""
CALIBRATED_FORMATS = "hqq-4bit,hqq-2bit,hqq-2bit-g64"
CAPACITIES = ("25%/layer", "75%/layer")
"""Calibration's own is 50 %."""
PREDICTORS = ("none", "gate")
TEXTS = ("def test_", "When a file is", "import os\n\n\nclass Path:")
TOKENS = 32
MEDIAN, WORST = 0.12, 0.25
"""What is to be reached: of the errors of plans, the median and the largest."""
COLUMNS = ("model", "experts", "prefetch", "capacity", "engine ms", "simulated ms", "error", "total", "noise")


@dataclass(frozen=True, slots=True)
class Row:
    """A plan: a decode step's time in the mean (ms), the median error of a step, the total's error, and the noise.

    `noise` is the error with which one run of the engine would foresee the median run's steps, in the median.
    """

    model: str
    experts: str
    prefetch: str
    capacity: str
    measured_ms: float
    simulated_ms: float
    error: float
    total: float
    noise: float


@app.command()
def held_out(
    hardware: Annotated[Path | None, typer.Option(help="a profile made before; without it, calibrates first")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads that torch computes with")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="times that each plan runs, at least")] = 5,
    write: Annotated[Path | None, typer.Option("--write", help="also write the page to this file")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Simulated against measured time of plans that were not calibrated on. Exit code 1 if the targets are missed.

    Example: python -m experiments.research.held_out --write docs/measurements/held-out.md
    """
    import torch

    from engine.hardware import load_hardware
    from experiments.cli import console
    from tracekit.durable import write_synced

    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        profile = load_hardware(hardware or calibrated(Path(folder) / "here.toml", threads))
        rows = [row for model in FORMATS for row in measure(model, profile, rounds, Path(folder))]
    text = page(rows, profile, torch.get_num_threads())
    if write is not None:
        write_synced(write, lambda file: file.write(text.encode()))
    if json:
        console.emit_json([msgspec.to_builtins(row) for row in rows])
    else:
        console.table("Simulated against measured time of held-out plans", COLUMNS, cells(rows))
        console.tell(verdict(rows))
    if not reached(rows):
        raise typer.Exit(1)


def calibrated(path: Path, threads: int | None) -> Path:
    """`tracekit calibrate`, as a user runs it. HardwareError if it fails."""
    from experiments.cli.main import run

    words = ["calibrate", "--output", str(path), "--device", "cpu", "--weights", CALIBRATED_FORMATS]
    if run([*words, *(() if threads is None else ("--threads", str(threads)))]):
        raise HardwareError("calibrate failed: see its message above")
    return path


def measure(name: str, profile: "HardwareProfile", rounds: int, folder: Path) -> list[Row]:
    """Every plan of a model, in turns."""
    from engine.plan.plan import plan_from_dict
    from engine.runtime import offload, offloaded
    from engine.runtime.calibration.engine_costs import run_prompts
    from engine.runtime.calibration.repeated import repeated
    from engine.runtime.clocks.device_time import device_time
    from experiments.demo.reference_models import CHECKPOINTS
    from tracekit.recorder.models import load_tokenizer
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import Prompt, encode_prompts
    from tracekit.recorder.recorder import record
    from tracekit.trace import Trace

    tokenizer = load_tokenizer(CHECKPOINTS / name)
    prompts = [Prompt(id=str(number), prompt=text) for number, text in enumerate(TEXTS)]
    encoded = encode_prompts(prompts, tokenizer)
    settings = list(product(FORMATS[name], PREDICTORS, CAPACITIES))
    with ExitStack() as opened:
        models, traces = [], []
        for number, (word, predictor, capacity) in enumerate(settings):
            tables: dict[str, dict[str, str]] = {"cache": {"capacity": capacity}, "prefetch": {"predictor": predictor}}
            if word:
                tables["weights"] = {"experts": word}
            model = offload(CHECKPOINTS / name, plan_from_dict(tables), device="cpu", dtype="float32")
            state = opened.enter_context(offloaded(model))
            ahead = () if state.lookahead_distance is None else (state.lookahead_distance,)
            options = RecordOptions(max_new_tokens=TOKENS, lookahead=ahead)
            traces.append(Trace.open(record(model, tokenizer, prompts, folder / f"{name}-{number}.trace", options)))
            models.append((model, state, plan_from_dict(tables)))
        timings: list[list[Timings]] = [[] for _ in models]

        def turn(_: int) -> list[float]:
            for (model, state, _plan), kept in zip(models, timings, strict=True):
                state.time_by(partial(device_time, state.device))
                run_prompts(model, encoded, TOKENS)
                kept.append(state.timings)
            return [float(decode_steps(kept[-1]).sum()) for kept in timings]

        repeated(turn, rounds)
        return [
            compared(name, word, plan, trace, state, [decode_steps(one) for one in kept[1:]], profile)
            for (word, _, _), (_, state, plan), trace, kept in zip(settings, models, traces, timings, strict=True)
        ]


def decode_steps(timings: "Timings") -> np.ndarray:
    """Nanoseconds of each decode step."""
    found: np.ndarray = (timings.step_end - timings.step_start)[timings.step_tokens == 1]
    return found


def compared(
    name: str,
    word: str,
    plan: "Plan",
    trace: "Trace",
    state: "OffloadState",
    runs: Sequence[np.ndarray],
    profile: "HardwareProfile",
) -> Row:
    """A plan's row: `runs` of the engine against the simulator. ModelError if decisions differ."""
    from engine.plan.tables import WeightsPlan
    from engine.replay.passes import run
    from engine.replay.setting import Setting
    from experiments.validation.comparison import compare_logs
    from policies.events import Events
    from tracekit.rows import DECODE

    manifest = msgspec.structs.replace(
        trace.manifest,
        expert_bytes=list(state.expert_bytes),
        expert_params=[layer.expert_params for layer in state.layers],
    )
    setting = Setting.of(manifest, plan.replace(weights=WeightsPlan()), profile, stored=word or None)
    pieces: list[Events] = []
    (found,) = run(trace, setting.spec, [setting.target], on_events=lambda _, events: pieces.append(events))
    decisions = compare_logs(Events.join(pieces), state.log)
    if not decisions.identical:
        raise ModelError(f"engine and simulator disagree on {name}, {plan}: {decisions.first_difference}")
    simulated = found.step_ns[found.phase == DECODE].astype(float)
    measured = np.median(np.stack(runs), axis=0).astype(float)
    away = [float(np.median(np.abs(one - measured) / measured)) for one in runs]
    return Row(
        model=name,
        experts=word or "float32",
        prefetch=plan.prefetch.predictor,
        capacity=plan.cache.capacity,
        measured_ms=float(measured.mean() / 1e6),
        simulated_ms=float(simulated.mean() / 1e6),
        error=float(np.median(np.abs(simulated - measured) / measured)),
        total=float(simulated.sum() / measured.sum() - 1),
        noise=float(np.median(away)),
    )


def reached(rows: Sequence[Row]) -> bool:
    """Whether the errors are within the targets."""
    errors = [row.error for row in rows]
    return bool(np.median(errors) <= MEDIAN and max(errors) <= WORST)


def verdict(rows: Sequence[Row]) -> str:
    """The errors of all plans in a sentence."""
    errors, short = [row.error for row in rows], sum(row.total < 0 for row in rows)
    middle, worst = 100 * float(np.median(errors)), 100 * max(errors)
    total, noise = (100 * float(np.median([value(row) for row in rows])) for value in (_total, _noise))
    return (
        f"{len(rows)} plans: median error of a decode step {middle:.1f} % (to reach: {100 * MEDIAN:g}), worst "
        f"{worst:.1f} % (to reach: {100 * WORST:g}); totals {short} too short, {len(rows) - short} too long, "
        f"{total:+.1f} % in the median; runs of the engine itself are {noise:.1f} % from their own median"
    )


def _total(row: Row) -> float:
    return row.total


def _noise(row: Row) -> float:
    return row.noise


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows for people."""
    return [
        [
            *(row.model, row.experts, row.prefetch, row.capacity),
            *(f"{row.measured_ms:.2f}", f"{row.simulated_ms:.2f}"),
            *(f"{100 * row.error:.1f} %", f"{100 * row.total:+.1f} %", f"{100 * row.noise:.1f} %"),
        ]
        for row in rows
    ]


def page(rows: Sequence[Row], profile: "HardwareProfile", threads: int) -> str:
    """The text of docs/measurements/held-out.md."""
    known = next((line for line in profile.source if "medians" in line), "")
    return (
        "# Simulated against measured time, on plans that were not calibrated on\n\n"
        f"{verdict(rows)}.\n\nMachine: {profile.description}; {threads} threads. Calibration: {known or 'given'}. "
        "Written by `python -m experiments.research.held_out --write docs/measurements/held-out.md`.\n\n"
        "Each plan is the median over runs in turns, step by step. *Error* is the median over decode steps; *total* "
        "that of their sum, with its sign; *noise* the error with which one run foresees the median of all.\n\n"
        + markdown.table(COLUMNS, cells(rows))
        + "\n"
    )


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr and exit code 2."""
    from experiments.cli.main import guarded

    return guarded(lambda: app(arguments, standalone_mode=False))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
