"""`EmulatedCuda`: what the runtime uses of `torch.cuda`, computed on the CPU, with every order of two accesses checked.

    with EmulatedCuda(LATE) as device:
        model = offload(model, plan, device="cuda")
        ...
    # RaceError, if anything that two streams or threads did to the same bytes had no order

It sees operations of torch on device tensors from any thread, operations of the host on pinned and registered memory,
and reads of files into it. What a device computes otherwise than a CPU it does not show.
"""

import gc
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor

from engine.runtime import cpu_lane, pool
from engine.runtime.experts import launching
from engine.runtime.links import cuda_link, queued_link
from engine.runtime.storage import disk_store
from tests.helpers.emulated_cuda import host, streams
from tests.helpers.emulated_cuda.memories import Memories
from tests.helpers.emulated_cuda.tensors import DeviceTensor, Dispatch, Mode

EARLY, LATE = streams.EARLY, streams.LATE
SCHEDULES = (EARLY, LATE)


class RaceError(AssertionError):
    """Accesses without an order, a line each."""


class EmulatedCuda:
    """A device while its block runs; leaving it raises RaceError if there were races.

    `schedule` says when queued work is carried out (`streams`). With `strict=False` races are only collected.
    """

    def __init__(self, schedule: str = LATE, *, strict: bool = True) -> None:
        self.streams = streams.Streams(schedule)
        self.memories = Memories(self.streams)
        self.dispatch = Dispatch(self.streams, self.memories)
        self.cudart = Cudart(self.memories)
        self.strict = strict
        self._stack = ExitStack()

    @property
    def races(self) -> list[str]:
        """What was found, each pair of operations once."""
        return list(dict.fromkeys(map(str, self.streams.ledger.races)))

    @property
    def waits(self) -> list[str]:
        """Every time that the thread which asks has waited for the device, and for what."""
        return [what for actor, what in self.streams.waits if actor is self.streams.host]

    @property
    def launches(self) -> list[str]:
        """Kernels and copies given to the computing stream so far, by name."""
        return self.streams.launches

    def label(self, tensor: Tensor, name: str, each: int = 0) -> None:
        """What the memory of a device tensor is called in messages."""
        assert isinstance(tensor, DeviceTensor)
        tensor.memory.name, tensor.memory.each = name, each

    def reads_file(self, target: Tensor) -> None:
        """The host fills a tensor past torch."""
        known = self.memories.of_host(target)
        if known is not None:
            self.streams.touch("reading a file", [(*known, True)])

    def __enter__(self) -> Self:
        made = self

        class Stream(streams.Stream):
            def __init__(self, *_: object, **__: object) -> None:
                super().__init__(made.streams, *made.streams.named_side())

        class Event(streams.Event):
            def __init__(self, *_: object, **__: object) -> None:
                super().__init__(made.streams)

        fill_pool, read_slab = pool.SlotPool.__init__, disk_store.DiskStore.read

        def labelled(self: pool.SlotPool, slots: int, slab_bytes: int, device: torch.device) -> None:
            fill_pool(self, slots, slab_bytes, device)
            if device.type == "cuda":
                made.label(self._buffer, "slot", self.bytes // max(slots, 1))

        def seen(self: disk_store.DiskStore, key: int, target: Tensor) -> None:
            made.reads_file(target)
            read_slab(self, key, target)

        cuda: dict[str, Any] = {
            "Stream": Stream,
            "Event": Event,
            "stream": self.streams.using,
            "current_stream": lambda device=None: self.streams.current,
            "synchronize": lambda device=None: self.streams.synchronize(),
            "cudart": lambda: self.cudart,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "emulated",
            "mem_get_info": lambda device=None: (1 << 34, 1 << 34),
            "_lazy_init": lambda: None,
        }
        patches: list[tuple[object, dict[str, Any]]] = [
            (torch.cuda, cuda),
            (torch, {"nonzero": nonzero}),
            (cuda_link, {"Stream": Stream, "Event": Event}),
            (queued_link, {"threading": host.threads(self.streams, self._mode)}),
            (cpu_lane, {"ThreadPoolExecutor": host.executors(self.streams, self._mode)}),
            (pool.SlotPool, {"__init__": labelled}),
            (disk_store.DiskStore, {"read": seen}),
            (launching, {"launch": self.dispatch.kernel}),
        ]
        # Garbage is collected where a test says so, not in the middle of an operation; and what is there already is not
        # looked through each time.
        gc.freeze()
        gc.disable()
        self._stack.callback(gc.enable)
        self._stack.callback(gc.unfreeze)
        for owner, names in patches:
            for name, value in names.items():
                self._stack.enter_context(patch.object(owner, name, value))
        # Parameters are replaced: the old ones cannot become of another class.
        self._stack.callback(
            torch.__future__.set_overwrite_module_params_on_conversion,
            torch.__future__.get_overwrite_module_params_on_conversion(),
        )
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        self._stack.enter_context(self._mode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.memories.active = False
        if error is None and self.strict and self.races:
            raise RaceError("\n".join(self.races))

    def _mode(self) -> Mode:
        return Mode(self.dispatch)


def nonzero(x: Tensor, *, as_tuple: bool = False, _plain: Any = torch.nonzero) -> Any:
    """Torch's own guards the device before anybody can see it, which a build without CUDA cannot."""
    if not isinstance(x, DeviceTensor):
        return _plain(x, as_tuple=as_tuple)
    return x.nonzero().unbind(1) if as_tuple else x.nonzero()


class Cudart:
    """The calls of the CUDA runtime that the engine makes. `refuses`: pinning fails, as where memory is locked."""

    def __init__(self, memories: Memories) -> None:
        self.memories = memories
        self.refuses = False

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802  # CUDA's name
        if self.refuses:
            self.memories.streams.error = "out of memory"
            return 2
        self.memories.register(address, size)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.memories.unregister(address)
        return 0
