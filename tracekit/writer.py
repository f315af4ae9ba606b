"""Writing a trace so that being killed costs the open shard and nothing else."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit import shards as shard_files
from tracekit.durable import TEMPORARY, lock_directory, reporting, write_synced
from tracekit.errors import TraceError
from tracekit.manifest import MANIFEST_NAME, Manifest, Shard, is_shard_name, load_manifest
from tracekit.rows import UNUSED, Columns, Rows, check_columns, check_distinct, check_ids, check_weights
from tracekit.tensorfile import write_tensor

_KEPT_BY_WRITER = {"tokens", "requests", "steps", "shards", "complete", "notes", "versions"}
_F16 = np.finfo(np.float16)
_Integer = TypeVar("_Integer", bound=np.integer)


@dataclass(frozen=True, slots=True)
class _Extras:
    """What rows carry besides their routing."""

    floats: dict[str, NDArray[np.float16]]  # by kind
    residency: NDArray[np.uint8] | None

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset([*self.floats, *([] if self.residency is None else ["residency"])])


class TraceWriter:
    """Write a trace, shard by shard. Use as a context manager; leaving it normally finishes the trace.

        with TraceWriter("new.trace", manifest) as writer:
            writer.append(step=0, request=0, position=[0, 1], phase=PREFILL, token_id=[5, 9], experts=experts)
            writer.flush()

    Rows are held in memory until `flush` makes them a shard. A shard is written under a temporary name,
    synced and renamed before the manifest lists it, so whatever interrupts the writer leaves a readable trace
    of the flushed rows. Leaving the context by an exception loses the rows since the last flush and leaves
    `complete` false.

    Without `resume`, `path` must not exist. With it, an unfinished trace at `path` is continued behind its
    last flushed row: `next_step` and `next_request` say where, and rows of earlier steps are refused. What is
    flushed when decides the shards, so a caller that flushes at the same rows gets the same bytes,
    interrupted or not.
    """

    def __init__(self, path: str | Path, manifest: Manifest, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._rows: list[Rows] = []
        self._extras: list[_Extras] = []
        self._kinds: frozenset[str] | None = None  # what every row carries besides its routing
        self._requests: set[int] = set()
        self._last_step = -1  # of the flushed rows
        self._base = manifest
        self._lock: int | None = None
        try:
            manifest.check()
        except TraceError as error:
            raise TraceError(f"cannot write {self.path}: {error}") from None
        if manifest.shards or manifest.complete:
            raise TraceError(f"cannot write {self.path}: its manifest already lists shards or is complete")
        try:
            with reporting(self.path):
                self._open(resume)
        except BaseException:
            self.close()  # an error must not keep the directory locked for as long as its traceback lives
            raise

    @property
    def rows(self) -> int:
        """Rows given so far, flushed or not."""
        return self._base.tokens + sum(len(part) for part in self._rows)

    @property
    def next_step(self) -> int:
        """The first step number not in the trace yet."""
        return (int(self._rows[-1].step[-1]) if self._rows else self._last_step) + 1

    @property
    def next_request(self) -> int:
        """The first request number above every one in the trace."""
        pending = max((int(part.request.max()) for part in self._rows), default=-1)
        return max(pending, max(self._requests, default=-1)) + 1

    def append(
        self,
        *,
        step: ArrayLike,
        request: ArrayLike,
        position: ArrayLike,
        phase: ArrayLike,
        experts: ArrayLike,
        token_id: ArrayLike = -1,
        weights: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        lookahead: Mapping[int, ArrayLike] | None = None,
        residency: ArrayLike | None = None,
    ) -> None:
        """Add rows, copied.

        experts [n, layers, top_k] of any integer type, unused slots UNUSED; the other columns [n] or one
        value.

        weights [n, layers, top_k], logits [n, layers, experts] and lookahead[D] [n, layers - D, experts]
        become f16; finite values beyond its range are clipped to it. residency [n, layers, top_k] is what the
        traced engine's own cache held (`Trace.recorded`), 0 to 255. All rows of a trace carry the same of
        these four.

        Raises TraceError, and adds nothing, when a value could not stand in a trace.
        """
        layers, top_k = len(self._base.moe_layers), self._base.top_k
        chosen = np.asarray(experts)
        if chosen.ndim != 3 or chosen.shape[1:] != (layers, top_k):
            raise TraceError(f"experts has shape {list(chosen.shape)}, expected [rows, {layers}, {top_k}]")
        if len(chosen) == 0:
            return
        rows = Rows(
            step=_column("step", step, len(chosen), np.int32),
            request=_column("request", request, len(chosen), np.int32),
            position=_column("position", position, len(chosen), np.int32),
            phase=_column("phase", phase, len(chosen), np.uint8),
            token_id=_column("token_id", token_id, len(chosen), np.int32),
            experts=_integers("experts", chosen, np.uint16),
        )
        check_columns(rows)
        check_ids(rows.experts, self._base.experts_per_layer)
        check_distinct(rows.experts)
        earliest = self.next_step - 1 if self._rows else self._last_step + 1
        if rows.step[0] < earliest:
            raise TraceError(f"step {rows.step[0]} comes after step {self.next_step - 1} was written")
        extras = _Extras(self._float_arrays(rows, weights, logits, lookahead or {}), _residency(residency, rows))
        self._check_kinds(extras.kinds)
        self._kinds = extras.kinds
        self._rows.append(rows)
        self._extras.append(extras)

    def flush(self) -> None:
        """Make the pending rows a shard that survives a crash. A step may not continue after it."""
        if not self._rows:
            return
        base = self._base
        columns, experts = Columns.join(self._rows), np.concatenate([part.experts for part in self._rows])
        parts = {kind: [extra.floats[kind] for extra in self._extras] for kind in self._extras[0].floats}
        besides: dict[str, NDArray[np.generic]] = {}
        if "weights" in parts:
            besides["weights"] = np.concatenate(parts.pop("weights"))
        if held := [extra.residency for extra in self._extras if extra.residency is not None]:
            besides["residency"] = np.concatenate(held)
        with reporting(self.path):
            table = shard_files.routing_table(columns, experts, besides, base)
            number = len(base.shards_of("routing"))
            write = partial(shard_files.write_routing, table=table, manifest=base)
            added = [self._write_shard("routing", f"{number:05d}.parquet", len(columns), write)]
            for kind in sorted(parts):
                write = partial(write_tensor, name=kind.partition("-")[0], pieces=parts[kind])
                added.append(self._write_shard(kind, f"{number:05d}.safetensors", len(columns), write))
            requests = self._requests | set(np.unique(columns.request).tolist())
            self._store(
                msgspec.structs.replace(
                    base,
                    tokens=base.tokens + len(columns),
                    requests=len(requests),
                    steps=base.steps + len(np.unique(columns.step)),
                    shards=[*base.shards, *added],
                )
            )
        self._requests, self._last_step = requests, int(columns.step[-1])
        self._rows, self._extras = [], []

    def finish(self) -> None:
        """Flush and mark the trace complete. Calling it again does nothing."""
        if not self._base.complete:
            self.flush()
            with reporting(self.path):
                self._store(msgspec.structs.replace(self._base, complete=True))
        self.close()

    def close(self) -> None:
        """Let go of the directory without flushing: what was not flushed is lost."""
        self._rows, self._extras = [], []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def _open(self, resume: bool) -> None:
        if self.path.exists() and not resume:
            raise TraceError(f"{self.path} exists: choose another name, remove it, or resume it")
        if not self.path.parent.is_dir():
            raise TraceError(f"cannot write {self.path}: there is no directory {self.path.parent}")
        if self.path.exists() and not self.path.is_dir():
            raise TraceError(f"{self.path} is not a trace: a trace is a directory holding {MANIFEST_NAME}")
        self.path.mkdir(exist_ok=True)
        self._lock = lock_directory(self.path)
        leftovers = [entry for entry in self.path.iterdir() if _is_ours(entry.name)]
        if (self.path / MANIFEST_NAME).exists():
            self._continue()
        elif len(leftovers) != sum(1 for _ in self.path.iterdir()):
            raise TraceError(f"{self.path} is not a trace: it has no {MANIFEST_NAME}; choose another name")
        listed = {shard.name for shard in self._base.shards}
        for entry in leftovers:
            if entry.name not in listed:
                entry.unlink()
        self._store(self._base)

    def _continue(self) -> None:
        found = load_manifest(self.path)
        if found.complete:
            raise TraceError(f"{self.path} is complete already: there is nothing to resume")
        for name in found.__struct_fields__:
            if name not in _KEPT_BY_WRITER and getattr(found, name) != getattr(self._base, name):
                raise TraceError(f"cannot resume {self.path}: its {name} differs from this recording's")
        kinds: set[str] = {shard.kind for shard in found.shards} - {"routing"}
        for shard in found.shards:
            path = self.path / shard.name
            shard_files.check_digest(path, shard)
            if shard.kind == "routing":
                columns, besides = shard_files.read_columns(path, shard, found)
                self._requests.update(np.unique(columns.request).tolist())
                self._last_step = int(columns.step[-1])
                kinds |= besides
        self._kinds = frozenset(kinds) if found.shards else None
        self._base = found

    def _float_arrays(
        self,
        rows: Rows,
        weights: ArrayLike | None,
        logits: ArrayLike | None,
        lookahead: Mapping[int, ArrayLike],
    ) -> dict[str, NDArray[np.float16]]:
        layers, experts = len(self._base.moe_layers), max(self._base.experts_per_layer)
        arrays: dict[str, NDArray[np.float16]] = {}
        if weights is not None:
            arrays["weights"] = _floats("weights", weights, rows.experts.shape)
            check_weights(arrays["weights"], rows.experts)
            arrays["weights"][rows.experts == UNUSED] = 0
        if logits is not None:
            arrays["logits"] = _floats("logits", logits, (len(rows), layers, experts))
        for distance, values in lookahead.items():
            if not 1 <= distance < layers:
                raise TraceError(f"a lookahead of {distance} in a model of {layers} MoE layers")
            kind = f"lookahead-{distance}"
            arrays[kind] = _floats(kind, values, (len(rows), layers - distance, experts))
        return arrays

    def _check_kinds(self, kinds: frozenset[str]) -> None:
        if self._kinds is not None and self._kinds != kinds:
            had, has = sorted(self._kinds) or ["routing alone"], sorted(kinds) or ["routing alone"]
            raise TraceError(f"rows before carried {', '.join(had)}, these carry {', '.join(has)}")

    def _write_shard(self, kind: str, suffix: str, rows: int, fill: Callable[[BinaryIO], None]) -> Shard:
        path = self.path / f"{kind}-{suffix}"
        write_synced(path, fill)
        return Shard(name=path.name, kind=kind, rows=rows, sha256=shard_files.file_digest(path))

    def _store(self, manifest: Manifest) -> None:
        data = manifest.encode()
        write_synced(self.path / MANIFEST_NAME, lambda file: file.write(data))
        self._base = manifest


def _column(name: str, values: ArrayLike, rows: int, dtype: type[_Integer]) -> NDArray[_Integer]:
    column = np.asarray(values)
    if column.shape not in ((), (rows,)):
        raise TraceError(f"{name} has shape {list(column.shape)}, expected [{rows}] or one value")
    return _integers(name, np.broadcast_to(column, (rows,)), dtype)


def _residency(values: ArrayLike | None, rows: Rows) -> NDArray[np.uint8] | None:
    if values is None:
        return None
    held = np.asarray(values)
    if held.shape != rows.experts.shape:
        raise TraceError(f"residency has shape {list(held.shape)}, expected {list(rows.experts.shape)}")
    held = _integers("residency", held, np.uint8)
    held[rows.experts == UNUSED] = 0
    return held


def _integers(name: str, values: NDArray[np.generic], dtype: type[_Integer]) -> NDArray[_Integer]:
    if values.dtype.kind not in "iu":
        raise TraceError(f"{name} holds {values.dtype}, expected integers")
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise TraceError(f"{name} holds values from {values.min()} to {values.max()}, out of range")
    return values.astype(dtype)


def _floats(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float16]:
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.shape != shape:
        raise TraceError(f"{name} is {array.dtype} {list(array.shape)}, expected floats {list(shape)}")
    if array.dtype == np.float16:
        return array.copy()
    # Infinities are meaningful (a masked expert's logit) and stay; finite values must not become infinite.
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    overflowed = np.isinf(half) & np.isfinite(array)
    if overflowed.any():
        half[overflowed] = np.where(array[overflowed] > 0, _F16.max, _F16.min)
    return half


def _is_ours(name: str) -> bool:
    stem = name.removesuffix(TEMPORARY)
    return is_shard_name(stem) or (stem == MANIFEST_NAME and stem != name)
