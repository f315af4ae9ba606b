"""What other engines are told of a plan: where experts lie, what is pinned, and what a miss becomes.

Sources, and the versions whose words these are:

- llama.cpp: `--cpu-moe`, `--override-tensor` (`common/arg.cpp`); `--moe-cache-mib` keeps the experts most used, of the
  layers that lie on the host, in device memory; `--moe-cache-cpu-share` says which share of misses the CPU computes
  once it is full (docs/moe-cache.md, build b12191). Builds without it have whole layers, here or there. A branch (pull
  request 27861, open) computes misses on the host and bounds what each layer takes in at a step: `--moe-expert-cache`,
  `--moe-expert-cache-inserts`.
- KTransformers 0.5.2 (kt-kernel through its fork of SGLang): `--kt-num-gpu-experts` per layer or
  `--kt-gpu-experts-ratio` of all, a placement strategy, counts for it (doc/en/kt-kernel/experts-sched-Tutorial.md).
  "frequency" takes the most frequent of all layers together, and counts from a file of torch's only
  (python/sglang/srt/layers/moe/kt_ep_wrapper.py, python/experts_base.py).
- vLLM: `--cpu-offload-gb` of the tensors named by `--cpu-offload-params` (pull request 34535), which stay on the host,
  those of the first layers first (vllm/model_executor/offloader/uva.py). A cache is an open pull request, 37190.
- SGLang itself: `--cpu-offload-gb` of all weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.plan.placement import parse_pinned
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat

MIB, GIB = 1 << 20, 1 << 30


class Sized(NamedTuple):
    """What an export must know of the model: its MoE layers by index, experts of each, bytes of one."""

    moe_layers: tuple[int, ...]
    experts: int
    expert_bytes: int


class Asked(NamedTuple):
    """What is to be said: `slots` are those of a layer, in the mean; `whole` the MoE layers, from 0, that are pinned
    whole, and `single` how many experts are pinned in other layers."""

    plan: Plan
    model: Sized
    slots: float
    counts: str | None
    whole: tuple[int, ...]
    single: int

    @classmethod
    def of(
        cls, plan: Plan, model: Sized, slots: float, counts: str | None, pinned: Mapping[int, Sequence[int]] | None
    ) -> "Asked":
        """As `export` takes it."""
        if pinned is None:
            named = parse_pinned(plan.placement.pinned).layers if plan.placement.pinned is not None else None
            pinned = {layer: range(model.experts) for layer in named or () if layer < len(model.moe_layers)}
        whole = tuple(sorted(layer for layer, own in pinned.items() if len(own) == model.experts))
        single = sum(len(own) for layer, own in pinned.items() if layer not in whole)
        return cls(plan, model, slots, counts, whole, single)

    @property
    def resident(self) -> tuple[int, ...]:
        """The model's layers that are pinned whole."""
        return tuple(self.model.moe_layers[layer] for layer in self.whole)

    @property
    def total(self) -> int:
        """Slots of all layers, whole."""
        return int(self.slots * len(self.model.moe_layers) + 1e-9)

    @property
    def beside(self) -> float:
        """Slots beside layers that are pinned whole."""
        return max(0.0, self.slots * len(self.model.moe_layers) - len(self.whole) * self.model.experts)

    @property
    def moves(self) -> bool:
        """Whether anything on the device may leave it."""
        pinned = len(self.whole) * self.model.experts + self.single
        every = len(self.model.moe_layers) * self.model.experts
        return self.plan.eviction.policy != "static" and pinned < self.total < every

    @property
    def only_whole_layers_differ(self) -> bool:
        """Whether no layer has slots of its own number, but those that are pinned whole."""
        return all(layer in self.whole for one in self.plan.capacity.exceptions for layer in one.layers)


def resident_layers(model: Sized, slots: float) -> tuple[int, ...]:
    """The last layers, as many as hold no more experts than all slots together: what whole layers can do of a plan."""
    whole = int(slots * len(model.moe_layers) / model.experts + 1e-9)
    return model.moe_layers[len(model.moe_layers) - whole :]


