"""`CpuLane`: the host's processor computes missing experts where they lie, those that the decisions give to it.

As Fiddler does (Kamahori et al. 2024, arXiv 2402.07033). Which ones is decided without a clock (policies.misses).
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout

import torch
from torch import Tensor

from engine.runtime.experts.eager import expert_forward
from engine.runtime.links.queued_link import TIMEOUT_S
from engine.runtime.storage.store import Store
from tracekit.errors import ModelError
from tracekit.recorder.seam import MoeLayer


class CpuLane:
    """One thread that computes experts where they lie, on the host, in the order in which they are handed over.

    `computed` counts the experts that the lane computed.
    """

    def __init__(self, layers: Sequence[MoeLayer], store: Store, *, timeout_s: float = TIMEOUT_S) -> None:
        self.store = store
        self._forward = [expert_forward(layer.experts, "cpu") for layer in layers]
        self.timeout_s = timeout_s
        self.computed = 0
        self._experts = store.experts
        self._jobs: dict[int, Future[Tensor]] = {}
        # As many threads as the caller computes with: kernels that split work otherwise round otherwise.
        self._thread = ThreadPoolExecutor(1, "cpu-experts", torch.set_num_threads, (torch.get_num_threads(),))

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
