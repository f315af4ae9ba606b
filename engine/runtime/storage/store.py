"""`Store`: the experts of a model wherever they lie, as the engine asks for them: in memory, in files."""

from typing import Protocol

from torch import Tensor

from engine.runtime.links.queued_link import Source
from engine.runtime.storage.slab_layout import Layout


class Store(Protocol):
    """The experts of all MoE layers, each a slab of bytes; `key` is layer * experts + expert, as in the cache.

    `layouts` has the layout of each layer's slabs, `experts` is the most that a layer has, `bytes` what all slabs take.
    """

    layouts: list[Layout]
    experts: int
    bytes: int

    @property
    def slab_bytes(self) -> int:
        """Bytes of the largest slab."""
        return max(layout.bytes for layout in self.layouts)

    def layout(self, key: int) -> Layout:
        """How the slab of an expert is laid out."""
        return self.layouts[key // self.experts]

    def slab(self, key: int, size: int | None = None) -> Source:
        """What a link copies: the slab of an expert, or its first `size` bytes."""

    def views(self, key: int) -> dict[str, Tensor]:
        """The stored tensors of an expert by name, in host memory. OSError where a file cannot be read."""

    def close(self) -> None:
        """Give back what is held. A second call does nothing."""