def host_pattern(model: Sized, resident: Sequence[int]) -> str:
    """The `--override-tensor` pattern that names the expert tensors of every other layer; "" if there is none."""
    there = set(resident)
    elsewhere = [str(layer) for layer in model.moe_layers if layer not in there]
    return rf"blk\.({'|'.join(elsewhere)})\.ffn_(gate|up|down|gate_up)_exps\." if elsewhere else ""


def ranked(counts: np.ndarray, pinned: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Counts [MoE layers, experts] in which what is pinned, by layer, comes before all else."""
    first = np.zeros_like(counts)
    for layer, experts in pinned.items():
        first[layer, list(experts)] = 1
    found: np.ndarray = counts + (counts.max(initial=0) + 1) * first
    return found


Parts = tuple[list[tuple[str, str]], list[str], list[str]]


def llama_cpp(asked: Asked) -> Parts:
    """`--override-tensor` for what is pinned, `--moe-cache-mib` for what moves."""
    plan, model = asked.plan, asked.model
    resident = asked.resident
    arguments, notes, lost = [("--n-gpu-layers", "999")], list[str](), list[str]()
    cache = int(asked.beside * model.expert_bytes / MIB)
    if len(resident) == len(model.moe_layers) or asked.slots >= model.experts:
        notes.append("all experts fit: nothing is left on the host")
    else:
        pattern = host_pattern(model, resident)
        arguments.append(("--override-tensor", f"{pattern}=CPU") if resident else ("--cpu-moe", ""))
        arguments += [("--moe-cache-mib", str(cache))] if cache else []
        if cache and resident:
            notes.append("builds before b12191 have no cache: leave out --moe-cache-mib")
        elif cache:
            instead = resident_layers(model, asked.slots)
            notes.append(
                f"builds before b12191 have no cache; instead of these two, {len(instead)} whole layers on the device: "
                f"--override-tensor '{host_pattern(model, instead)}=CPU'"
            )
        notes += _bounded(asked)
        share, said = _llama_cpp_misses(plan, cached=bool(cache))
        arguments += share
        lost += said
    if asked.single:
        lost.append(
            f"placement {plan.placement.pinned}: --override-tensor pins whole layers; of single experts the cache "
            "keeps those that were used most"
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


def _llama_cpp_misses(plan: Plan, *, cached: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """The argument for where misses are computed, and what is lost of it and of the cache's policy."""
    miss = plan.miss
    if not cached:  # what lies on the host is computed there
        return [], [] if miss.where == "host" else [f"misses {miss.where}: without a cache the host computes them all"]
    lost = [f"eviction {plan.eviction.policy}: the cache keeps the experts that were used most"]
    if miss.where == "split" and miss.share:
        hosted = [("--moe-cache-cpu-share", f"{1 - miss.share:.3g}")] if miss.share < 1 else []
        return hosted, [*lost, "misses split: until the cache is full all are copied"] if hosted else lost
    if miss.where != "copy":
        lost.append(
            f"misses {miss.where}: a fixed share is the host's there; try --moe-cache-cpu-share, which its "
            "tuning script finds"
        )
    return [], lost


def _bounded(asked: Asked) -> list[str]:
    """What an open branch of llama.cpp has for misses on the host."""
    plan, layers = asked.plan, len(asked.model.moe_layers)
    slots = int(asked.beside / (layers - len(asked.whole)) + 1e-9)
    if plan.miss.where != "host" or slots < 1:
        return []
    words = f"--moe-expert-cache {slots}"
    step = plan.admission.per_step
    if step:
        each = max(1, round(step / layers))
        exact = plan.admission.per_layer == "even" and each * layers == step
        words += f" --moe-expert-cache-inserts {each}" + ("" if exact else f" (for {step} of all layers)")
    return [
        "not in a release: pull request 27861 of llama.cpp computes misses on the host and bounds what a layer takes "
        f"in at a step; there, in place of --moe-cache-mib: {words}"
    ]


def ktransformers(asked: Asked) -> Parts:
    """Experts that stay on the device, by counts in which what is pinned comes first; all else is the host's."""
    plan, layers = asked.plan, len(asked.model.moe_layers)
    notes, lost = list[str](), list[str]()
    every, pinned = layers * asked.model.experts, bool(asked.whole or asked.single)
    arguments = [("--kt-num-gpu-experts", str(asked.total // layers))]
    if asked.total % layers:  # a share of all, rounded down there: half an expert more is none
        arguments = [("--kt-gpu-experts-ratio", f"{(asked.total + 0.5) / every:.7f}")]
    first = asked.whole == tuple(range(len(asked.whole))) and asked.total == len(asked.whole) * asked.model.experts
    if asked.counts is not None:
        table = asked.counts.removesuffix(".json") + ".pt"
        arguments += [("--kt-expert-placement-strategy", "frequency"), ("--init-expert-location", table)]
        notes.append(
            "it reads counts from a file of torch's only: python -c \"import json, torch; torch.save({'logical_count': "
            f"torch.tensor([json.load(open('{asked.counts}'))['logical_count']])}}, '{table}')\""
        )
        notes.append("of all layers together those of the highest counts are placed" + ", pinned ones first" * pinned)
    elif pinned and first:
        arguments.append(("--kt-expert-placement-strategy", "front-loading"))
    else:
        arguments.append(("--kt-expert-placement-strategy", "uniform"))
        notes.append("with counts of a trace (--trace) the most popular experts are placed, not any")
        if pinned:
            lost.append(f"placement {plan.placement.pinned}: with --counts FILE the pinned experts are placed")
    if asked.moves and pinned:
        lost.append(f"eviction {plan.eviction.policy}: beside what is pinned nothing moves there")
    elif asked.moves:
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


def vllm(asked: Asked) -> Parts:
    """Experts of the first layers stay on the host."""
    plan, model = asked.plan, asked.model
    host = (model.experts - asked.slots) * len(model.moe_layers) * model.expert_bytes / GIB
    some = host > 0.05
    arguments = [("--cpu-offload-gb", f"{host:.1f}"), ("--cpu-offload-params", "w13_weight w2_weight")] if some else []
    notes = ["GiB of expert weights that stay on the host, those of the first layers"]
    if plan.serve.context is not None:
        arguments.append(("--max-model-len", str(plan.serve.context)))
    if plan.serve.batch is not None:
        arguments.append(("--max-num-seqs", str(plan.serve.batch)))
    if not some:
        return arguments, notes, []
    lost = []
    if asked.moves:
        lost.append(
            f"eviction {plan.eviction.policy}: what is on the host stays there, and is read over the link at each use"
        )
        if plan.miss.where == "copy" and asked.slots >= 1:
            notes.append(
                "not in a release: pull request 37190 of vLLM has a cache; there, in place of these two: "
                f"--moe-expert-cache-size {int(asked.slots)} --enforce-eager"
            )
    last = model.moe_layers[len(model.moe_layers) - len(asked.whole) :]
    if asked.single or asked.resident != last:
        lost.append(f"placement {plan.placement.pinned}: the last layers are on the device there, whatever is pinned")
    return arguments, notes, lost


def sglang(asked: Asked) -> Parts:
    """All weights in their order, experts or not."""
    plan, model = asked.plan, asked.model
    host = (model.experts - asked.slots) * len(model.moe_layers) * model.expert_bytes / GIB
    arguments = [("--cpu-offload-gb", f"{host:.1f}")] if host > 0.05 else []
    lost = [
        f"eviction {plan.eviction.policy}: what is on the host stays there, and is read over the link at each use",
        "which weights: SGLang offloads whole layers' weights in their order, experts or not; see ktransformers",
    ]
    if plan.placement.pinned is not None:
        lost.append(f"placement {plan.placement.pinned}: SGLang is not told what is pinned; see ktransformers")
    return arguments + _sglang_serving(plan), ["GiB of weights that stay on the host"], lost if host > 0.05 else []


def _sglang_serving(plan: Plan) -> list[tuple[str, str]]:
    found = []
    if plan.serve.context is not None:
        found.append(("--context-length", str(plan.serve.context)))
    if plan.serve.batch is not None:
        found.append(("--max-running-requests", str(plan.serve.batch)))
    return found


ENGINES: dict[str, Callable[[Asked], Parts]] = {
    "llama.cpp": llama_cpp,
    "ktransformers": ktransformers,
    "vllm": vllm,
    "sglang": sglang,
}
