"""The shapes of what operations return, known before they run: asked of torch's meta device, once for each case."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor without values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> "Shape":
        return cls(tuple(x.size()), x.stride(), x.dtype)

    def empty(self, device: str = "cpu") -> Tensor:
        with _disable_current_modes():
            return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)


class Shapes:
    """Shapes by operation and operands."""

    def __init__(self) -> None:
        self._known: dict[object, Any] = {}

    def of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation returns, a `Shape` for each tensor; None where this depends on values or is one."""
        args, kwargs = mapped(_shape, args), mapped(_shape, kwargs)
        key = (func, _hashable(args), _hashable(kwargs))
        if key not in self._known:
            self._known[key] = self._ask(func, args, kwargs)
        return self._known[key]

    def _ask(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = mapped(_meta, args), mapped(_meta, kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = "meta"
        try:
            with torch.inference_mode(), _disable_current_modes():
                found = mapped(_shape, func(*args, **kwargs))
        except (RuntimeError, NotImplementedError):
            return None
        return found if any(isinstance(x, Shape) for x in leaves(found)) else None


@cache
def known_shapes() -> Shapes:
    """The same for all devices: shapes are facts."""
    return Shapes()


def leaves(x: Any) -> Iterator[Any]:
    """What the lists, tuples and dictionaries of an operation's operands hold."""
    if isinstance(x, (list, tuple)):
        for one in x:
            yield from leaves(one)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))
    else:
        yield x


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """The same lists, tuples and dictionaries of other leaves."""
    if isinstance(x, (list, tuple)):
        found = [mapped(function, one) for one in x]
        return found if isinstance(x, list) else tuple(found)
    if isinstance(x, dict):
        return {name: mapped(function, one) for name, one in x.items()}
    return function(x)


def _shape(x: Any) -> Any:
    return Shape.of(x) if isinstance(x, Tensor) else x


def _meta(x: Any) -> Any:
    return x.empty("meta") if isinstance(x, Shape) else x


def _hashable(x: Any) -> Any:
    """A key: True, 1 and 1.0 are equal and yet other operands."""
    if isinstance(x, (list, tuple)):
        return tuple(map(_hashable, x))
    if isinstance(x, dict):
        return tuple((name, _hashable(one)) for name, one in x.items())
    return type(x), x
