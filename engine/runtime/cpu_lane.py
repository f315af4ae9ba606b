"""`CpuLane`: the host's processor computes a missing expert where that ends sooner than copying it.

Fiddler (Kamahori et al. 2024, arXiv 2402.07033). Decisions about the cache do not change: an expert that the cache
keeps is copied all the same, without a wait for it; one that would only bypass is not copied.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from time import perf_counter_ns

import torch
from torch import Tensor

from engine.hardware import HardwareProfile
from engine.runtime.experts.eager import expert_forward
from engine.runtime.links.queued_link import TIMEOUT_S
from engine.runtime.storage.slab_layout import QuantisedLayout
from engine.runtime.storage.store import Store
from policies.events import LOAD
from tracekit.errors import ModelError, PlanError
from tracekit.recorder.seam import MoeLayer


@dataclass(frozen=True, slots=True)
class Missing:
    """A demanded expert that is not on the device: its key, LOAD or BYPASS, and how many tokens chose it."""

    key: int
    kind: int
    tokens: int


class CpuLane:
    """One thread that computes experts where they lie, on the host.

    `hardware` is a profile that `check_lane` has let pass. `computed` counts the experts that the lane computed.
    """

    def __init__(
        self,
        hardware: HardwareProfile,
        layers: Sequence[MoeLayer],
        store: Store,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        assert hardware.cpu is not None
        self.hardware, self.cpu, self.store = hardware.sustained(), hardware.cpu, store
        self._forward = [expert_forward(layer.experts, "cpu") for layer in layers]
        self.timeout_s = timeout_s
        self.computed = 0
        self._params = [layer.expert_params for layer in layers]
        self._experts = store.experts
        self._free_at = 0  # when what has been given to the lane should be done, by the host's clock
        self._jobs: dict[int, Future[Tensor]] = {}
        # As many threads as the caller computes with: kernels that split work otherwise round otherwise.
        self._thread = ThreadPoolExecutor(1, "cpu-experts", torch.set_num_threads, (torch.get_num_threads(),))

    def choose(self, layer: int, resident: Sequence[int], backlog: int, missing: Sequence[Missing]) -> list[int]:
        """Keys of the missing experts that the lane should compute, by the rule of the simulator's lane.

        `resident` says how many tokens chose each expert that needs no copy, `backlog` how many bytes the link has
        to copy first. An expert is the lane's if that ends strictly sooner than its copy and the device.
        """
        now, layout, params = perf_counter_ns(), self.store.layouts[layer], self._params[layer]
        stored = layout.format if isinstance(layout, QuantisedLayout) else None
        bits, meta = (None, False) if stored is None else (stored.bits, stored.meta_group > 0)
        device_roofline = self.hardware.expert(layout.bytes, params, bits, meta=meta)
        cpu_roofline = self.cpu.expert(layout.bytes, params)
        device = now + sum(device_roofline.ns(tokens) for tokens in resident)
        link, cpu = now + self.hardware.wire_ns(backlog), max(now, self._free_at)
        chosen = []
        for expert in missing:
            arrival = link + self.hardware.copy_ns(layout.bytes)
            on_device = max(device, arrival) + device_roofline.ns(expert.tokens)
            on_cpu = cpu + cpu_roofline.ns(expert.tokens)
            if on_cpu < on_device:
                chosen.append(expert.key)
                cpu = on_cpu
                link = arrival if expert.kind == LOAD else link
            else:
                link, device = arrival, on_device
        self._free_at = cpu
        return chosen

    def submit(self, key: int, rows: Tensor) -> None:
        """Have an expert computed on rows [n, hidden], on the host."""
        self._jobs[key] = self._thread.submit(self._compute, key, rows)

    def has(self, key: int) -> bool:
        """Whether the expert was submitted and its result not yet taken."""
        return key in self._jobs

    def result(self, key: int, device: torch.device) -> Tensor:
        """What an expert made of its rows, on the device.

        Raises what computing raised, ModelError if the expert cannot be read or the lane hangs.
        """
        try:
            return self._jobs.pop(key).result(self.timeout_s).to(device)
        except FutureTimeout:
            raise ModelError(f"the CPU lane hangs: an expert has not been computed for {self.timeout_s:g} s") from None
        except OSError as error:  # slabs on disk
            raise ModelError(f"the CPU lane cannot read an expert: {error}") from error

    def forget(self) -> None:
        """Give up what has not begun; wait for what has, but not for what hangs."""
        running = [job for job in self._jobs.values() if not job.cancel()]
        wait(running, self.timeout_s)
        self._jobs.clear()
        self._free_at = 0
        self.computed = 0

    def close(self) -> None:
        """End the thread, as soon as it has done what it is at."""
        self.forget()
        self._thread.shutdown(wait=False)

    def _compute(self, key: int, rows: Tensor) -> Tensor:
        with torch.inference_mode():
            layer = key // self._experts
            out = self._forward[layer](self.store.layouts[layer].weights(self.store.views(key)), rows)
            self.computed += 1
            return out


def check_lane(hardware: HardwareProfile | None) -> HardwareProfile:
    """The profile, if it says how fast the host computes. Raises PlanError."""
    if hardware is not None and hardware.cpu is not None:
        return hardware
    lack = "no hardware profile is given" if hardware is None else f"profile {hardware.name!r} has no [cpu] table"
    raise PlanError(
        f'compute.cpu_experts = "auto" weighs copying an expert against computing it on the CPU, but {lack}: '
        "give --hardware with a profile that has one, such as tracekit calibrate makes"
    )
