"""A plan as the nearest setting of another engine, and line by line what could not be carried over.

Sources, and the versions whose words these are:

- llama.cpp: `--cpu-moe`, `--n-cpu-moe`, `--override-tensor` (`common/arg.cpp`); `--moe-cache-mib` keeps the experts
  most used in device memory (docs/moe-cache.md, build b12191). Builds without it have whole layers, here or there.
- KTransformers 0.5.2 (kt-kernel through its fork of SGLang): `--kt-num-gpu-experts` per layer, a placement strategy,
  counts for it (doc/en/kt-kernel/experts-sched-Tutorial.md).
- vLLM: `--cpu-offload-gb` of the tensors named by `--cpu-offload-params` (pull request 34535), which stay on the host.
- SGLang itself: `--cpu-offload-gb` of all weights.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.plan.capacity import Capacity
from engine.plan.placement import parse_pinned
from engine.plan.plan import KEEP, Plan
from engine.plan.weights import WeightFormat
from tracekit.errors import PlanError, did_you_mean

MIB, GIB = 1 << 20, 1 << 30


class Sized(NamedTuple):
    """What an export must know of the model: its MoE layers by index, experts of each, bytes of one."""

    moe_layers: tuple[int, ...]
    experts: int
    expert_bytes: int


class Export(NamedTuple):
    """`arguments` for the engine's command, in pairs; `notes` on what they mean; `lost`: what they do not say."""

    engine: str
    arguments: list[tuple[str, str]]
    notes: list[str]
    lost: list[str]

    @property
    def command(self) -> str:
        """The arguments as a shell reads them."""
        import shlex

        return " ".join(shlex.quote(word) for pair in self.arguments for word in pair if word)


def export(plan: Plan, model: Sized, engine: str, *, counts: str | None = None) -> Export:
    """`plan` for one of `ENGINES`. `counts` is the path of a file of counts, where one is written beside.

    Raises PlanError for an engine that is not known, or a capacity that no number of slots follows from.
    """
    if engine not in ENGINES:
        raise PlanError(f"no export to {engine!r}{did_you_mean(engine, ENGINES)}; known: {', '.join(ENGINES)}")
    slots = slots_per_layer(plan, model)
    arguments, notes, lost = ENGINES[engine](plan, model, slots, counts)
    return Export(engine, arguments, notes, [*lost, *_lost_anywhere(plan, engine)])


def slots_per_layer(plan: Plan, model: Sized) -> float:
    """Experts of a layer that the device holds: a mean, where the capacity is for all layers."""
    layers = len(model.moe_layers)
    capacity: Capacity = plan.capacity
    groups, sizes = capacity.groups([model.experts] * layers, model.experts, [model.expert_bytes] * layers)
    return min(float(sum(groups)) / float(sizes[0]) / layers, float(model.experts))


def resident_layers(model: Sized, slots: float) -> tuple[int, ...]:
    """The last layers, as many as hold no more experts than all slots together: what whole layers can do of a plan."""
    whole = int(slots * len(model.moe_layers) / model.experts + 1e-9)
    return model.moe_layers[len(model.moe_layers) - whole :]


def host_pattern(model: Sized, resident: Sequence[int]) -> str:
    """The `--override-tensor` pattern that names the expert tensors of every other layer; "" if there is none."""
    there = set(resident)
    elsewhere = [str(layer) for layer in model.moe_layers if layer not in there]
    return rf"blk\.({'|'.join(elsewhere)})\.ffn_(gate|up|down|gate_up)_exps\." if elsewhere else ""


def _pinned_layers(plan: Plan, model: Sized) -> tuple[int, ...]:
    """The model's layers that the plan pins whole: what `--override-tensor` says exactly."""
    layers = parse_pinned(plan.placement.pinned).layers if plan.placement.pinned is not None else None
    return tuple(model.moe_layers[layer] for layer in layers or () if layer < len(model.moe_layers))


Parts = tuple[list[tuple[str, str]], list[str], list[str]]


def _llama_cpp(plan: Plan, model: Sized, slots: float, _counts: str | None) -> Parts:
    resident = _pinned_layers(plan, model) or resident_layers(model, slots)
    arguments = [("--n-gpu-layers", "999")]
    notes, lost = [], []
    cache = int(slots * len(model.moe_layers) * model.expert_bytes / MIB)
    if len(resident) == len(model.moe_layers):
        notes.append("all experts fit: nothing is left on the host")
    else:
        arguments += [("--cpu-moe", ""), ("--moe-cache-mib", str(cache))]
        notes.append(
            f"builds before b12191 have no cache; instead of these two, {len(resident)} whole layers on the device: "
            f"--override-tensor '{host_pattern(model, resident)}=CPU'"
        )
        lost.append(f"eviction {plan.eviction.policy}: the cache keeps the experts that were used most")
        if plan.miss.where != "copy":
            lost.append(
                f"misses {plan.miss.where}: a fixed share is the host's there; try --moe-cache-cpu-share, which its "
                "tuning script finds"
            )
    if plan.serve.context is not None:
        arguments.append(("--ctx-size", str(plan.serve.context * (plan.serve.batch or 1))))
    if plan.serve.batch is not None:
        arguments.append(("--parallel", str(plan.serve.batch)))
    if plan.serve.kv_cache is not None:
        known = {"fp16": "f16", "bf16": "bf16", "fp32": "f32"}.get(plan.serve.kv_cache, plan.serve.kv_cache)
        arguments += [("--cache-type-k", known), ("--cache-type-v", known)]
    word = plan.weights.experts
    if word is not None and not WeightFormat.parse(word).foreign:
        lost.append(
            f"weights {word}: take a GGUF of about {WeightFormat.parse(word).bits_per_parameter:.2g} bits a weight"
        )
    return arguments, notes, lost


