"""`SlotPool`: the device memory that holds experts, cut into slots of one slab each."""

import torch
from torch import Tensor

from engine.runtime.storage.slab_layout import SLOT_ALIGNMENT, Layout, aligned
from tracekit.errors import HardwareError


class SlotPool:
    """`slots` slots of `slab_bytes` bytes in one device buffer. HardwareError when they do not fit.

    Slots begin on boundaries of `SLOT_ALIGNMENT` bytes, `stride` bytes apart; `bytes` is what all of them take.
    """

    def __init__(self, slots: int, slab_bytes: int, device: torch.device) -> None:
        self.slots, self.slab_bytes, self.device = slots, slab_bytes, device
        self.stride = stride = aligned(slab_bytes, SLOT_ALIGNMENT)
        self.bytes = slots * stride
        try:
            self._buffer = torch.empty(slots, stride, dtype=torch.uint8, device=device)
        except (RuntimeError, MemoryError) as error:
            raise HardwareError(
                f"{device} cannot hold {slots} slots of {slab_bytes} bytes: give the cache less capacity ({error})"
            ) from error
        self._slabs: dict[tuple[int, int], Tensor] = {}  # by slot and bytes
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}  # by slot and id of the layout
        self._layouts: dict[int, Layout] = {}  # those whose ids are in use

    @property
    def all(self) -> Tensor:
        """All slots, u8 [bytes]."""
        return self._buffer.view(-1)

    def slab(self, slot: int, size: int) -> Tensor:
        """The first `size` bytes of a slot, u8 [size]: the same tensor each time."""
        found = self._slabs.get((slot, size))
        if found is None:
            found = self._slabs[slot, size] = self._buffer[slot, :size]
        return found

    def views(self, slot: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors of the expert in `slot`, as it is stored: the same tensors for every expert of this layout."""
        # By identity: a layout's hash goes through all of its fields, at each expert of each token.
        key = (slot, id(layout))
        found = self._views.get(key)
        if found is None:
            self._layouts[id(layout)] = layout
            found = self._views[key] = layout.views(self._buffer[slot, : layout.bytes])
        return found


class TieredPool:
    """Slots of two sizes: the first `high` ones for high copies, those that follow for low ones. As a `SlotPool`."""

    def __init__(self, high: SlotPool, low: SlotPool) -> None:
        self._high, self._low, self.device = high, low, high.device
        self.slots, self.bytes = high.slots + low.slots, high.bytes + low.bytes

    def slab(self, slot: int, size: int) -> Tensor:
        """The first `size` bytes of a slot, u8 [size]."""
        return self._high.slab(slot, size) if slot < self._high.slots else self._low.slab(slot - self._high.slots, size)

    def views(self, slot: int, layout: Layout) -> dict[str, Tensor]:
        """The tensors of the copy in `slot`, as it is stored."""
        if slot < self._high.slots:
            return self._high.views(slot, layout)
        return self._low.views(slot - self._high.slots, layout)


Pool = SlotPool | TieredPool
