"""`DeviceTensor`: a tensor of device cuda:0 whose bytes lie on the host, and the dispatch of operations on it.

As on a device, an operation is queued and its result has a shape at once and bytes later; what must be known at once
makes the host wait. Operands on two devices are an error, but for copies and numbers.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.helpers.emulated_cuda.clocks import Memory
from tests.helpers.emulated_cuda.memories import Memories, extent
from tests.helpers.emulated_cuda.shapes import Shape, known_shapes, leaves, mapped
from tests.helpers.emulated_cuda.streams import Stream, Streams, Touched

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
ALLOCATE = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default}
INSTEAD = {aten.mm.dtype: lambda one, other, dtype: aten.mm.default(one.to(dtype), other.to(dtype))}
"""Of operations that a CPU lacks"""
INDEX_PUT = {aten.index_put_.default, aten.index_put.default}  # of places that a mask chooses


class DeviceTensor(Tensor):
    """`inner` holds the bytes, once what is queued is done; tensors that share them share `memory`."""

    inner: Tensor
    memory: Memory
    dispatch: "Dispatch"

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory, dispatch: "Dispatch") -> "DeviceTensor":
        with torch.inference_mode(False):  # a view of it cannot be made of one that is for inference
            made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
            )
        made.inner, made.memory, made.dispatch = inner, memory, dispatch
        return made

    def __init__(self, *_: object) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({list(self.shape)}, {self.dtype})"

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.dispatch.memories.used_by(self.memory, stream)

    # Torch's own of these guard the device, which a build without CUDA cannot.

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:  # type: ignore[override]
        return self if self.inner.is_contiguous() else self.clone(memory_format=memory_format)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        return self.dispatch(aten.copy_.default, (self, source, non_blocking), {})  # type: ignore[no-any-return]

    def item(self) -> Any:
        return aten._local_scalar_dense.default(self)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def nonzero(self) -> Tensor:  # type: ignore[override]
        return aten.nonzero.default(self)  # type: ignore[no-any-return]

    def __invert__(self) -> Tensor:
        return aten.bitwise_not.default(self)  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __getitem__(self, index: Any) -> Tensor:  # type: ignore[override]
        view, chosen = _sliced(self, index)
        return aten.index.Tensor(view, chosen) if chosen else view  # type: ignore[no-any-return]

    def __setitem__(self, index: Any, value: Any) -> None:  # type: ignore[override]
        view, chosen = _sliced(self, index)
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        if chosen:
            aten.index_put_.default(view, chosen, value)
        else:
            view.copy_(value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = next(x for x in leaves((args, kwargs)) if isinstance(x, DeviceTensor))
        return found.dispatch(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Sees operations that make device tensors, and those of the host on memory that the device may use."""

    def __init__(self, dispatch: "Dispatch") -> None:
        super().__init__()
        self.dispatch = dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, args, kwargs or {})


