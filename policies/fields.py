"""Typed state of a policy: what a policy class declares, and how it becomes arrays.

A policy is a class whose state is declared as class attributes::

    class Lfu(EvictionPolicy):
        count = per_expert(np.int64)

The declaration is turned into a named tuple of numpy arrays (`State`). Compiled code receives that tuple, interpreted
code an instance whose attributes are the very same arrays, so one definition serves both.
"""

import re
import sys
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tracekit.errors import PolicyError, did_you_mean

Value = int | float | bool


@dataclass(frozen=True, slots=True)
class Layout:
    """What a policy may know of the cache it decides for.

    An expert's key is `layer * experts + expert`. A group is a set of experts that share one capacity: a layer, or
    (global scope) everything. `last_use` [keys] i64 is kept by the cache for policies that name it: when each expert
    was last referenced.
    """

    layers: int
    experts: int
    groups: int
    distance: int
    size: np.ndarray
    last_use: np.ndarray

    @property
    def keys(self) -> int:
        return self.layers * self.experts


@dataclass(frozen=True, slots=True)
class Field:
    """One declared array (`extent` is experts, pairs, groups or one) or one parameter (`extent` is parameter).

    `low` and `high` are the least and the largest value of a parameter that makes sense; None is no bound.
    """

    extent: str
    dtype: Any
    fill: Value
    width: int = 1
    low: Value | None = None
    high: Value | None = None

    @property
    def range(self) -> str:
        """The values that make sense, in words; "" if any does."""
        if self.low is None:
            return "" if self.high is None else f"at most {self.high}"
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"

    def holds(self, value: Value) -> bool:
        """Whether the value is within the bounds."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def allocate(self, layout: Layout) -> np.ndarray:
        pairs = layout.keys * layout.experts
        length = {"experts": layout.keys, "pairs": pairs, "groups": layout.groups, "one": 1}[self.extent]
        return np.full(length * self.width, self.fill, self.dtype)


def per_expert(dtype: Any, fill: Value = 0, width: int = 1) -> Any:
    """An array with `width` elements per expert key, those of one expert side by side: `self.a[expert * width + i]`."""
    return Field("experts", dtype, fill, width)


def per_pair(dtype: Any, fill: Value = 0) -> Any:
    """An array with one element per expert key and expert id: `self.a[expert * self.experts + other]`."""
    return Field("pairs", dtype, fill)


def per_group(dtype: Any, fill: Value = 0, width: int = 1) -> Any:
    """An array with `width` elements per capacity group, those of one group side by side."""
    return Field("groups", dtype, fill, width)


def scalar(dtype: Any, fill: Value = 0, width: int = 1) -> Any:
    """`width` mutable numbers in an array: `self.hand[0]`."""
    return Field("one", dtype, fill, width)


def parameter(default: Value, *, low: Value | None = None, high: Value | None = None) -> Any:
    """A constant that a plan may set, bounds included: `decay = parameter(0.9, low=0, high=1)`."""
    field = Field("parameter", type(default), default, low=low, high=high)
    if not field.holds(default):
        raise PolicyError(f"a parameter's default of {default} is not {field.range}")
    return field


class Policy:
    """Base of eviction policies and prefetchers: declared state, name, and what the policy reads."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    READABLE: ClassVar[tuple[str, ...]] = ()  # what `reads` may be
    reads: ClassVar[str] = "nothing"
    bound: ClassVar[bool] = False
    State: ClassVar[Any] = None

    # In every policy's state, kept by the cache: see `Layout`.
    layers: int
    experts: int
    distance: int
    size: np.ndarray
    last_use: np.ndarray

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = ("layers", "experts", "distance", "size", "last_use", *cls.fields())
        # The type's own name must differ from every other policy's: numba builds the symbols of compiled code from it,
        # and where two kernels from disk define one symbol, the one loaded first serves both.
        state = namedtuple(re.sub(r"\W", "_", f"{cls.__module__}_{cls.__qualname__}"), names)  # type: ignore[misc]
        # numba finds the compiled code of a state by its importable name; the methods hang on the type of the state.
        state.__module__, state.__qualname__ = cls.__module__, f"{cls.__qualname__}.State"
        state.policy = cls  # type: ignore[attr-defined]
        cls.State = state

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """Declared fields by name, base classes first."""
        return {
            name: value
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, Field)
        }

    @classmethod
    def parameters(cls) -> dict[str, Value]:
        """The parameters a plan may set, with their defaults."""
        return {name: field.fill for name, field in cls.fields().items() if field.extent == "parameter"}

    @classmethod
    def ranges(cls) -> dict[str, str]:
        """The values that make sense, in words, of the parameters that have bounds."""
        return {name: field.range for name, field in cls.fields().items() if field.range}

    @classmethod
    def allocate(cls, layout: Layout, parameters: Mapping[str, Value] | None = None) -> Any:
        """A fresh state for `layout`. Raises PolicyError for a parameter that the policy does not have or allow."""
        given = dict(parameters or {})
        values: dict[str, Any] = {
            "layers": layout.layers,
            "experts": layout.experts,
            "distance": layout.distance,
            "size": layout.size,
            "last_use": layout.last_use,
        }
        for name, field in cls.fields().items():
            if field.extent == "parameter":
                values[name] = cls._checked(name, field, given.pop(name, field.fill))
            else:
                values[name] = field.allocate(layout)
        if given:
            unknown = next(iter(given))
            raise PolicyError(
                f"policy {cls.name!r} has no parameter {unknown!r}{did_you_mean(unknown, cls.parameters())}"
            )
        return cls.State(**values)

    @classmethod
    def _checked(cls, name: str, field: Field, value: Any) -> Value:
        if isinstance(value, bool) != (field.dtype is bool) or not isinstance(value, int | float):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not {field.dtype.__name__}")
        if not abs(value) < 2**62:
            raise PolicyError(f"policy {cls.name!r}: parameter {name} is not a finite number of 64 bits")
        if field.dtype is int and value != int(value):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not a whole number")
        if not field.holds(value):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not {field.range}")
        return field.dtype(value)  # type: ignore[no-any-return]

    @classmethod
    def interpreted(cls, state: Any) -> "Policy":
        """An instance that runs the policy's own Python on the arrays of `state`."""
        instance = object.__new__(cls)
        instance.__dict__.update(state._asdict())
        return instance

    @classmethod
    def file(cls) -> str | None:
        """The source file that defines the policy, if there is one."""
        return getattr(sys.modules.get(cls.__module__), "__file__", None)
