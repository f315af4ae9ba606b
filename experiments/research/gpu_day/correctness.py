"""Part 1: does it run at all, is it right under delays, and what do copies, read-back and locked memory do here?"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor

from engine.plan.plan import plan_from_dict
from engine.runtime.calibration import probes
from engine.runtime.calibration.engine_costs import run_prompts
from engine.runtime.experts.eager import Forward
from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.queued_link import Copy, Ticket
from engine.runtime.offload import offload
from engine.runtime.offload_state import OffloadState, offloaded
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.research.gpu_day.runner import Found
from tracekit.errors import HardwareError
from tracekit.recorder.models import load_model

ROOT = Path(__file__).parents[3]
COPY_SIZES = tuple(1 << power for power in range(8, 27, 2))
PROMPTS = ([3, 14, 15, 9, 26], [5, 35, 8])
CYCLES = 2_000_000  # a millisecond of a GPU's clock
DELAYS = ("none", "before copies", "before experts", "before both")
TABLES: list[dict[str, Any]] = [
    {"cache": {"capacity": "4/layer"}},
    {"cache": {"capacity": "2/layer"}, "prefetch": {"predictor": "gate", "count": 2}},
    {"cache": {"capacity": "0"}},
    {"cache": {"capacity": "12"}, "prefetch": {"predictor": "gate", "count": 2, "target": "cache"}},
]


def gpu_tests(limit_s: float, *, tiny: bool) -> Found:
    """The project's tests that are marked `gpu`, each file with its own share of the time."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    marked = marked[:1] if tiny else marked
    outcomes: dict[str, str] = {}
    end = perf_counter() + limit_s
    for number, path in enumerate(marked):
        share = (end - perf_counter()) / (len(marked) - number)
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-m", "gpu", "-p", "no:cacheprovider", str(path)]
        try:
            told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(share, 1)).stdout
        except subprocess.TimeoutExpired as late:
            told = (late.stdout or b"").decode(errors="replace") + f"\nFAILED {path.name} - stopped after {share:.0f} s"
        for outcome, what in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (.+)$", told, re.MULTILINE):
            outcomes[f"{path.name}: {what}"[:300]] = outcome
    failed = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    counts = {outcome.lower(): list(outcomes.values()).count(outcome) for outcome in set(outcomes.values())}
    return {"counts": counts, "tests": outcomes} | ({"outcome": "failed", "error": failed[0]} if failed else {})


def pinning(device: torch.device, *, tiny: bool) -> Found:
    """How long locking host memory takes, and how much of it can be locked."""
    if device.type != "cuda":
        return {"skipped": "only copies to a GPU need locked memory"}
    cuda, rows = torch.cuda.cudart(), []  # type: ignore[no-untyped-call]
    torch.cuda.init()  # type: ignore[no-untyped-call]
    for power in (20, 24) if tiny else (28, 30, 32, 34, 35):
        buffer = torch.ones(1 << power, dtype=torch.uint8)
        start = perf_counter()
        error = int(cuda.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))
        seconds = perf_counter() - start
        rows.append({"bytes": buffer.numel(), "seconds": seconds, "error": error})
        if error:
            break
        cuda.cudaHostUnregister(buffer.data_ptr())
    limit = subprocess.run(["bash", "-c", "ulimit -l"], capture_output=True, text=True).stdout.strip()
    return {"limit of locked memory (KiB)": limit, "rows": rows}


def copies(device: torch.device, *, tiny: bool) -> Found:
    """The engine's link by size, from locked memory and not; reading back what a gate chose."""
    if tiny:
        probes.COLD_BYTES = 1 << 22
    sizes, repeats = ((256, 1 << 16, 1 << 20), 5) if tiny else (COPY_SIZES, 21)
    found: Found = {}
    for kind in ("pinned", "pageable") if device.type == "cuda" else ("pinned",):
        figures = probes.copies(device, sizes, repeats, pinned=kind == "pinned")
        found[kind] = [_figure(figure, size) for figure, size in zip(figures, sizes, strict=True)]
    back = probes.readback(device, repeats)
    return found | {"gate readback (us)": back.ns / 1e3, "in flight": CudaLink.in_flight}