class Dispatch:
    """What one operation does."""

    def __init__(self, streams: Streams, memories: Memories) -> None:
        self.streams, self.memories, self.shapes = streams, memories, known_shapes()

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten.to.device:
            return self(aten._to_copy.default, args[:1], {"device": args[1], "dtype": args[2]})
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, DeviceTensor)]
        asked = kwargs.get("device")
        made = asked is not None and torch.device(asked).type == "cuda"
        if not there and not made:
            return self._on_host(func, args, kwargs, tensors)
        if func is aten._to_copy.default and made != bool(there) and asked is not None:
            return self._convert(args[0], **kwargs)
        if func is aten.copy_.default and len(there) == 1:
            return self._copy(*args, **kwargs)
        aliases = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if aliases and _composed(func):  # whether it copies depends on its operands
            with Mode(self):
                return func.decompose(*mapped(_numbered, args), **mapped(_numbered, kwargs))
        strangers = [x for x in tensors if not isinstance(x, DeviceTensor) and x.dim() > 0]
        if strangers:
            raise AssertionError(f"{func} mixes devices: {[(str(x.device), list(x.shape)) for x in tensors]}")
        return self._on_device(func, args, kwargs, aliases)

    def kernel(self, kernel: Any, grid: Any, arguments: Any, touched: Any) -> None:
        """A kernel of Triton's, which its interpreter carries out. Of a tensor it touches what it says it does."""
        inner = {name: _inner(x) for name, x in arguments.items()}
        reads, writes = touched()

        def work() -> None:
            with torch.inference_mode(), _disable_current_modes():
                kernel[grid](**inner)

        if not any(isinstance(x, DeviceTensor) for x in arguments.values()):
            work()  # on the host
            return
        self.streams.launch(f"kernel {kernel.fn.__name__}", self._touched((*reads, *writes), writes), work)

    def _on_host(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        if kwargs.get("pin_memory"):
            return self.memories.pin(func(*args, **(kwargs | {"pin_memory": False})))
        if not getattr(self.streams.inside, "running", False):
            touched = self._touched(tensors, _written(func, args, kwargs))
            if touched:
                self.streams.touch(_name(func), touched)
        return func(*args, **kwargs)

    def _on_device(self, func: Any, args: Any, kwargs: Any, aliases: bool) -> Any:
        inner_args, inner_kwargs = mapped(_inner, args), mapped(_inner, kwargs)
        for key, value in (("device", CPU), ("pin_memory", False)):
            if kwargs.get(key) is not None:
                inner_kwargs[key] = value
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, DeviceTensor)]

        def work() -> Any:
            with torch.inference_mode(), _disable_current_modes():
                return INSTEAD.get(func, func)(*inner_args, **inner_kwargs)

        if func in ALLOCATE:
            return self._new(work())
        written = _written(func, args, kwargs)
        if aliases:
            with _disable_current_modes():
                views = func(*inner_args, **inner_kwargs)
            return mapped(lambda x: DeviceTensor(x, tensors[0].memory, self) if isinstance(x, Tensor) else x, views)
        touched, what = self._touched(tensors, written), _name(func)
        if written:
            if func in INDEX_PUT and any(x is not None and x.dtype is torch.bool for x in args[1]):
                self.streams.wait(what)
            self.streams.launch(what, touched, work)
            return written[0] if len(func._schema.returns) == 1 else (tuple(written) or None)
        shapes = self.shapes.of(func, inner_args, inner_kwargs)
        if shapes is None:  # they depend on values, or what is asked for is one
            self.streams.launch(what, touched, None)
            self.streams.wait(what)
            return mapped(lambda x: self._new(x) if isinstance(x, Tensor) else x, work())
        out = mapped(lambda x: self._new(x.empty()) if isinstance(x, Shape) else x, shapes)
        made = [x for x in leaves(out) if isinstance(x, DeviceTensor)]
        targets = [x.inner for x in made]

        def fill() -> None:
            values = [x for x in leaves(work()) if isinstance(x, Tensor)]
            with torch.inference_mode(), _disable_current_modes():
                for target, value in zip(targets, values, strict=True):
                    target.copy_(value)

        self.streams.launch(what, touched + self._touched(made, made), fill)
        return out

    def _convert(self, source: Tensor, **kwargs: Any) -> Tensor:
        """`_to_copy` between host and device."""
        kept = {key: value for key, value in kwargs.items() if key in ("dtype", "memory_format")}
        shape = self.shapes.of(aten._to_copy.default, (_inner(source),), kept)
        assert isinstance(shape, Shape)
        asynchronous = bool(kwargs.get("non_blocking"))
        if not isinstance(source, DeviceTensor):
            return self._copy(self._new(shape.empty()), source, asynchronous)
        target = shape.empty()
        return self._copy(self.memories.pin(target) if asynchronous else target, source, asynchronous)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`copy_` between host and device: the host waits, unless it is told not to and its memory is pinned."""
        to_device, host = isinstance(target, DeviceTensor), source if isinstance(target, DeviceTensor) else target
        what = f"copy to the {'device' if to_device else 'host'}"
        into, out_of = _inner(target), _inner(source)

        def work() -> None:
            with torch.inference_mode(), _disable_current_modes():
                into.copy_(out_of)

        self.streams.launch(what, self._touched((target, source), (target,)), work)
        if target.numel() and not (non_blocking and self.memories.of_host(host)):
            self.streams.wait(what)
        return target

    def _new(self, inner: Tensor) -> DeviceTensor:
        return DeviceTensor(inner, self.memories.allocate(inner), self)

    def _touched(self, tensors: Sequence[Tensor], written: Sequence[Tensor]) -> Touched:
        found: Touched = []
        for x in tensors:
            write = any(x is one for one in written)
            if isinstance(x, DeviceTensor):
                found.append((x.memory, *extent(x.inner), write))
            elif (known := self.memories.of_host(x)) is not None:
                found.append((*known, write))
        return found


def _numbered(x: Any) -> Any:
    """`cuda` as `cuda:0`: which device is the current one, a build without CUDA cannot say."""
    return DEVICE if isinstance(x, torch.device) and x.type == "cuda" else x


def _sliced(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """The view that numbers, slices, None and ... of an index make, and its tensors by dimension of that view."""
    index = index if isinstance(index, tuple) else (index,)
    named = sum(one is not None and one is not Ellipsis for one in index)
    chosen: list[Tensor | None] = []
    dim = 0
    for one in index:
        if one is Ellipsis:
            dim += x.dim() - dim - (named - sum(o is not None and o is not Ellipsis for o in index[: index.index(one)]))
        elif one is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(one, Tensor):
            chosen += [None] * (dim - len(chosen)) + [one]
            dim += max(one.dim(), 1) if one.dtype is torch.bool else 1
        elif isinstance(one, slice):
            start, stop, step = one.indices(x.shape[dim])
            x, dim = aten.slice.Tensor(x, dim, start, max(stop, start), step), dim + 1
        else:
            x = x.select(dim, int(one))
    return x, chosen


def _inner(x: Any) -> Any:
    """What an operation computes with on the host; a number is read when the operation is launched."""
    if isinstance(x, DeviceTensor):
        return x.inner
    return x.clone() if isinstance(x, Tensor) and x.dim() == 0 else x


@cache
def _composed(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


@cache
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = enumerate(func._schema.arguments)
    return tuple((i, one.name) for i, one in arguments if one.alias_info is not None and one.alias_info.is_write)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found = [args[i] if i < len(args) else kwargs.get(name) for i, name in _writes(func)]
    return [x for x in leaves(found) if isinstance(x, Tensor)]


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")
