"""Part 3: does the simulator foresee what is measured, the plan what is allocated, and what does it draw?"""

from functools import partial
from pathlib import Path
from statistics import median

import torch

from engine.hardware import HardwareProfile, load_hardware
from engine.runtime.calibration.power import power
from engine.runtime.memory import footprint
from engine.runtime.offload import offload
from experiments.research.gpu_day.runner import Found
from experiments.research.gpu_day.settings import SEED, Setting, Tables
from experiments.validation.calibrating import measured_here
from experiments.validation.forced import validate_routing

PROMPT = list(range(3, 11))
KERNELS = ("eager", "grouped")
HELD_OUT: list[Tables] = [
    {"cache": {"capacity": capacity}, "eviction": {"policy": policy}, "prefetch": {"predictor": prefetch, "count": 2}}
    for capacity, policy, prefetch in (
        ("50%/layer", "lru", "none"),
        ("25%/layer", "lfu", "gate"),
        ("37%/layer", "lru", "gate"),
    )
]


def held_out(setting: Setting, device: torch.device, output: Path, *, tiny: bool) -> Found:
    """The median error of the time per token, on plans that were not calibrated on, by both ways of calibrating.

    By a model at work, measured once for all plans of the setting, and by the machine's profile of part 1.
    """
    tokens, rows = 8 if tiny else 32, []
    profile = output / "gpu-day-profile.toml"
    load = partial(offload, device=device, random_experts=SEED)
    own = measured_here(lambda plan: load(setting.empty(), plan), setting.plan(HELD_OUT[1]), [PROMPT], tokens)
    ways: dict[str, HardwareProfile] = {"calibrated on a model": own}
    if profile.exists():
        ways["profile of part 1"] = load_hardware(profile)
    for tables in HELD_OUT[:1] if tiny else HELD_OUT:
        row: Found = {"plan": tables}
        for way, hardware in ways.items():
            found = validate_routing(
                setting.path,
                setting.plan(tables),
                setting.routing(tokens),
                hardware=hardware,
                seed=SEED,
                device=str(device),
            )
            row[way] = {
                "step error, median": found.time.step_error_median,
                "total error": found.time.total_error,
                "layer error, median": found.time.layer_error_median,
                "measured tokens/s": found.time.measured_tokens_per_second,
                "decisions identical": found.decisions.identical,
            }
        rows.append(row)
    errors = {way: median(row[way]["step error, median"] for row in rows) for way in ways}
    wrong = [row for row in rows if not all(row[way]["decisions identical"] for way in ways)]
    found_all = {"layers": setting.depth, "rows": rows, "median of plans": errors}
    return found_all | ({"outcome": "failed", "error": f"decisions differ: {wrong[0]['plan']}"} if wrong else {})


def allocated(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """The allocator's peak, loading and running, against what the plan was said to need."""
    tables: Tables = {"cache": {"capacity": "25%/layer"}}
    need = footprint(setting.empty(), setting.plan(tables))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)
    with setting.offloaded(tables, device) as (model, state):
        foreseen = need.device(state.pool.slots)
        loading = torch.cuda.max_memory_allocated(device) if cuda else 0
        setting.run_forced(model, state, 4 if tiny else 16)
        running = torch.cuda.max_memory_allocated(device) if cuda else 0
        reserved = torch.cuda.max_memory_reserved(device) if cuda else 0
        kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta)
        held = kept + state.pool.bytes
    found: Found = {"foreseen": foreseen, "slots and weights": held, "working": need.working}
    if not cuda:
        return found | {"skipped": "a CPU's allocator tells no peak"}
    return found | {"peak loading": loading, "peak running": running, "reserved": reserved}


def watts(device: torch.device, *, tiny: bool) -> Found:
    """Idle and at work, read while it works."""
    matrix = torch.randn(256 if tiny else 8192, 256 if tiny else 8192, device=device, dtype=torch.bfloat16)
    found, note = power(device, lambda: matrix @ matrix, seconds=0.2 if tiny else 5.0)
    return {"note": note} | ({} if found is None else {"device": [found.device_idle_w, found.device_busy_w]})


def both_kernels(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """Tokens per second by either way of computing experts, everything resident and a quarter."""
    if device.type == "cpu":
        return {"skipped": "Triton's interpreter tells nothing of speed; that the kernels are right, the tests tell"}
    tokens = 8 if tiny else 32
    found: Found = {"layers": setting.depth}
    for capacity in ("100%/layer", "25%/layer"):
        for kernels in KERNELS:
            tables: Tables = {"cache": {"capacity": capacity}, "compute": {"kernels": kernels}}
            with setting.offloaded(tables, device) as (model, state):
                for _ in range(2):
                    state.reset()
                    setting.run_forced(model, state, tokens)
                spans = state.timings.step_end - state.timings.step_start
                found[f"{capacity}, {kernels}, tokens/s"] = 1e9 / float(spans.mean())
    return found
