"""`TieredStore`: experts in two formats, each copy a slab of its own in host memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.runtime.storage.host_store import HostStore
from engine.runtime.storage.origin import Origin
from engine.runtime.storage.slab_layout import Layout, expert_parameters
from engine.runtime.storage.store import Store
from tracekit.recorder.seam import MoeLayer


class TieredStore(Store):
    """Both copies of every expert. `layouts` are those of the high copies' layers, then those of the low ones'.

    Each copy is made from the weights as they are loaded, the low one not from the high. While the low copies are made,
    a model that is loaded whole keeps its own; what is read shard by shard is read twice. Raises as `HostStore`.
    """

    def __init__(
        self, layers: Sequence[MoeLayer], formats: Sequence[str | None], device: torch.device, origin: Origin
    ) -> None:
        high, low = formats
        self._low = HostStore(layers, low, device=device, origin=_Kept(origin))
        self._high = HostStore(layers, high, device=device, origin=origin)
        self.experts = self._high.experts
        self.layouts = self._high.layouts + self._low.layouts
        self.bytes = self._high.bytes + self._low.bytes
        self._first_low = len(layers) * self.experts

    def slab(self, key: int, size: int | None = None) -> Tensor:
        if key < self._first_low:
            return self._high.slab(key, size)
        return self._low.slab(key - self._first_low, size)

    def views(self, key: int) -> dict[str, Tensor]:
        return self.layout(key).views(self.slab(key))

    def close(self) -> None:
        self._high.close()
        self._low.close()


class _Kept:
    """An origin after which a model's own experts are still there, for another to fill other slabs from them."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def accumulate(self, layer: MoeLayer) -> str:
        return self._origin.accumulate(layer)

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        before = expert_parameters(layer.experts)
        self._origin.fill(layer, layout, slabs, device)
        for name, parameter in before.items():
            setattr(layer.experts, name, parameter)
