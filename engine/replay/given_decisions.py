"""Decisions that somebody else made: read from a file as `EventLog` writes it, held against the trace, to be timed."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from engine.decisions.spec import cache_spec
from engine.plan.misses import AdmissionPlan, MissPlan
from engine.plan.plan import Plan, plan_from_toml
from engine.plan.tables import KEEP, RESET, CachePlan, EvictionPlan, PlacementPlan, PrefetchPlan
from engine.replay.given_checks import FINE, MISSING, WORDS, Held, nothing_held, settle
from policies.cache_spec import CacheSpec, slots_of
from policies.events import KIND_NAMES, Events
from tracekit.demand import Demand, iter_demand, step_starts
from tracekit.errors import TraceError
from tracekit.opening import checked
from tracekit.shards import file_digest
from tracekit.trace import Trace

NEEDED = ("visit", "layer", "kind", "expert", "slot")
MOST_BUFFERS = 4096
"""Slots beside one for each expert that there may be where no plan says how many there are: a plan's most."""
ROWS = 1 << 20
"""Read at once."""
T = TypeVar("T")


class GivenDecisions:
    """The decisions in the Parquet file `path` on `trace`.

    `plan` is what the decisions are timed by: how experts are stored and computed, and what the slots are of. It is the
    one given, else the one the file names, else none but as many slots as the file uses. Policies that it names are not
    asked, and not even loaded. Raises TraceError where the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], trace: Trace, plan: Plan | None = None) -> None:
        self.path, self.trace = Path(path), trace
        try:
            checked(self.path)
        except OSError as error:
            raise TraceError(f"cannot read {self.path}: {error.strerror or error}") from None
        self._frame = pl.scan_parquet(self.path, glob=False)
        self._check_columns(self._read(self._frame.collect_schema))
        asked = self._frame.select(pl.len().alias("rows"), pl.col("slot").max().alias("slot"))
        found = self._read(asked.collect).row(0, named=True)
        self.rows = int(found["rows"])
        about = self._read(lambda: pl.read_parquet_metadata(self.path))
        self._written_for = about.get("tracekit.trace_digest")
        keys = trace.layers * trace.num_experts
        used = min(max(0, int(found["slot"] or 0)), keys + MOST_BUFFERS - 1) + 1
        text = about.get("tracekit.plan")
        told = plan_from_toml(text, f"the plan in {self.path}") if text else None
        chosen = plan or told
        self.planned = told is not None
        """Whether the file names the plan that decided."""
        self.spec: CacheSpec | None = None
        if chosen is None:
            # Slots of any layer's experts, as many as there are.
            size, count = np.ones(keys, np.int64), sum(trace.manifest.experts_per_layer)
            chosen = Plan(str(min(used, count)))
            self.spec = CacheSpec(
                trace.layers, trace.num_experts, (min(used, keys),), size, staging=max(1, used - keys)
            )
        self.plan = chosen
        made = told or chosen
        # Experts may be there, or leave, that no event brought.
        self.warm = made.cache.warm not in (KEEP, RESET) or (made.placement.by or made.placement.detect) is not None

    @property
    def about(self) -> dict[str, str]:
        """What a result says of where its decisions came from."""
        return {"file": str(self.path), "sha256": file_digest(self.path)}

    def spec_of(self, sizes: list[int]) -> CacheSpec:
        """The cache that the slots are of, for experts of these bytes. Raises CapacityError."""
        if self.spec is not None:
            return self.spec
        # Nothing of the plan's policies: the file may come from anywhere, and naming code is not running it.
        prefetch = PrefetchPlan(staging=self.plan.prefetch.staging)
        cache = CachePlan(capacity=self.plan.cache.capacity)
        neutral = self.plan.replace(
            cache=cache,
            placement=PlacementPlan(),
            eviction=EvictionPlan(),
            prefetch=prefetch,
            miss=MissPlan(),
            admission=AdmissionPlan(),
        )
        spec = cache_spec(self.trace.manifest.experts_per_layer, sizes, neutral)
        return replace(spec, wrap=self.plan.prefetch.wrap)

    def pieces(self, spec: CacheSpec) -> Iterator[tuple[Demand, Events]]:
        """The trace's demand and the decisions on it, as `iter_decisions` gives those of a plan.

        Raises TraceError, naming visit and expert, for decisions that cannot be.
        """
        held = nothing_held(slots_of(spec), spec.layers * spec.experts, warm=self.warm)
        source = _Rows(self._read_rows())
        first = 0
        for demand in iter_demand(self.trace):
            last = first + demand.visits
            visit, kind, key, slot = source.until(last)
            if len(visit) and int(visit[0]) < first:
                raise TraceError(f"{self.path}: visit {int(visit[0])} stands behind later ones; sort by visit")
            rows = np.searchsorted(visit, np.arange(first, last + 1)).astype(np.int64)
            code, wrong = np.empty(len(visit), np.int64), np.zeros(4, np.int64)
            orderly = settle(
                held, kind, key, slot, rows, demand.keys.astype(np.int64), demand.start, first, code, wrong
            )
            if wrong[0] != FINE:
                raise self._wrong(wrong.tolist(), held, kind, slot)
            yield demand, Events(code, rows, first, bool(orderly))
            first = last
        if left := source.left():
            raise TraceError(f"{self.path} has visit {left[0]}, and {self.trace.path} has {first}{self._elsewhere()}")

    def _wrong(self, wrong: list[int], held: Held, kind: np.ndarray, slot: np.ndarray) -> TraceError:
        what, visit, row, key = wrong
        layer, expert = divmod(key, self.trace.num_experts)
        step, at = divmod(visit, self.trace.layers)
        number = int(self.trace.step[step_starts(self.trace.step)[step]])
        named = f"{expert} of layer {layer}" if layer != at else str(expert)
        words = WORDS[what].format(
            expert=named,
            kind="" if what == MISSING else KIND_NAMES[kind[row]],
            slot="" if what == MISSING else slot[row],
            last=len(held.holder) - 1,
            held=int(held.place[key]),
        )
        return TraceError(f"{self.path}: visit {visit} (step {number}, layer {at}) {words}{self._elsewhere()}")

    def _elsewhere(self) -> str:
        differs = self._written_for is not None and self._written_for != self.trace.digest
        return " (it was written for another trace)" if differs else ""

    def _read_rows(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Visit, kind, key and slot, i64 each, some rows at a time."""
        layers, experts = self.trace.layers, self.trace.num_experts
        last = 0
        for begin in range(0, self.rows, ROWS):
            asked = self._frame.slice(begin, ROWS).select(
                pl.col("visit", "layer", "expert", "slot").cast(pl.Int64), pl.col("kind").cast(pl.String)
            )
            frame = self._read(asked.collect)
            for name in NEEDED:
                if frame[name].null_count():
                    raise TraceError(f"{self.path}: {name} is empty in a row; give it in every one")
            visit, layer, expert, slot = (frame[name].to_numpy() for name in ("visit", "layer", "expert", "slot"))
            unknown = frame["kind"].is_in(KIND_NAMES).not_()
            if unknown.any():
                word = str(frame["kind"].filter(unknown)[0])[:40]
                raise TraceError(f"{self.path}: kind {word!r} is none of {', '.join(KIND_NAMES)}")
            if (np.diff(visit, prepend=last) < 0).any():
                raise TraceError(f"{self.path}: the visits are out of order; sort the rows by visit")
            for name, values, most in (("layer", layer, layers), ("expert", expert, experts)):
                beyond = (values < 0) | (values >= most)
                if beyond.any():
                    value = int(values[beyond][0])
                    raise TraceError(f"{self.path}: there is no {name} {value}, they are numbered from 0 to {most - 1}")
            last = int(visit[-1]) if len(visit) else last
            hosted = frame["kind"].is_in(("host", "admit"))
            if hosted.any() and self.plan.miss.where == "copy":
                raise TraceError(
                    f"{self.path}: visit {int(visit[hosted.arg_true()[0]])} has a miss that the host computes, and the "
                    'plan copies all of them: give one with miss.where = "host"'
                )
            kinds = frame["kind"].replace_strict(KIND_NAMES, range(len(KIND_NAMES)), return_dtype=pl.Int64).to_numpy()
            yield visit, kinds, layer * experts + expert, slot

    def _check_columns(self, schema: pl.Schema) -> None:
        for name in NEEDED:
            kind = schema.get(name)
            fits = kind in (pl.String, pl.Enum, pl.Categorical) if name == "kind" else kind and kind.is_integer()
            if not fits:
                wants = "text" if name == "kind" else "whole numbers"
                has = "no such column" if kind is None else str(kind)
                raise TraceError(
                    f"{self.path} is no file of decisions: column {name} must be {wants}, and is {has}; "
                    f"it needs {', '.join(NEEDED)}"
                )

    def _read(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise TraceError(f"{self.path} is not a readable Parquet file: {reason[:200]}") from None


class _Rows:
    """Rows in order of visits, handed out up to a visit."""

    def __init__(self, source: Iterator[tuple[np.ndarray, ...]]) -> None:
        self._source = source
        self._kept: tuple[np.ndarray, ...] = tuple(np.empty(0, np.int64) for _ in range(4))

    def until(self, visit: int) -> tuple[np.ndarray, ...]:
        """The rows of visits before `visit` that were not handed out yet."""
        parts = [self._kept]
        while not len(parts[-1][0]) or parts[-1][0][-1] < visit:
            more = next(self._source, None)
            if more is None:
                break
            parts.append(more)
        joined = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
        end = int(np.searchsorted(joined[0], visit))
        self._kept = tuple(column[end:] for column in joined)
        return tuple(column[:end] for column in joined)

    def left(self) -> list[int]:
        """The visit of the next row, if there is one."""
        if not len(self._kept[0]):
            self._kept = next(self._source, self._kept)
        return [int(visit) for visit in self._kept[0][:1]]
