"""From a profile and a model's sizes to the simulator's costs."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from engine.hardware import Disk, ExpertKernel, HardwareProfile, Host, Lanes, load_hardware
from engine.shapes import load_shape
from engine.shapes.sizes import STATED, head_bytes, layer_bytes
from engine.simulator.costs import Costs, model_costs
from tracekit.errors import HardwareError
from tracekit.manifest import Manifest

MACHINE = load_hardware("rtx3060")
MIB = 1 << 20


def manifest(layers: int = 2, size: int = 3 * MIB) -> Manifest:
    return cast(
        Manifest,
        SimpleNamespace(
            dense_bytes=[],
            experts_per_layer=[8] * layers,
            top_k=2,
            expert_bytes=[size] * layers,
            expert_params=[size // 2] * layers,
        ),
    )


def costs(machine: HardwareProfile = MACHINE, where: str = "copy", **sizes: Any) -> Costs:
    return model_costs(manifest(**sizes), machine, None, None, None, where)


def test_what_a_profile_does_not_have_costs_nothing() -> None:
    found = costs()
    assert (found.copy_engines, found.setup_ns, found.host_bytes, found.cpu) == (1, 10_000, -1, 0)
    assert found.chunks.tolist() == [1, 1]
    assert found.copy_ns.tolist() == found.least_link_ns.tolist() == [MACHINE.copy_ns(3 * MIB)] * 2
    assert not found.dequant_ns.any()
    assert found.expert_ns.tolist() == [MACHINE.compute_ns(0, 3 * MIB)] * 2


def test_fused_experts_run_at_the_rates_of_their_own_kernel() -> None:
    """Without [fused]: at the device's, and a call takes what launching one expert takes."""
    machine = MACHINE.with_engine(replace(MACHINE.engine, overhead=replace(MACHINE.overhead, per_expert_ns=7)))
    each = costs(machine)
    assert (each.call_ns, each.expert_overhead_ns) == (-1, 7)
    fused = model_costs(manifest(), machine, None, None, None, compute_experts="fused")
    assert (fused.call_ns, fused.expert_overhead_ns) == (7, 0)
    assert fused.expert_ns.tolist() == each.expert_ns.tolist()
    slow = ExpertKernel(
        memory_bandwidth_bytes_per_s=MACHINE.device.memory_bandwidth_bytes_per_s // 2,
        compute_flops_per_s=MACHINE.device.compute_flops_per_s // 4,
        per_call_ns=50,
        per_expert_ns=3,
    )
    machine = machine.with_engine(replace(machine.engine, fused=slow))
    own = model_costs(manifest(), machine, None, None, None, compute_experts="fused")
    assert (own.call_ns, own.expert_overhead_ns) == (50, 3)
    assert own.expert_ns.tolist() == pytest.approx([2 * ns for ns in each.expert_ns.tolist()], abs=1)
    assert own.expert_token_ps == pytest.approx(4 * each.expert_token_ps, abs=4)
    by_itself = model_costs(manifest(), machine, None, None, None)
    assert by_itself.expert_token_ps == each.expert_token_ps


def test_grouped_kernels_are_that_kernel_and_read_experts_as_they_are_stored() -> None:
    shape = load_shape("mixtral-8x7b")
    each, grouped, fused = (
        model_costs(manifest(), MACHINE, shape, "hqq-2bit", None, **how)
        for how in ({}, {"grouped": True}, {"compute_experts": "fused"})
    )
    assert each.dequant_ns.all() and not grouped.dequant_ns.any()
    assert grouped.expert_ns.tolist() == [MACHINE.compute_ns(0, size) for size in grouped.expert_bytes]
    assert (grouped.expert_bytes, grouped.call_ns >= 0) == (each.expert_bytes, True)
    assert (each.overlapped, grouped.overlapped, fused.overlapped) == (0, 1, 0)
    assert fused.expert_ns.tolist() == grouped.expert_ns.tolist()