def calibrated(device: torch.device, output: Path, *, tiny: bool) -> Found:
    """`tracekit calibrate`, its profile kept beside the results."""
    from experiments.cli.main import run

    target = output / "gpu-day-profile.toml"
    arguments = ["calibrate", "--output", str(target), "--force", "--device", str(device), "--name", "gpu-day"]
    if tiny:
        from engine.runtime.calibration import machine_profile, power

        probes.COLD_BYTES, probes.WIDTH = 1 << 24, 256
        for function, smaller in (
            (machine_profile.calibrate_machine, {"copy_sizes": (256, 1 << 16, 1 << 22), "tokens": (1, 8)}),
            (power.power, {"seconds": 0.1}),
        ):
            defaults: Any = function
            defaults.__kwdefaults__ |= smaller
        arguments += ["--rounds", "1", "--repeats", "9", "--weights", "hqq-4bit"]
    else:
        arguments += ["--weights", "hqq-4bit,hqq-2bit", "--rounds", "3"]
    code = run(arguments)
    if code:
        raise HardwareError(f"calibrate ended with {code}")
    return {"profile": target.name, "text": target.read_text()}


class _Delayed:
    """A host slab that is slow to read: on a CPU, what delays a copy."""

    def __init__(self, source: Tensor) -> None:
        self.source = source

    def numel(self) -> int:
        return self.source.numel()

    def read_into(self, target: Tensor) -> None:
        sleep(0.0005)
        target.copy_(self.source)


def races(device: torch.device, *, tiny: bool) -> Found:
    """Tokens under delays before copies, before experts and both, slots poisoned once used: the plain model's."""
    mini, new = CHECKPOINTS / NAMES[0], 6 if tiny else 24
    plain, _ = load_model(mini, "float32", str(device))
    plain.set_experts_implementation("eager")
    wanted = run_prompts(plain, PROMPTS, new)
    rows = []
    for tables in TABLES[:2] if tiny else TABLES:
        for delay in DELAYS[:2] if tiny else DELAYS:
            model = offload(mini, plan_from_dict(tables), device=device, dtype="float32")
            with offloaded(model) as state:
                _provoke(state, delay)
                same = run_prompts(model, PROMPTS, new) == wanted
            rows.append({"plan": str(tables), "delay": delay, "identical": same})
    bad = [row for row in rows if not row["identical"]]
    return {"rows": rows} | ({"outcome": "failed", "error": f"other tokens: {bad[0]}"} if bad else {})


def _provoke(state: OffloadState, delay: str) -> None:
    """Delay copies and experts of an offloaded model, and overwrite each slot whose expert has lost it."""
    cuda, link, ask = state.device.type == "cuda", state.link, state.link.copies

    def copies(asked: Sequence[Copy]) -> list[Ticket]:
        late = "copies" in delay or "both" in delay
        given = []
        for source, target, demand in asked:
            # On the caller's stream, hence before the copy: what still reads the slot has read it, or was not ordered.
            target.fill_(255)
            if late and isinstance(link, CudaLink):
                with torch.cuda.stream(link._stream):
                    torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
            elif late and isinstance(source, Tensor):
                source = _Delayed(source)
            given.append((source, target, demand))
        return ask(given)

    def slow(compute: Forward, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        if "experts" in delay or "both" in delay:
            if cuda:
                torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
            else:
                sleep(0.0005)
        return compute(weights, rows)

    state.link.copies = copies  # type: ignore[method-assign]
    state._forward = [partial(slow, compute) for compute in state._forward]


EXIT = """
import sys
from engine.plan.plan import plan_from_dict
from engine.runtime.offload import offload
from engine.runtime.offload_state import offloaded
from experiments.demo.reference_models import CHECKPOINTS, NAMES
model = offload(CHECKPOINTS / NAMES[0], plan_from_dict({"cache": {"capacity": "4/layer"}}), device=sys.argv[1])
state = offloaded(model)
tickets = [state.link.copies([(state.store.slab(key), state.pool.slab(key, state.store.slab(key).numel()), False)])[0]
           for key in range(state.cache.slots)]
if sys.argv[2] == "dropped":
    del state, model
    import gc
    gc.collect()
elif sys.argv[2] == "closed":
    state.close()
"""


def exits(device: torch.device, *, tiny: bool) -> Found:
    """Leaving the interpreter with copies in flight: with the model kept, dropped, closed."""
    rows: Found = {}
    for way in ("kept",) if tiny else ("kept", "dropped", "closed"):
        done = subprocess.run(
            [sys.executable, "-c", EXIT, str(device), way],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        )
        rows[way] = {"exit": done.returncode, "said": done.stderr[-500:]}
    bad = [way for way, row in rows.items() if row["exit"]]
    return {"ways": rows} | ({"outcome": "failed", "error": f"{bad[0]}: exit {rows[bad[0]]['exit']}"} if bad else {})


def _figure(figure: probes.Figure, size: int) -> Found:
    quartiles = [figure.low_ns / 1e3, figure.ns / 1e3, figure.high_ns / 1e3]
    return {"bytes": size, "us": [round(us, 2) for us in quartiles], "GB/s": round(figure.rate(size) / 1e9, 3)}
