"""`HostStore`: the experts of a model in host memory, each a slab of bytes, so that a load is one copy."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType

import torch
from torch import Tensor

from engine.plan.weights import WeightFormat
from engine.runtime.storage.origin import LoadedExperts, Origin
from engine.runtime.storage.quantise import quantizer_of_hqq
from engine.runtime.storage.slab_layout import aligned, expert_parameters, layout_of
from engine.runtime.storage.store import Store
from tracekit.errors import HardwareError, ModelError, PlanError
from tracekit.recorder.seam import MoeLayer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HostStore(Store):
    """A store in one host buffer.

    `origin` fills it layer by layer, by default out of the model, quantised on the way if `weights` says so, and holds
    nothing twice. `device` is where quantising is done; if it is a CUDA device, the buffer is locked in memory, so that
    the device copies from it without the host. Raises PlanError for a weight format that the engine cannot serve,
    ModelError for a model without weights, HardwareError when the host's memory is too small or cannot be locked; then
    the model still has its experts.
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        weights: str | None = None,
        *,
        device: torch.device | None = None,
        origin: Origin | None = None,
    ) -> None:
        if origin is None:
            origin = LoadedExperts()
            for layer in layers:
                check_storable(layer, weights)
        self.experts = max(layer.num_experts for layer in layers)
        self.layouts = [layout_of(layer.experts, weights) for layer in layers]
        sizes = [layer.num_experts * aligned(layout.bytes) for layer, layout in zip(layers, self.layouts, strict=True)]
        self._start = [sum(sizes[:index]) for index in range(len(sizes))]
        self.bytes = sum(sizes)
        try:
            self._buffer = torch.empty(self.bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise HardwareError(f"the host cannot hold {self.bytes} bytes of experts: {error}") from error
        self._slabs: dict[int, Tensor] = {}
        self._unpin: Callable[[], object] = lambda: None
        if device is not None and device.type == "cuda":
            self._pin(device)
        for layer, layout, start, size in zip(layers, self.layouts, self._start, sizes, strict=True):
            slabs = self._buffer[start : start + size].view(layer.num_experts, aligned(layout.bytes))
            origin.fill(layer, layout, slabs[:, : layout.bytes], device)

    def slab(self, key: int, size: int | None = None) -> Tensor:
        """The bytes of an expert, u8 [bytes]: the same tensor each time. Or the first `size` of them."""
        whole = self._slabs.get(key)
        if whole is None:
            layer, expert = divmod(key, self.experts)
            start = self._start[layer] + expert * aligned(self.layouts[layer].bytes)
            whole = self._slabs[key] = self._buffer[start : start + self.layouts[layer].bytes]
        return whole if size is None else whole[:size]

    def views(self, key: int) -> dict[str, Tensor]:
        return self.layout(key).views(self.slab(key))

    def close(self) -> None:
        """Unlock the buffer. Its memory is free when the last view is gone."""
        self._unpin()

    def _pin(self, device: torch.device) -> None:
        # In place: torch's own pinned memory would be a second buffer, rounded up to a power of two.
        cuda, address = torch.cuda.cudart(), self._buffer.data_ptr()  # type: ignore[no-untyped-call]
        result = int(cuda.cudaHostRegister(address, self.bytes, 0))
        if result != 0:
            # CUDA keeps the error and has the next launch report it, whoever's that is: so here, to nobody.
            with suppress(RuntimeError):
                torch.ones(1, device=device)
            raise HardwareError(
                f"{self.bytes} bytes of host memory cannot be pinned (CUDA error {result}): "
                "free memory or raise `ulimit -l`"
            )
        self._unpin = unpin = weakref.finalize(self._buffer, _unregister, cuda, address, device)
        unpin.atexit = False


def _unregister(cuda: ModuleType, address: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # a copy may be on its way that nobody waits for any more
    cuda.cudaHostUnregister(address)


def check_storable(layer: MoeLayer, weights: str | None, *, loaded: bool = True) -> None:
    """Raise PlanError for experts in a format that the engine cannot serve, ModelError where there are none.

    Not `loaded`: their weights are elsewhere, and parameters need only shapes.
    """
    parameters = expert_parameters(layer.experts)
    if not parameters:
        raise ModelError(f"{layer.name} has no parameters with one entry per expert: already offloaded?")
    for name, parameter in parameters.items():
        if parameter.is_meta and loaded:
            raise ModelError(f"{layer.name}.{name} has no weights (meta device): load the model before offloading it")
        if parameter.dtype not in _DTYPES.values():
            raise PlanError(
                f"{layer.name}.{name} is {parameter.dtype}: not yet supported by the engine, load it in bf16"
            )
        if weights is not None and parameter.dtype is not stored_dtype(weights, parameter.dtype):
            raise PlanError(
                f"the plan stores experts in {weights} but {layer.name}.{name} is {parameter.dtype}: load it so"
            )
    layout_of(layer.experts, weights)  # refuses shapes that the format cannot store


def stored_dtype(weights: str, loaded: torch.dtype) -> torch.dtype:
    """The type a model must be loaded in for a weight format: any for a quantised one, which needs hqq."""
    parsed = WeightFormat.parse(weights).served()
    if parsed.quantised:
        quantizer_of_hqq()
        return loaded
    return _DTYPES[parsed.name]
