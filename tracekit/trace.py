"""A trace, opened for reading: checked once, then plain numpy arrays."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.blocks import Blocks
from tracekit.errors import TraceError
from tracekit.manifest import Manifest, load_manifest, lookahead_distance
from tracekit.rows import (
    DECODE,
    PREFILL,
    UNUSED,
    check_columns,
    check_distinct,
    check_ids,
    check_weights,
    damaged,
    join_columns,
)
from tracekit.tensorfile import map_tensor

if TYPE_CHECKING:
    import polars as pl

    from tracekit.batched import Batching

__all__ = ["DECODE", "PREFILL", "UNUSED", "Trace"]


class Trace:
    """What the gates of a model chose, token by token. Open with `Trace.open`; every array is read-only.

    A token's unused slots hold `UNUSED` (65535). Rows are in execution order: `step` never decreases, and the
    tokens of one step went through the model together. `batching` says how requests were put together that were
    recorded apart (`tracekit.batched`), and is None for what was recorded.
    """

    batching: "Batching | None" = None

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        columns: dict[str, NDArray[Any]],
        has_weights: bool,
        has_recorded: bool = False,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.has_weights = has_weights
        self.has_recorded = has_recorded
        self._columns = columns
        self._experts = Blocks(path, manifest, "experts", self._check_experts)
        self._weights = Blocks(path, manifest, "weights", self._check_weights)
        self._residency = Blocks(path, manifest, "residency", lambda residency, first: None)
        self._dense: dict[str, NDArray[np.float16] | None] = {}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "Trace":
        """Open the trace directory `path`.

        Checked at once: the manifest, the digests, columns, shapes and row counts of the routing shards, the range of
        every value but the experts'. These are checked when they are first read, and the digest again. `verify` reads
        and checks everything now: also the digests of logits and lookahead shards (which are otherwise mapped unread),
        the weights, and that no token chose an expert twice.

        Raises TraceError, in one line, when anything is missing, truncated, damaged or of another version.
        """
        path = Path(path)
        manifest = load_manifest(path)
        shard_files.check_memory(path, manifest, routing=False)
        # Before polars decodes anything: it may abort the process over a damaged file.
        for shard in manifest.shards:
            if verify or shard.kind == "routing":
                shard_files.check_digest(path / shard.name, shard)
        columns, besides = _read_columns(path, manifest)
        with damaged(path):
            check_columns(columns)
        step = columns["step"]
        counts = {"steps": len(step) and 1 + np.count_nonzero(step[1:] != step[:-1]), "requests": _distinct(columns)}
        for name, count in counts.items():
            if count != getattr(manifest, name):
                raise TraceError(f"{path} holds {count} {name}, its manifest says {getattr(manifest, name)}")
        trace = cls(path, manifest, columns, "weights" in besides, "residency" in besides)
        for kind in sorted({shard.kind for shard in manifest.shards} - {"routing"}):
            trace._map(kind)  # headers, shapes and sizes; the values stay on disk
        if verify:
            trace._verify()
        return trace

    @property
    def tokens(self) -> int:
        """Rows of the trace."""
        return self.manifest.tokens

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.manifest.moe_layers)

    @property
    def top_k(self) -> int:
        """Slots per token and layer."""
        return self.manifest.top_k

    @property
    def num_experts(self) -> int:
        """Experts of the layer that has most."""
        return max(self.manifest.experts_per_layer)

    @property
    def step(self) -> NDArray[np.int32]:
        """The forward pass each token belongs to, [tokens], never decreasing."""
        return self._columns["step"]

    @property
    def request(self) -> NDArray[np.int32]:
        """The request each token belongs to, [tokens]."""
        return self._columns["request"]

    @property
    def position(self) -> NDArray[np.int32]:
        """Each token's place in its request's context, [tokens], from 0."""
        return self._columns["position"]

    @property
    def phase(self) -> NDArray[np.uint8]:
        """PREFILL (0) or DECODE (1), [tokens]."""
        return self._columns["phase"]

    @property
    def token_id(self) -> NDArray[np.int32]:
        """Vocabulary ids, [tokens]; -1 when unknown."""
        return self._columns["token_id"]

    @cached_property
    def experts(self) -> NDArray[np.uint16]:
        """The chosen experts, [tokens, layers, top_k]; unused slots hold UNUSED. Read whole on first use."""
        shard_files.check_memory(self.path, self.manifest)
        return self._experts.read(0, self.tokens)

    @cached_property
    def weights(self) -> NDArray[np.float16] | None:
        """The gate weights of `experts`, same shape; None when the trace holds none. Read whole on first use."""
        if not self.has_weights:
            return None
        shard_files.check_memory(self.path, self.manifest)
        return self._weights.read(0, self.tokens)

    def experts_of(self, first: int, last: int) -> NDArray[np.uint16]:
        """`experts[first:last]`, with memory for these rows only. Fast when rows are read in order."""
        return self.experts[first:last] if "experts" in self.__dict__ else self._experts.read(first, last)

    def weights_of(self, first: int, last: int) -> NDArray[np.float16] | None:
        """`weights[first:last]`, with memory for these rows only; None when the trace holds none."""
        return self._weights.read(first, last) if self.has_weights else None

    @cached_property
    def recorded(self) -> NDArray[np.uint8] | None:
        """What the cache of the engine that was traced held, [tokens, layers, top_k]; None when the trace does not say.

        0: the expert was not there when the lookup came (or the slot is unused); above: it was, as a hit (1) or after
        a prefetch (2). Read whole on first use.
        """
        return self.recorded_of(0, self.tokens)

    def recorded_of(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """`recorded[first:last]`, with memory for these rows only; None when the trace does not say."""
        return self._residency.read(first, last) if self.has_recorded else None

    @property
    def logits(self) -> NDArray[np.float16] | None:
        """Gate logits, [tokens, layers, num_experts]; None when not recorded. Mapped when in one shard."""
        return self._dense_array("logits")

    def lookahead(self, distance: int) -> NDArray[np.float16] | None:
        """Gate of MoE layer l+distance on the hidden state entering the gate of layer l.

        [tokens, layers - distance, num_experts]; entry l speculates about layer l + distance (Eliseev & Mazur
        2023, arXiv 2312.17238, section 3.2). None when this distance was not recorded.
        """
        return self._dense_array(f"lookahead-{distance}")

    @property
    def lookahead_distances(self) -> list[int]:
        """The distances for which `lookahead` was recorded, ascending."""
        found = {lookahead_distance(shard.kind) for shard in self.manifest.shards}
        return sorted(distance for distance in found if distance is not None)

    @cached_property
    def digest(self) -> str:
        """sha256 naming this trace's content; equal digests replay equally."""
        return self.manifest.digest()

    def scan(self) -> "pl.LazyFrame":
        """The routing table as a LazyFrame, a row per token; experts and weights are [layers * top_k]."""
        import polars as pl

        paths = [self.path / shard.name for shard in self.manifest.shards_of("routing")]
        if not paths:
            return pl.LazyFrame(schema=shard_files.routing_schema(self.manifest, weights=False))
        return pl.scan_parquet(paths, glob=False)

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}: {self.tokens} tokens, {self.layers} MoE layers, top-{self.top_k})"

    def _check_experts(self, experts: NDArray[np.uint16], first: int) -> None:
        with damaged(self.path):
            check_ids(experts, self.manifest.experts_per_layer, first)

    def _check_weights(self, weights: NDArray[np.float16], first: int) -> None:
        experts = self.experts_of(first, first + len(weights))
        with damaged(self.path):
            check_weights(weights, experts, first)

    def _verify(self) -> None:
        """Read every row once."""
        rows = shard_files.block_rows(self.manifest)
        for first in range(0, self.tokens, rows):
            last = min(first + rows, self.tokens)
            experts = self.experts_of(first, last)
            with damaged(self.path):
                check_distinct(experts, first)
            self.weights_of(first, last)
            self.recorded_of(first, last)

    def _dense_array(self, kind: str) -> NDArray[np.float16] | None:
        if kind not in self._dense:
            parts = self._map(kind)
            if len(parts) > 1 and sum(part.nbytes for part in parts) > shard_files.installed_memory():
                raise TraceError(f"{self.path}: its {kind} do not fit into this machine's memory")
            self._dense[kind] = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else None
        return self._dense[kind]

    def _map(self, kind: str) -> list[NDArray[np.float16]]:
        distance = lookahead_distance(kind)
        extent = (self.layers - (distance or 0), self.num_experts)
        name = "logits" if distance is None else "lookahead"
        return [
            map_tensor(shard_files.regular_file(self.path / shard.name), name, (shard.rows, *extent))
            for shard in self.manifest.shards_of(kind)
        ]


def _read_columns(path: Path, manifest: Manifest) -> tuple[dict[str, NDArray[Any]], frozenset[str]]:
    parts, held = [], set()
    for shard in manifest.shards_of("routing"):
        columns, besides = shard_files.read_columns(path / shard.name, shard, manifest)
        parts.append(columns)
        held.add(besides)
    if len(held) > 1:
        odd = " and ".join(sorted(frozenset.union(*held) - frozenset.intersection(*held)))
        raise TraceError(f"{path} is damaged: some of its routing shards hold {odd} and some do not")
    columns = parts[0] if len(parts) == 1 else join_columns(parts)
    return columns, held.pop() if held else frozenset()


def _distinct(columns: dict[str, NDArray[Any]]) -> int:
    import polars as pl  # counts by hashing, many times faster than sorting

    return pl.Series(columns["request"]).n_unique()
