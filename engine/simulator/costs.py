"""Costs: what each piece of work takes on a modelled machine, in integer nanoseconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.hardware import HardwareProfile
from engine.hardware.roofline import Roofline, ceil_ns, token_ps
from engine.plan.weights import WeightFormat, expanded_bits
from engine.shapes import ModelShape
from engine.shapes.sizes import STATED, head_bytes, kv_bytes_per_token, layer_bytes
from engine.simulator.copies import copies_bytes
from engine.simulator.fits import each, fitting
from engine.simulator.host import host_memory, lanes_ns
from tracekit.errors import HardwareError, PlanError
from tracekit.manifest import Manifest

MOST_CHUNKS = 1 << 12
"""Of one expert: 1 GiB in the smallest chunks there may be."""
MOST_CHUNKS_OF_ALL = 1 << 18
BANDWIDTH, FLOPS = "device.memory_bandwidth_bytes_per_s", "device.compute_flops_per_s"


class Costs(NamedTuple):
    """Costs of every MoE layer of a trace on one machine.

    Arrays are i64 [layers], or [layers, chunks] where said; names end in their unit (ps: picoseconds, per token). Where
    experts have low copies, what is of an expert is [2 * layers], theirs behind (policies.tiered_cache).
    """

    # Compute stream.
    dense_ns: np.ndarray
    """The layer's dense weights read."""
    expert_ns: np.ndarray
    """One expert's weights read, as the arithmetic wants them."""
    dequant_ns: np.ndarray
    """One expert's weights expanded from their stored format; 0 if they are stored as used."""
    expert_token_ps: int
    """Arithmetic of one token in one expert."""
    expert_overhead_ns: int
    call_ns: int
    """Where a call computes several experts of a visit: what it takes whatever it computes; -1 where each is alone."""
    dense_token_ps: int
    """Arithmetic of one token in a dense part."""
    context_ps: int
    """Memory read in a dense part per context token."""
    copy_overhead_ns: int
    """The host asks for one copy."""
    lookup_ns: int
    """The cache looks one demanded expert up, before the visit's copies are asked for."""
    insert_ns: int
    """The cache finds room for one expert, likewise."""
    layer_overhead_ns: int
    readback_ns: int
    predict_ns: np.ndarray
    """The plan's fitted predictors at a visit (engine.replay.predictor_costs)."""
    predict_token_ps: int
    step_ns: int
    """Once a step: fixed overhead, head and layers without experts."""

    # Link.
    copy_engines: int
    setup_ns: int
    """Of each copy and each chunk, before its bytes move."""
    chunks: np.ndarray
    """Chunks of a prefetch."""
    chunk_ns: np.ndarray
    """[layers, chunks]: each chunk's time on the wire."""
    rest_ns: np.ndarray
    """[layers, chunks]: time on the wire of one copy of everything from a chunk on; [:, 0] is a demand load."""

    # Disk; host_bytes is -1 where all experts are in host memory.
    expert_bytes: tuple[int, ...]
    host_bytes: int
    read_ns: np.ndarray
    """One expert from disk, alone."""
    lanes_ns: np.ndarray
    """[layers, lanes]: the same if so many reads (1, 2, ...) are under way when it begins, itself included."""
    slowdown_percent: int
    """How much longer a copy is on the wire if it begins during a read."""

    # CPU lane; cpu is 1 where the plan has the host compute misses.
    cpu: int
    cpu_expert_ns: np.ndarray
    """One expert's weights read from host memory."""
    cpu_token_ps: int
    cpu_overhead_ns: int
    """Of each expert: activations there and back, and what is fixed."""

    scale: float
    """Turns time on the trace's layers into time on the model's."""
    notes: tuple[str, ...]
    overlapped: int = 0
    """Of calls: 1 where what is there is computed at once, not when all of the visit is (engine.simulator.fused)."""
    cpu_beside_percent: int = 0
    """How much longer an expert takes on the CPU that begins during a copy."""
    copy_beside_percent: int = 0
    """How much longer a copy is on the wire that begins while the CPU computes."""
    paced_by: tuple[str, ...] = ("link.host_to_device_bytes_per_s",)
    """The profile's field that says how fast copies are."""
    low: int | None = None
    """The key of the first low copy; None where experts have one, and then no code for two is compiled."""

    @property
    def disk_lanes(self) -> int:
        """How many reads may be under way together."""
        return int(self.lanes_ns.shape[1])

    def for_kernel(self) -> "Costs":
        """The same without tuples: a tuple's length is part of its type, for which the kernel is compiled."""
        return self._replace(expert_bytes=(), notes=(), paced_by=())

    @property
    def copy_ns(self) -> np.ndarray:
        """i64 [layers]: one demand load on an idle link."""
        return self.rest_ns[:, 0] + self.setup_ns

    @property
    def least_link_ns(self) -> np.ndarray:
        """i64 [layers]: what a copy takes of the link at least, for bounds."""
        setup = self.setup_ns if self.copy_engines == 1 else 0
        least = self.rest_ns[:, 0] + setup
        ahead = np.zeros_like(least)
        for done in range(1, int(self.chunks.max()) + 1):  # chunks ahead of demand, and the rest as one copy
            ahead += np.where(done <= self.chunks, self.chunk_ns[:, done - 1] + setup, 0)
            rest = self.rest_ns[:, min(done, self.rest_ns.shape[1] - 1)] + setup
            least = np.minimum(least, ahead + np.where(done < self.chunks, rest, 0))
        return least