def test_chunks_cover_the_expert() -> None:
    """Of 3 MiB and a half in chunks of 1 MiB the last is half a chunk; each pays its own rounding up."""
    machine = replace(MACHINE, link=replace(MACHINE.link, chunk_bytes=MIB))
    found = costs(machine, size=7 * MIB // 2)
    assert found.chunks.tolist() == [4, 4]
    assert found.chunk_ns[0].tolist() == [MACHINE.wire_ns(size) for size in (MIB, MIB, MIB, MIB // 2)]
    assert found.rest_ns[0].tolist() == [MACHINE.wire_ns(n * MIB // 2) for n in (7, 5, 3, 1)]


def test_two_engines_can_hide_all_setup() -> None:
    machine = replace(MACHINE, link=replace(MACHINE.link, copy_engines=2))
    assert costs(machine).least_link_ns.tolist() == [MACHINE.wire_ns(3 * MIB)] * 2


def test_a_quantised_expert_is_expanded_by_a_kernel_of_its_own() -> None:
    """It reads the stored weights and writes 16-bit ones; the arithmetic reads those."""
    shape = load_shape("mixtral-8x7b")
    plain = model_costs(manifest(), MACHINE, shape, "bf16", None)
    packed = model_costs(manifest(), MACHINE, shape, "hqq-2bit", None)
    assert (packed.expert_ns == plain.expert_ns).all()
    assert packed.dequant_ns[0] == MACHINE.compute_ns(0, packed.expert_bytes[0] + plain.expert_bytes[0])
    assert not plain.dequant_ns.any()


def test_host_memory_shrinks_with_the_layers_that_are_timed() -> None:
    disk = Disk(read_bytes_per_s=10**9, latency_ns=100, host_cache_bytes=320 * MIB)
    machine = replace(MACHINE, disk=disk)
    assert costs(machine).host_bytes == 320 * MIB
    assert costs(machine).read_ns[0] == 100 + -(-3 * MIB * 10**9 // 10**9)
    # Mixtral has 32 layers, the trace 2: host memory holds a sixteenth for them.
    assert model_costs(manifest(), machine, load_shape("mixtral-8x7b"), None, None).host_bytes == 20 * MIB


def test_reads_take_what_their_number_leaves_of_the_disk() -> None:
    """Two together read 1.5 GB/s: 3 MiB take 2 * 3 MiB / 1.5 GB/s and the latency; three are between two and four."""
    lanes = [Lanes(reads=2, bytes_per_s=15 * 10**8), Lanes(reads=4, bytes_per_s=2 * 10**9)]
    disk = Disk(read_bytes_per_s=10**9, latency_ns=100, host_cache_bytes=320 * MIB, lanes=lanes)
    machine = replace(MACHINE, disk=disk)
    assert costs(machine).disk_lanes == 1, "an engine that reads one expert at a time has no use for lanes"
    found = costs(machine.with_engine(replace(machine.engine, disk_reads=9)))
    rates = (10**9, 15 * 10**8, 175 * 10**7, 2 * 10**9)
    each = [100 + -(-reads * 3 * MIB * 10**9 // rate) for reads, rate in enumerate(rates, 1)]
    assert found.lanes_ns.tolist() == [each, each] and found.read_ns.tolist() == [each[0]] * 2
    assert found.disk_lanes == 4 and costs().disk_lanes == 1


def test_experts_take_the_room_of_dense_weights_which_then_come_from_disk() -> None:
    """Of 64 GiB 2 are taken: beside 60 GiB of experts 2 are left, and what dense weights there are above comes anew."""
    shape = load_shape("mixtral-8x7b")
    disk = Disk(read_bytes_per_s=10**9, latency_ns=100, host_cache_bytes=60 << 30)
    machine = replace(MACHINE, disk=disk, host=Host(memory_bytes=64 << 30, reserved_bytes=2 << 30, holds_dense=True))
    free = model_costs(manifest(), replace(machine, host=None), shape, None, None)
    tight = model_costs(manifest(), machine, shape, None, None)
    assert free.notes == tuple(note for note in tight.notes if "host memory" not in note)
    (said,) = (note for note in tight.notes if "host memory" in note)
    assert "read from disk again at every step; give the experts' cache less" in said
    slower = (tight.dense_ns - free.dense_ns).sum() + tight.step_ns - free.step_ns
    dense = sum(layer_bytes(shape, layer, STATED, STATED) for layer in range(32)) + head_bytes(shape, STATED)
    short = (60 << 30) + dense - (62 << 30)
    assert 0 < short < dense
    assert 16 * slower == pytest.approx(short * 10**9 / 10**9, rel=1e-3), "the trace has a sixteenth of the layers"
    roomy = replace(machine, host=Host(memory_bytes=128 << 30, holds_dense=True))
    assert model_costs(manifest(), roomy, shape, None, None).dense_ns.tolist() == free.dense_ns.tolist()
    elsewhere = replace(machine, host=Host(memory_bytes=62 << 30))
    assert model_costs(manifest(), elsewhere, shape, None, None).notes == free.notes, "dense weights on the device"
    small = replace(machine, host=Host(memory_bytes=16 << 30))
    cut = model_costs(manifest(), small, shape, None, None)
    assert cut.host_bytes == 1 << 30 and "experts get 16.00 GiB" in cut.notes[-1]


def test_lasting_clocks_slow_the_device_alone() -> None:
    hot = replace(MACHINE, device=replace(MACHINE.device, sustained_percent=50))
    burst, lasting = costs(), costs(hot)
    assert lasting.expert_token_ps == pytest.approx(2 * burst.expert_token_ps, abs=2)
    assert lasting.expert_ns.tolist() == pytest.approx([2 * ns for ns in burst.expert_ns.tolist()], abs=2)
    assert lasting.rest_ns.tolist() == burst.rest_ns.tolist()


def test_the_cpu_takes_part_when_the_plan_says_so() -> None:
    assert MACHINE.cpu is not None
    found = costs(where="auto")
    assert found.cpu == 1
    assert found.cpu_expert_ns.tolist() == [MACHINE.cpu.expert(3 * MIB, 1).read_ns] * 2
    assert found.cpu_overhead_ns == MACHINE.cpu.per_expert_ns + MACHINE.cpu.transfer_ns
    assert found.cpu_token_ps > found.expert_token_ps
    with pytest.raises(HardwareError, match=r"needs a \[cpu\] table") as caught:
        costs(replace(MACHINE, cpu=None), where="host")
    assert "\n" not in str(caught.value)