def _ktransformers(plan: Plan, model: Sized, slots: float, counts: str | None) -> Parts:
    whole = int(slots + 1e-9)
    arguments = [("--kt-num-gpu-experts", str(whole))]
    notes, lost = [], []
    if counts is not None:
        arguments += [("--kt-expert-placement-strategy", "frequency"), ("--init-expert-location", counts)]
    else:
        arguments.append(("--kt-expert-placement-strategy", "uniform"))
        notes.append("with counts of a trace (--trace) the most popular experts are placed, not any")
    if slots - whole > 1e-6:
        lost.append(f"capacity: {slots:.2f} experts of a layer in the mean, {whole} there")
    if plan.eviction.policy != "static":
        arguments += [("--kt-enable-dynamic-expert-update", ""), ("--kt-gpu-prefill-token-threshold", "512")]
        lost.append(
            f"eviction {plan.eviction.policy}: placement changes there with a prompt's counts, and not within a step"
        )
    if plan.miss.where != "host":
        lost.append(f"misses {plan.miss.where}: a missing expert is always computed on the host there")
    notes.append(
        "also needed: --kt-weight-path, --kt-method, --kt-cpuinfer (physical cores), --kt-threadpool-count (NUMA nodes)"
    )
    return arguments + _sglang_serving(plan), notes, lost


def _vllm(plan: Plan, model: Sized, slots: float, _counts: str | None) -> Parts:
    host = (model.experts - slots) * len(model.moe_layers) * model.expert_bytes / GIB
    arguments = [("--cpu-offload-gb", f"{host:.1f}")] if host > 0.05 else []
    arguments += [("--cpu-offload-params", "w13_weight w2_weight")] if arguments else []
    if plan.serve.context is not None:
        arguments.append(("--max-model-len", str(plan.serve.context)))
    if plan.serve.batch is not None:
        arguments.append(("--max-num-seqs", str(plan.serve.batch)))
    lost = [f"eviction {plan.eviction.policy}: what is on the host stays there, and is read over the link at each use"]
    return arguments, ["GiB of expert weights that stay on the host"], lost if host > 0.05 else []


def _sglang(plan: Plan, model: Sized, slots: float, _counts: str | None) -> Parts:
    host = (model.experts - slots) * len(model.moe_layers) * model.expert_bytes / GIB
    arguments = [("--cpu-offload-gb", f"{host:.1f}")] if host > 0.05 else []
    lost = [
        f"eviction {plan.eviction.policy}: what is on the host stays there, and is read over the link at each use",
        "which weights: SGLang offloads whole layers' weights in their order, experts or not; see ktransformers",
    ]
    return arguments + _sglang_serving(plan), ["GiB of weights that stay on the host"], lost if host > 0.05 else []


def _sglang_serving(plan: Plan) -> list[tuple[str, str]]:
    found = []
    if plan.serve.context is not None:
        found.append(("--context-length", str(plan.serve.context)))
    if plan.serve.batch is not None:
        found.append(("--max-running-requests", str(plan.serve.batch)))
    return found


def _lost_anywhere(plan: Plan, engine: str) -> list[str]:
    lost = []
    if plan.cache.split is not None or plan.capacity.exceptions:
        how = plan.cache.capacity if plan.cache.split is None else f"split by {plan.cache.split}"
        lost.append(f"capacity by layer ({how}): {engine} is told how much in all")
    if plan.placement.pinned is not None:
        lost.append(f"placement {plan.placement.pinned}: {engine} is not told which experts are pinned")
    if plan.cache.warm != KEEP:
        lost.append(f"cache.warm {plan.cache.warm}: {engine} begins with nothing and keeps what it holds")
    if plan.miss.where != "copy" and engine in ("vllm", "sglang"):
        lost.append(f"misses {plan.miss.where}: {engine} reads every missing expert over the link")
    if plan.admission.limited:
        limit = "" if plan.admission.per_step is None else f", {plan.admission.per_step} per step"
        lost.append(f"admission {plan.admission.policy}{limit}: {engine} is not told which misses to keep")
    if plan.prefetch.predictor != "none":
        lost.append(f"prefetch {plan.prefetch.predictor}: {engine} loads no expert ahead")
    if plan.routing.alters:
        lost.append(f"routing {plan.routing.policy}: {engine} computes what the gates chose")
    if plan.serve.host == "disk":
        own = "maps the file, and the system keeps what it last read" if engine == "llama.cpp" else "reads all at once"
        lost.append(f"serve.host disk: {engine} {own}")
    if plan.precision is not None:
        lost.append(f"precision {plan.precision.low}: {engine} keeps each expert in one format")
    if plan.weights.attention is not None:
        lost.append(f"weights.attention {plan.weights.attention}: choose a checkpoint whose attention is stored so")
    if re.search(r"hqq", plan.weights.experts or "") and engine != "llama.cpp":
        lost.append(
            f"weights {plan.weights.experts}: {engine} does not read HQQ; choose a checkpoint of about its size"
        )
    return lost


ENGINES: dict[str, Callable[[Plan, Sized, float, str | None], Parts]] = {
    "llama.cpp": _llama_cpp,
    "ktransformers": _ktransformers,
    "vllm": _vllm,
    "sglang": _sglang,
}