def expert_params(manifest: Manifest, shape: ModelShape | None, expert_bytes: Sequence[int]) -> list[int]:
    """Parameters of one expert of each MoE layer; where nothing says, as if two bytes were one."""
    if shape is not None:
        return [shape.expert_params] * len(manifest.experts_per_layer)
    return list(manifest.expert_params) or [size // 2 for size in expert_bytes]


@dataclass(frozen=True, slots=True)
class _Model:
    """Sizes that costs follow from, by MoE layer; parameters of dense parts are means over them."""

    expert_params: list[int]
    dense_bytes: list[int]
    dense_params: int = 0
    head_bytes: int = 0
    kv_bytes: int = 0
    scale: float = 1.0
    notes: tuple[str, ...] = ("no model shape: attention and other dense work cost nothing but the fixed overhead",)


def _unshaped(manifest: Manifest, expert_bytes: list[int]) -> _Model:
    """The trace's own sizes, as far as it says them."""
    params = expert_params(manifest, None, expert_bytes[: len(manifest.experts_per_layer)])
    if not manifest.dense_bytes:
        return _Model(params, [0] * len(params))
    note = "no model shape: of dense work, layers' weights are read as the trace sizes them; the rest costs nothing"
    return _Model(params, manifest.dense_bytes, notes=(note,))


def _shaped(manifest: Manifest, shape: ModelShape, attention_format: str | None) -> _Model:
    layers = len(manifest.experts_per_layer)
    attention = WeightFormat.parse(attention_format or "bf16")
    moe = shape.moe_layers
    rest = sum(layer_bytes(shape, layer, attention, STATED) for layer in range(shape.layers) if layer not in moe)
    notes = []
    scale = len(moe) / layers
    if len(moe) != layers:
        notes.append(f"the trace has {layers} MoE layers, {shape.name} has {len(moe)}: time is scaled by {scale:g}")
    if (max(manifest.experts_per_layer), manifest.top_k) != (shape.experts, shape.top_k):
        notes.append(
            f"the trace routes top-{manifest.top_k} of {max(manifest.experts_per_layer)} experts, {shape.name} top-"
            f"{shape.top_k} of {shape.experts}: each expert has {shape.name}'s size, the routing is the trace's"
        )
    return _Model(
        expert_params=[shape.expert_params] * layers,
        dense_bytes=[sum(layer_bytes(shape, layer, attention, STATED) for layer in moe) // len(moe)] * layers,
        dense_params=sum(shape.attention_params(layer) + shape.other_params(layer) for layer in moe) // len(moe),
        head_bytes=(rest + head_bytes(shape, STATED)) * layers // len(moe),
        kv_bytes=kv_bytes_per_token(shape) // shape.layers,
        scale=scale,
        notes=tuple(notes),
    )


def model_costs(
    manifest: Manifest,
    hardware: HardwareProfile,
    shape: ModelShape | None,
    experts_format: str | None,
    attention_format: str | None,
    where: str = "copy",
    stored: str | None = None,
    compute_experts: str = "each",
    grouped: bool = False,
    low: str | None = None,
) -> Costs:
    """Costs of replaying a trace as if its model had `shape` (its own sizes when None) on `hardware`.

    Work takes the longer of its memory traffic and its arithmetic (engine.hardware.roofline).

    `where` and `compute_experts` are the plan's `miss.where` and `compute.experts`; `grouped`: kernels compute several
    experts at once, and expand quantised ones as they read them. `low` is the format of experts' low copies, if they
    have any. `stored` is the format that the trace's experts are in already, as an engine stores them: its bytes are
    what a load copies. Raises PlanError, HardwareError.
    """
    hardware = hardware.sustained()
    grouped = grouped or compute_experts == "fused"
    layers = len(manifest.experts_per_layer)
    formats = (experts_format,) if low is None else (experts_format, low)
    expert_bytes = copies_bytes(manifest, shape, formats)
    if len(expert_bytes) != layers * len(formats):
        raise PlanError("the trace does not say how large its experts are; time needs a model shape (--model-shape)")
    cpu = hardware.cpu if where != "copy" else None
    if where != "copy" and cpu is None:
        raise HardwareError(
            f'miss.where = "{where}" needs a [cpu] table, which hardware profile {hardware.name} does not have: '
            'add one or use "copy"'
        )
    model = _unshaped(manifest, expert_bytes) if shape is None else _shaped(manifest, shape, attention_format)
    sizes = list(zip(expert_bytes, model.expert_params * len(formats), strict=True))
    kernel = hardware.expert_kernel(fused=grouped)
    words = (stored or experts_format, *formats[1:])
    expanded = [expanded_bits(word, grouped=grouped) for word in words for _ in range(layers)]
    experts = [
        hardware.expert(size, params, bits, kernel, meta=meta)
        for (size, params), (bits, meta) in zip(sizes, expanded, strict=True)
    ]
    on_cpu = [Roofline(0, 0, 0, 0) if cpu is None else cpu.expert(size, params) for size, params in sizes]
    overhead, disk = hardware.overhead, hardware.disk
    counts = manifest.experts_per_layer * len(formats)
    memory = host_memory(hardware, model.scale, expert_bytes, counts, model.dense_bytes, model.head_bytes)
    chunks, chunk_ns, rest_ns = _chunked(hardware, expert_bytes)

    return Costs(
        dense_ns=each(BANDWIDTH, [hardware.compute_ns(0, size) + memory.fault_ns(size) for size in model.dense_bytes]),
        expert_ns=each(BANDWIDTH, [one.read_ns for one in experts]),
        dequant_ns=each("engine.expansions", [one.expand_ns for one in experts]),
        expert_token_ps=fitting(FLOPS, max(one.token_ps for one in experts)),
        expert_overhead_ns=kernel.per_expert_ns,
        call_ns=kernel.per_call_ns if grouped else -1,
        dense_token_ps=fitting(FLOPS, token_ps(model.dense_params, hardware.device.compute_flops_per_s)),
        context_ps=fitting(BANDWIDTH, ceil_ns(1000 * model.kv_bytes, hardware.device.memory_bandwidth_bytes_per_s)),
        copy_overhead_ns=overhead.per_copy_ns,
        lookup_ns=overhead.per_lookup_ns,
        insert_ns=overhead.per_insert_ns,
        layer_overhead_ns=overhead.per_layer_ns,
        readback_ns=overhead.gate_readback_ns,
        predict_ns=np.zeros(layers, np.int64),
        predict_token_ps=0,
        step_ns=fitting(
            BANDWIDTH,
            int(overhead.per_step_ns / model.scale)
            + hardware.compute_ns(0, model.head_bytes)
            + memory.fault_ns(model.head_bytes),
        ),
        copy_engines=hardware.link.copy_engines,
        setup_ns=hardware.link.latency_ns,
        chunks=chunks,
        chunk_ns=chunk_ns,
        rest_ns=rest_ns,
        expert_bytes=tuple(expert_bytes),
        host_bytes=memory.experts,
        read_ns=each("disk.read_bytes_per_s", [0 if disk is None else disk.read_ns(size) for size in expert_bytes]),
        lanes_ns=lanes_ns(hardware, expert_bytes),
        slowdown_percent=0 if disk is None else disk.link_slowdown_percent,
        cpu=int(cpu is not None),
        cpu_expert_ns=each("cpu.memory_bandwidth_bytes_per_s", [one.read_ns for one in on_cpu]),
        cpu_token_ps=fitting("cpu.compute_flops_per_s", max(one.token_ps for one in on_cpu)),
        cpu_overhead_ns=on_cpu[0].fixed_ns,
        scale=model.scale,
        notes=(*model.notes, *memory.notes),
        overlapped=int(grouped and compute_experts == "each"),
        cpu_beside_percent=0 if cpu is None else cpu.slowdown_percent,
        copy_beside_percent=0 if cpu is None else cpu.link_slowdown_percent,
        paced_by=(hardware.link.rate_field,),
        low=None if low is None else layers * max(manifest.experts_per_layer),
    )


def _chunked(hardware: HardwareProfile, expert_bytes: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of chunks of each layer's experts, and times on the wire of each chunk and of all from it on."""
    link = hardware.link
    chunk_bytes = link.chunk_bytes or max(*expert_bytes, 1)
    chunks = np.maximum(1, [-(-size // chunk_bytes) for size in expert_bytes])
    if chunks.max() > MOST_CHUNKS or chunks.max() * len(chunks) > MOST_CHUNKS_OF_ALL:
        raise HardwareError(
            f"link.chunk_bytes = {chunk_bytes} cuts an expert of {max(expert_bytes)} bytes into {chunks.max()} chunks: "
            f"at most {MOST_CHUNKS}, and {MOST_CHUNKS_OF_ALL} over all layers; give more, or 0 for copies in one piece"
        )
    chunk_ns = np.zeros((len(expert_bytes), chunks.max()), np.int64)
    rest_ns = np.zeros_like(chunk_ns)
    layers = np.array(expert_bytes)
    for size in set(expert_bytes):
        fitting(link.rate_field, hardware.wire_ns(size))
        # [chunks], as Python's integers: products of sizes and rates exceed 64 bits.
        rest = size - np.arange(max(1, -(-size // chunk_bytes))).astype(object) * chunk_bytes
        chunk_ns[layers == size, : len(rest)] = hardware.wire_times(np.minimum(rest, chunk_bytes))
        rest_ns[layers == size, : len(rest)] = hardware.wire_times(rest)
    return chunks, chunk_ns, rest_ns
