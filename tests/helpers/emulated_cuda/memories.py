"""What memory there is: allocated on the device, pinned or registered on the host, and what may become of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.helpers.emulated_cuda.clocks import Memory
from tests.helpers.emulated_cuda.streams import Stream, Streams


class DeviceMemory(Memory):
    """What one allocation on the device holds.

    Torch's allocator hands memory that is no longer referred to out again at once, for the stream it was allocated on;
    other streams' uses are waited for only where `record_stream` has told of them.
    """

    def __init__(self, name: str, stream: Stream, freed: Callable[["DeviceMemory"], None]) -> None:
        super().__init__(name)
        self.stream, self.recorded = stream, set[int]()
        self._freed = freed

    def __del__(self) -> None:
        self._freed(self)


class HostMemory(Memory):
    """Host memory that the device may copy from and to by itself: `size` bytes at `base`."""

    def __init__(self, name: str, base: int, size: int) -> None:
        super().__init__(name)
        self.base, self.size = base, size


class Memories:
    """All memory that is watched. `registrations` counts those of host memory that still stand."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.active = True
        self._host: list[HostMemory] = []
        self._registered: dict[int, HostMemory] = {}
        self._kept: list[Tensor] = []  # so that no other memory gets their addresses

    @property
    def registrations(self) -> int:
        return len(self._registered)

    def allocate(self, inner: Tensor) -> DeviceMemory:
        name = f"device memory of {list(inner.shape)} {str(inner.dtype).removeprefix('torch.')}"
        return DeviceMemory(name, self.streams.current, self._free)

    def used_by(self, memory: Memory, stream: Stream) -> None:
        """What `record_stream` says."""
        assert isinstance(memory, DeviceMemory)
        memory.recorded.add(stream.number)

    def pin(self, tensor: Tensor) -> Tensor:
        """Pinned by torch, whose allocator waits for every copy from and to it before it hands it out again."""
        self._kept.append(tensor)
        self._host.append(HostMemory(f"pinned buffer {len(self._kept)}", tensor.data_ptr(), tensor.nbytes))
        return tensor

    def register(self, address: int, size: int) -> None:
        """What `cudaHostRegister` does to memory of the host's own."""
        self._registered[address] = HostMemory("registered host memory", address, size)
        self._host.append(self._registered[address])

    def unregister(self, address: int) -> None:
        memory = self._registered.pop(address)
        self._host.remove(memory)
        with self.streams.lock:
            host = self.streams.host
            self.streams.ledger.end(memory, "cudaHostUnregister", host, host.clock)

    def of_host(self, tensor: Tensor) -> tuple[HostMemory, int, int] | None:
        """Which watched memory a host tensor lies in, and its bytes there."""
        if self._host and tensor.device.type == "cpu" and tensor.layout is torch.strided:
            address = tensor.data_ptr()
            for memory in self._host:
                if memory.base <= address < memory.base + memory.size:
                    low = address - memory.base
                    return memory, low, low + _reach(tensor)
        return None

    def _free(self, memory: DeviceMemory) -> None:
        if not self.active:
            return
        with self.streams.lock:
            host = self.streams.host
            clock = dict(host.clock)
            for actor, at in memory.stream.clock.items():
                clock[actor] = max(at, clock.get(actor, 0))
            self.streams.ledger.end(memory, "the allocator's reuse after it was freed", host, clock, memory.recorded)


def extent(inner: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor spans."""
    low = inner.storage_offset() * inner.itemsize
    return low, low + _reach(inner)


def _reach(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize
