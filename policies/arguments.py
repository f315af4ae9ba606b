"""`Arguments`: what the compiled kernel works on, as addresses.

numba takes most of a microsecond to unpack an array, and the kernel works on forty: several times what deciding a visit
takes. So the arrays of a cache and its policies are noted once, by address and length, and compiled code is handed two:
`table` with addresses, lengths and whole numbers, and `numbers` with the policies' real ones. `unpacking` is the source
text that turns them back into what `decide` takes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.base import BaseContext
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numba.np import arrayobj

from policies.cache_state import Batch, CacheState
from policies.events import EventBuffer
from policies.fields import Policy
from policies.misses import Misses


class Array(NamedTuple):
    """The type of an array's elements, and how many axes it has."""

    dtype: np.dtype
    axes: int = 1


Kind = Array | type[int] | type[float] | type[bool]
"""Of a field; a number is one of Python's"""
Kinds = Mapping[str, Kind]

_I32, _I64, _U32, _F64 = (Array(np.dtype(name)) for name in ("int32", "int64", "uint32", "float64"))
CACHE: Kinds = {
    "experts": int, "group_of": _U32, "size": _I64, "unit": int, "clairvoyant": bool, "capacity": _I64, "used": _I64,
    "place": _I32, "seen": _U32, "last_use": _I64, "first": _I64, "resident": _U32, "resident_count": _I64,
    "position": _U32, "free": _I64, "ring": _I64, "staged": _I32, "staged_count": _I64, "clock": _I64,
    "into_cache": bool, "distance": int, "wraps": bool, "suggestion": _I32, "fault": _I64, "missing": _I64,
}  # fmt: skip
BATCH: Kinds = {
    "layer": _I32, "start": _I64, "demand": _U32, "recency": _U32, "signal": _F64, "signal_recency": _F64,
    "hint": _I32._replace(axes=2), "tokens": _I32, "gate": _F64,
}  # fmt: skip
MISSES: Kinds = {
    "where": int, "copied": int, "most_tokens": _I64, "per_step": int, "even": bool, "left": _I64, "hosted": _I64,
}  # fmt: skip
EVENTS: Kinds = {"code": _I64, "start": _I64}
OF_LAYOUT: Kinds = {"layers": int, "experts": int, "distance": int, "size": _I64, "last_use": _I64}


def kinds_of(policy: type[Policy]) -> Kinds:
    """What a policy's state is made of, in order."""
    fields = policy.fields().items()
    own = {name: type(one.fill) if one.extent == "parameter" else Array(np.dtype(one.dtype)) for name, one in fields}
    return {**OF_LAYOUT, **own}


class Arguments:
    """The kernel's arguments, `table` i64 and `numbers` f64. They keep alive what they point to.

    Cache and policies are noted for good; the batch and the room for events by `note`, before each call.
    """

    def __init__(
        self, cache: CacheState, misses: Misses | None, policies: Sequence[tuple[type[Policy], Policy]]
    ) -> None:
        states: list[tuple[Kinds, tuple[object, ...]]] = [(CACHE, cache)]
        states += [] if misses is None else [(MISSES, misses)]
        states += [(kinds_of(policy), cast(tuple[object, ...], state)) for policy, state in policies]
        noted = [entry for kinds, state in states for entry in _entries(kinds, state)]
        whole = [entry for entry in noted if isinstance(entry, int)]
        self.numbers = np.array([entry for entry in noted if isinstance(entry, float)], np.float64)
        self._batch = len(whole)
        self._events = self._batch + sum(map(_width, BATCH.values()))
        self.table = np.zeros(self._events + sum(map(_width, EVENTS.values())), np.int64)
        self.table[: self._batch] = whole
        self._kept: tuple[object, ...] = (cache, misses, policies)
        self._noted: tuple[object, ...] = ()

    def note(self, batch: Batch, events: EventBuffer) -> None:
        """What the next call decides, and where it writes."""
        if len(self._noted) and self._noted[0] is batch and self._noted[1] is events:
            return
        self._noted = (batch, events)
        self.table[self._batch : self._events] = _entries(BATCH, batch)
        self.table[self._events :] = _entries(EVENTS, events)


def unpacking(
    eviction: type[Policy], prefetcher: type[Policy] | None, misses: bool, admission: type[Policy] | None
) -> str:
    """Lines that make what `decide` takes of `table` and `numbers`."""
    lines, at, real = [], 0, 0
    parts = [("cache", "CacheState", CACHE), *([("misses", "Misses", MISSES)] if misses else [])]
    parts.append(("eviction", "Eviction", kinds_of(eviction)))
    if prefetcher is not None:
        parts.append(("prefetcher", "Prefetcher", kinds_of(prefetcher)))
    if admission is not None:
        parts.append(("admission", "Admitting", kinds_of(admission)))
    parts += [("batch", "Batch", BATCH), ("events", "EventBuffer", EVENTS)]
    for name, made, kinds in parts:
        fields = []
        for kind in kinds.values():
            if kind is float:
                fields.append(f"numbers[{real}]")
                real += 1
            else:
                fields.append(_read(kind, at))
            at += _width(kind)
        lines.append(f"    {name} = {made}({', '.join(fields)})")
    made_of = {name for name, *_ in parts}
    lines += [f"    {name} = None" for name in ("prefetcher", "misses", "admission") if name not in made_of]
    return "\n".join(lines)


def _read(kind: Kind, at: int) -> str:
    if not isinstance(kind, Array):
        return f"table[{at}] != 0" if kind is bool else f"table[{at}]"
    columns = f"table[{at + 2}]" if kind.axes == 2 else "None"
    element = "bool_" if kind.dtype == bool else kind.dtype.name
    return f"array_at(table[{at}], table[{at + 1}], {columns}, {element})"


def _width(kind: Kind) -> int:
    """How many whole numbers of the table a field takes."""
    if isinstance(kind, Array):
        return 1 + kind.axes
    return 0 if kind is float else 1


def _entries(kinds: Kinds, state: tuple[object, ...]) -> list[int | float]:
    found: list[int | float] = []
    for kind, value in zip(kinds.values(), state, strict=True):
        if isinstance(value, np.ndarray):
            if (value.dtype, value.ndim) != kind or not value.flags.c_contiguous:
                raise TypeError(f"an array of {value.dtype} with {value.ndim} axes cannot be handed over as {kind}")
            found.append(value.__array_interface__["data"][0])
            found += value.shape
        else:
            assert isinstance(value, int | float)
            found.append(float(value) if kind is float else int(value))
    return found


Lowering = tuple[Signature, Callable[[BaseContext, ir.IRBuilder, Signature, Sequence[ir.Value]], ir.Value]]


@intrinsic
def array_at(
    context: object,
    address: types.Type,
    rows: types.Type,
    columns: types.Type,
    dtype: "types.NumberClass[types.Number]",
) -> Lowering:
    """The array of `dtype` [rows], or [rows, columns] unless that is None, whose elements lie from `address` on."""
    made = types.Array(dtype.dtype, 1 if isinstance(columns, types.NoneType) else 2, "C")

    def lower(context: BaseContext, builder: ir.IRBuilder, _: Signature, given: Sequence[ir.Value]) -> ir.Value:
        element = context.get_data_type(made.dtype)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(element))
        array = context.make_array(made)(context, builder)
        arrayobj.populate_array(
            array,
            data=builder.inttoptr(given[0], element.as_pointer()),
            shape=cgutils.pack_array(builder, given[1 : 1 + made.ndim]),
            strides=cgutils.pack_array(
                builder, [builder.mul(itemsize, given[2]), itemsize] if made.ndim == 2 else [itemsize]
            ),
            itemsize=itemsize,
            meminfo=None,
        )
        return array._getvalue()

    return made(address, rows, columns, dtype), lower
