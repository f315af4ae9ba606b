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
from typing import ClassVar, Protocol, Self, TypeVar, cast, overload

import numpy as np

from tracekit.errors import PolicyError, did_you_mean

Value = int | float | bool
Number = TypeVar("Number", int, float)
Default = TypeVar("Default", bool, int, float)
Whole = type[np.integer]
Real = type[np.floating]


class Numbers(Protocol[Number]):
    """An array as policies see it: plain numbers, one by one, or a part of it. (numpy does not type its elements.)"""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> Number: ...
    @overload
    def __getitem__(self, index: slice, /) -> "Numbers[Number]": ...
    def __setitem__(self, index: int | slice, value: Number | np.number, /) -> None: ...


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
    dtype: type[np.number] | type[Value]
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


# What is declared is a Field; a policy at work has the array, or the number, in its place.


@overload
def per_expert(dtype: Whole, fill: Value = 0, width: int = 1) -> Numbers[int]: ...
@overload
def per_expert(dtype: Real, fill: Value = 0, width: int = 1) -> Numbers[float]: ...
def per_expert(dtype: Whole | Real, fill: Value = 0, width: int = 1) -> Numbers[int] | Numbers[float]:
    """An array with `width` elements per expert key, those of one expert side by side: `self.a[expert * width + i]`."""
    return cast(Numbers[int], Field("experts", dtype, fill, width))


@overload
def per_pair(dtype: Whole, fill: Value = 0) -> Numbers[int]: ...
@overload
def per_pair(dtype: Real, fill: Value = 0) -> Numbers[float]: ...
def per_pair(dtype: Whole | Real, fill: Value = 0) -> Numbers[int] | Numbers[float]:
    """An array with one element per expert key and expert id: `self.a[expert * self.experts + other]`."""
    return cast(Numbers[int], Field("pairs", dtype, fill, 1))


@overload
def per_group(dtype: Whole, fill: Value = 0, width: int = 1) -> Numbers[int]: ...
@overload
def per_group(dtype: Real, fill: Value = 0, width: int = 1) -> Numbers[float]: ...
def per_group(dtype: Whole | Real, fill: Value = 0, width: int = 1) -> Numbers[int] | Numbers[float]:
    """An array with `width` elements per capacity group, those of one group side by side."""
    return cast(Numbers[int], Field("groups", dtype, fill, width))


@overload
def scalar(dtype: Whole, fill: Value = 0, width: int = 1) -> Numbers[int]: ...
@overload
def scalar(dtype: Real, fill: Value = 0, width: int = 1) -> Numbers[float]: ...
def scalar(dtype: Whole | Real, fill: Value = 0, width: int = 1) -> Numbers[int] | Numbers[float]:
    """`width` mutable numbers in an array: `self.hand[0]`."""
    return cast(Numbers[int], Field("one", dtype, fill, width))


def parameter(default: Default, *, low: Value | None = None, high: Value | None = None) -> Default:
    """A constant that a plan may set, bounds included: `decay = parameter(0.9, low=0, high=1)`."""
    field = Field("parameter", type(default), default, low=low, high=high)
    if not field.holds(default):
        raise PolicyError(f"a parameter's default of {default} is not {field.range}")
    return cast(Default, field)


SHARED = ("layers", "experts", "distance", "size", "last_use")  # of `Layout`


class Policy:
    """Base of eviction policies and prefetchers: declared state, name, and what the policy reads."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    READABLE: ClassVar[tuple[str, ...]] = ()  # what `reads` may be
    reads: ClassVar[str] = "nothing"
    bound: ClassVar[bool] = False
    State: ClassVar[type]

    # In every policy's state, kept by the cache: see `Layout`, SHARED.
    layers: int
    experts: int
    distance: int
    size: Numbers[int]
    last_use: Numbers[int]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        # The type's own name must differ from every other policy's: numba builds the symbols of compiled code from it,
        # and where two kernels from disk define one symbol, the one loaded first serves both.
        state = namedtuple(re.sub(r"\W", "_", f"{cls.__module__}_{cls.__qualname__}"), [*SHARED, *cls.fields()])  # type: ignore[misc]
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
    def allocate(cls, layout: Layout, parameters: Mapping[str, Value] | None = None) -> Self:
        """A fresh state for `layout`, on which compiled code calls the policy's hooks.

        Raises PolicyError for a parameter that the policy does not have or allow.
        """
        given = dict(parameters or {})
        values: dict[str, object] = {name: getattr(layout, name) for name in SHARED}
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
        state: Self = cls.State(**values)
        return state

    @classmethod
    def _checked(cls, name: str, field: Field, value: object) -> Value:
        if isinstance(value, bool) != (field.dtype is bool) or not isinstance(value, int | float):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not {field.dtype.__name__}")
        if not abs(value) < 2**62:
            raise PolicyError(f"policy {cls.name!r}: parameter {name} is not a finite number of 64 bits")
        if field.dtype is int and value != int(value):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not a whole number")
        if not field.holds(value):
            raise PolicyError(f"policy {cls.name!r}: parameter {name} = {value!r} is not {field.range}")
        return type(field.fill)(value)

    @classmethod
    def interpreted(cls, state: Self) -> Self:
        """An instance that runs the policy's own Python on the arrays of `state`."""
        instance = object.__new__(cls)
        instance.__dict__.update({name: getattr(state, name) for name in (*SHARED, *cls.fields())})
        return instance

    @classmethod
    def file(cls) -> str | None:
        """The source file that defines the policy, if there is one."""
        return getattr(sys.modules.get(cls.__module__), "__file__", None)
