"""Part 2: how fast, against un-offloaded models, against the link, against less of the method; and what it launches."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from engine.runtime.calibration import probes
from engine.runtime.calibration.engine_costs import run_prompts
from engine.runtime.clocks.device_time import device_time
from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.queued_link import Link
from engine.runtime.links.thread_link import ThreadLink
from engine.runtime.offload_state import OffloadState
from engine.runtime.storage.random_weights import RandomExperts
from experiments.research.benchmarks.alternating import in_turns
from experiments.research.benchmarks.offloading import ABLATION, NAIVE, layer_by_layer
from experiments.research.gpu_day.runner import Found
from experiments.research.gpu_day.settings import SEED, Setting
from tracekit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARES = ("75%/layer", "50%/layer", "25%/layer")
PROMPT = list(range(3, 11))


def resident(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """Everything resident against plain transformers, eager and grouped, in turns: tokens per second of decoding."""
    new, repeats = (8, 2) if tiny else (32, 5)
    found: Found = {"layers": setting.depth, "new tokens": new}
    with setting.offloaded({"cache": {"capacity": "100%/layer"}}, device) as (model, _):
        runs: dict[str, Callable[[], object]] = {"ours": partial(run_prompts, model, [PROMPT], new)}
        if setting.weights is None:
            for implementation in ("eager", "grouped_mm"):
                plain = setting.plain(device)
                plain.set_experts_implementation(implementation)
                runs[f"transformers, {implementation}"] = partial(run_prompts, plain, [PROMPT], new)
        seconds = in_turns(*runs.values(), repeats=repeats, uncounted=1)
    rates = {name: new / median(times) for name, times in zip(runs, seconds, strict=True)}
    against = {f"ratio to {name}": rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
    return found | {"tokens/s": rates} | against


def full_depth(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """As `against_link`, with all layers where memory allows, and a quarter of the experts resident."""
    return against_link(setting.deepest(device, 0.25), device, tiny=tiny, shares=SHARES[-1:])


def against_link(setting: Setting, device: torch.device, *, tiny: bool, shares: Sequence[str] = SHARES) -> Found:
    """Three capacities: what a token takes, and what its bytes alone take on the link at their measured rate."""
    tokens = 8 if tiny else 24
    rows: list[Found] = []
    for capacity in shares[-1:] if tiny else shares:
        with setting.offloaded({"cache": {"capacity": capacity}}, device) as (model, state):
            for _ in range(2):  # the first time warms up
                state.time_by(partial(device_time, device))
                setting.run_forced(model, state, tokens)
            rows.append({"capacity": capacity} | _bounds(state, device, repeats=5))
    return {"layers": setting.depth, "rows": rows}


def _bounds(state: OffloadState, device: torch.device, repeats: int) -> Found:
    """A step's time, its copies' at the link's rate, and the dense part, during which no demanded copy can run."""
    slab, timings = state.store.slab_bytes, state.timings
    steps = timings.step_end - timings.step_start
    visits = (timings.visit_end - timings.visit_start).sum()
    loaded = sum(state.bytes_loaded.values()) / len(steps)
    (copy,) = probes.copies(device, [slab], repeats)
    link = loaded * copy.ns / slab
    dense = (steps.sum() - visits) / len(steps)
    return {
        "tokens/s": 1e9 / float(steps.mean()),
        "ms per token": float(steps.mean()) / 1e6,
        "MB loaded per token": loaded / 1e6,
        "link GB/s": slab / copy.ns,
        "ms of copies": link / 1e6,
        "ms of the dense part": float(dense) / 1e6,
        "ms the device stood still": float(timings.visit_waited.sum()) / len(steps) / 1e6,
        "share of the link bound": float((link + dense) / steps.mean()),
    }


def ablation(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """Table 2 of Eliseev & Mazur: each part of the method taken away, down to layers copied whole."""
    tokens = 8 if tiny else 24
    rates: dict[str, float] = {}
    for name, tables in ABLATION.items():
        with setting.offloaded(tables, device) as (model, state):
            run = partial(setting.run_forced, model, state, tokens)
            run()
            state.reset()
            rates[name] = tokens / _seconds(run, device)
    naive = setting.empty()
    link: Link = CudaLink(device) if device.type == "cuda" else ThreadLink()
    with layer_by_layer(naive, link, device=device, weights=setting.weights, origin=RandomExperts(SEED)):
        run_prompts(naive, [PROMPT[:1]], 2)
        new = 4 if tiny else 8
        rates[NAIVE] = new / _seconds(partial(run_prompts, naive, [PROMPT[:1]], new), device)
    return {"layers": setting.depth, "tokens/s": rates}


def accelerate_offload(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """accelerate's own way: every module's weights are copied to the device when it runs."""
    if setting.weights is not None:
        raise ModelError("accelerate offloads 16 bits here")
    from accelerate import cpu_offload

    model = setting.plain(torch.device("cpu"))
    model.set_experts_implementation("eager")
    new = 2 if tiny else 4
    cpu_offload(model, execution_device=device)
    with torch.inference_mode():
        _decode(model, device, 1)
        seconds = _seconds(partial(_decode, model, device, new), device)
    return {"layers": setting.depth, "tokens/s": new / seconds}


def _decode(model: "PreTrainedModel", device: torch.device, new: int) -> None:
    """A token at a time, without a prompt: the model's own device is the meta device now, so nothing asks for it."""
    ids, past = torch.full((1, 1), 3, device=device), None
    for _ in range(new):
        output = model(input_ids=ids, past_key_values=past, use_cache=True)
        past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1).to(device)
        ids.cpu()


def profiled(setting: Setting, device: torch.device, *, tiny: bool) -> Found:
    """Kernel launches and the host's time per visit of one token, by the profiler: everything resident, and half."""
    from torch.profiler import ProfilerActivity, profile

    tokens = 4 if tiny else 8
    found: Found = {"layers": setting.depth}
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    for capacity in ("100%/layer", "50%/layer"):
        with setting.offloaded({"cache": {"capacity": capacity}}, device) as (model, state):
            setting.run_forced(model, state, tokens)  # warms up, and fills the cache
            visits, loaded = len(state.timings.visit_start), sum(state.bytes_loaded.values())
            with profile(activities=activities) as seen:
                setting.run_forced(model, state, tokens)
            visits = len(state.timings.visit_start) - visits
            loaded = sum(state.bytes_loaded.values()) - loaded
            events = seen.key_averages()
            launches = sum(event.count for event in events if "LaunchKernel" in event.key)
            operations = sum(event.count for event in events if event.key.startswith("aten::"))
            waits = sum(event.count for event in events if "Synchronize" in event.key)
            host = sum(event.self_cpu_time_total for event in events)
            found[capacity] = {
                "launches per visit": launches / visits if cuda else None,
                "operations per visit": operations / visits,
                "host's waits per visit": waits / visits if cuda else None,
                "host us per visit, profiled": host / visits,
                "loads per visit": loaded / state.store.slab_bytes / visits,
            }
    return found


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
