"""Times that fit: the simulator counts integer nanoseconds in 64 bits, so what could exceed them is refused before."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.options import MOST_NS
from tracekit.errors import HardwareError, TraceError

MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class Work:
    """What a replay could ask of a machine at most.

    `demanded` and `prefetched` count experts of one layer over all steps; `step_tokens` and `step_context` are those of
    the largest step.
    """

    steps: int
    tokens: int
    context: int
    top_k: int
    demanded: int
    prefetched: int
    step_tokens: int
    step_context: int

    @classmethod
    def of(cls, step_tokens: np.ndarray, context: np.ndarray, top_k: int, experts: int, suggested: int) -> "Work":
        """From tokens and context tokens of each step, [steps]; `suggested` experts are prefetched a visit at most."""
        return cls(
            steps=len(step_tokens),
            tokens=int(step_tokens.sum()),
            context=int(context.sum()),
            top_k=top_k,
            demanded=int(np.minimum(step_tokens.astype(np.int64) * top_k, experts).sum()),
            prefetched=len(step_tokens) * min(suggested, experts),
            step_tokens=int(step_tokens.max(initial=0)),
            step_context=int(context.max(initial=0)),
        )


def check_bytes(work: Work, sizes: Iterable[int]) -> None:
    """Raise TraceError if the bytes that could be copied, [layers] an expert, do not fit 64 bits."""
    copies = work.demanded + work.prefetched
    if copies * sum(sizes) >= MOST:
        raise TraceError(
            f"expert_bytes: a replay could copy {copies} experts a layer, the largest {max(sizes)} "
            "bytes, more than 64 bits can count; correct the manifest or the model shape"
        )


def check_times(work: Work, costs: Costs) -> None:
    """Raise HardwareError, naming the profile's field, if all work one after the other does not fit nanoseconds."""
    for field, product in _products(work, costs):
        if product >= MOST:
            raise _too_long(field, product // 1000)
    terms = _terms(work, costs)
    total = sum(terms.values())
    if total >= MOST_NS:
        raise _too_long(max(terms, key=lambda field: terms[field]), total)


def _products(work: Work, costs: Costs) -> list[tuple[str, int]]:
    """What the kernel multiplies before it divides."""
    return [
        ("device.compute_flops_per_s", work.step_tokens * max(costs.dense_token_ps, costs.expert_token_ps)),
        ("device.memory_bandwidth_bytes_per_s", work.step_context * costs.context_ps),
        ("overhead.per_prediction_ns", work.step_tokens * costs.predict_token_ps),
        ("cpu.compute_flops_per_s", work.step_tokens * costs.cpu_token_ps),
        ("disk.link_slowdown_percent", int(costs.rest_ns.max(initial=0)) * costs.slowdown_percent),
        ("cpu.link_slowdown_percent", int(costs.rest_ns.max(initial=0)) * costs.copy_beside_percent),
        ("cpu.slowdown_percent", _longest_on_cpu(work, costs) * costs.cpu_beside_percent),
    ]


def _terms(work: Work, costs: Costs) -> dict[str, int]:
    """Nanoseconds of all work, one piece after the other, by the field that sets its pace."""
    layers = len(costs.chunks)
    copies = work.demanded + work.prefetched
    # What nobody waits for may have begun in chunks when the rest of it is demanded.
    queued = work.prefetched + (work.demanded if costs.cpu else 0)
    wire = copies * _sum(costs.rest_ns[:, 0]) + queued * _sum(costs.chunk_ns)
    setups = copies * layers + queued * _sum(costs.chunks)
    reading = work.steps * _sum(costs.dense_ns) + work.demanded * _sum(costs.expert_ns)
    arithmetic = work.tokens * layers * (costs.dense_token_ps + work.top_k * costs.expert_token_ps)
    computed = work.demanded if costs.cpu else 0
    beside = 100 + costs.cpu_beside_percent
    reading_ns = costs.read_ns if costs.disk_lanes == 1 else costs.lanes_ns.max(axis=1)
    return {
        ", ".join(costs.paced_by): wire + wire * (costs.slowdown_percent + costs.copy_beside_percent) // 100,
        "link.latency_ns": setups * costs.setup_ns,
        "device.memory_bandwidth_bytes_per_s": reading + work.context * layers * costs.context_ps // 1000,
        "device.compute_flops_per_s": arithmetic // 1000,
        "engine.expansions": work.demanded * _sum(costs.dequant_ns),
        "overhead.per_layer_ns": work.steps * layers * costs.layer_overhead_ns,
        "overhead.gate_readback_ns": work.steps * layers * costs.readback_ns,
        "overhead.per_step_ns": work.steps * costs.step_ns,
        "overhead.per_expert_ns": work.demanded * layers * costs.expert_overhead_ns,
        "fused.per_call_ns": work.demanded * layers * max(costs.call_ns, 0),
        "overhead.per_copy_ns": copies * layers * costs.copy_overhead_ns,
        "overhead.per_prediction_ns": work.steps * _sum(costs.predict_ns)
        + work.tokens * layers * costs.predict_token_ps // 1000,
        "overhead.per_lookup_ns": work.demanded * layers * costs.lookup_ns,
        "overhead.per_insert_ns": copies * layers * costs.insert_ns,
        "disk.read_bytes_per_s": copies * _sum(reading_ns) if costs.host_bytes >= 0 else 0,
        "cpu.memory_bandwidth_bytes_per_s": computed * _sum(costs.cpu_expert_ns) * beside // 100,
        "cpu.compute_flops_per_s": (work.tokens * work.top_k * layers * costs.cpu_token_ps // 1000)
        * bool(computed)
        * beside
        // 100,
        "cpu.per_expert_ns": computed * layers * costs.cpu_overhead_ns * beside // 100,
    }


def _longest_on_cpu(work: Work, costs: Costs) -> int:
    """Nanoseconds of one expert of the largest step."""
    reading = int(costs.cpu_expert_ns.max(initial=0))
    return max(reading, work.step_tokens * costs.cpu_token_ps // 1000) + costs.cpu_overhead_ns


def _sum(times: np.ndarray) -> int:
    """Whatever the sum: each time fits 64 bits, all together may not."""
    high, low = times >> 32, times & 0xFFFFFFFF
    return (int(high.sum()) << 32) + int(low.sum())


def _too_long(field: str, nanoseconds: int) -> HardwareError:
    return HardwareError(
        f"{field}: with it a replay of this trace could take {nanoseconds / 1e9:.3g} s, and {MOST_NS / 1e9:.3g} s "
        "is the most that can be counted; correct the hardware profile or the sizes"
    )
