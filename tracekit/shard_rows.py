"""The rows of a trace as they lie on disk: columns in memory, experts and weights in blocks, the rest as asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.blocks import Blocks
from tracekit.errors import TraceError
from tracekit.manifest import Manifest, Shard
from tracekit.rows import Columns, check_columns, check_distinct, check_ids, check_weights, damaged, fixed
from tracekit.tensorfile import check_tensor, read_rows

if TYPE_CHECKING:
    import polars as pl


class ShardRows:
    """The rows of the trace directory `path`; a `RowSource`, checked as `Trace.open` says."""

    def __init__(self, path: Path, manifest: Manifest, *, verify: bool) -> None:
        shard_files.check_memory(path, manifest, routing=False)
        # Before polars decodes anything: it may abort the process over a damaged file.
        for shard in manifest.shards:
            if verify or shard.kind == "routing":
                shard_files.check_digest(path / shard.name, shard)
        self._path, self._manifest = path, manifest
        self._begins: dict[str, int] = {}
        self.columns, besides = self._read_columns()
        self.kinds = besides.union(manifest.dense_kinds())
        self._experts = Blocks(path, manifest, "experts", np.uint16, self._check_experts)
        self._weights = Blocks(path, manifest, "weights", np.float16, self._check_weights)
        self._residency = Blocks(path, manifest, "residency", np.uint8, lambda values, first: None)  # any value may be
        for kind in manifest.dense_kinds():
            for shard in manifest.shards_of(kind):
                self._begin(shard)  # headers, shapes and sizes; the values stay on disk
        if verify:
            self._read_everything()

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        return self._experts.read(first, last)

    def weights(self, first: int, last: int) -> NDArray[np.float16] | None:
        return self._weights.read(first, last) if "weights" in self.kinds else None

    def residency(self, first: int, last: int) -> NDArray[np.uint8] | None:
        return self._residency.read(first, last) if "residency" in self.kinds else None

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        if kind not in self.kinds:
            return None
        extent = self._manifest.extent(kind)
        if (last - first) * extent[0] * extent[1] * 2 > shard_files.installed_memory():
            raise TraceError(f"{self._path}: its {kind} do not fit into this machine's memory")
        rows = np.empty((max(0, last - first), *extent), "<f2")
        start = 0
        for shard in self._manifest.shards_of(kind):
            low, high = max(first, start), min(last, start + shard.rows)
            if low < high:
                read_rows(self._path / shard.name, self._begin(shard), low - start, rows[low - first : high - first])
            start += shard.rows
        return fixed(rows)

    def scan(self) -> "pl.LazyFrame":
        import polars as pl

        paths = [self._path / shard.name for shard in self._manifest.shards_of("routing")]
        if not paths:
            return pl.LazyFrame(schema=shard_files.routing_schema(self._manifest, ()))
        return pl.scan_parquet(paths, glob=False)

    def digest(self, manifest: Manifest) -> str:
        return manifest.digest()  # which lists the shards' own

    def _read_columns(self) -> tuple[Columns, frozenset[str]]:
        import polars as pl

        path, manifest, parts, held = self._path, self._manifest, [], set()
        for shard in manifest.shards_of("routing"):
            columns, besides = shard_files.read_columns(path / shard.name, shard, manifest)
            parts.append(columns)
            held.add(besides)
        if len(held) > 1:
            odd = " and ".join(sorted(frozenset.union(*held) - frozenset.intersection(*held)))
            raise TraceError(f"{path} is damaged: some of its routing shards hold {odd} and some do not")
        columns = Columns.join(parts)
        with damaged(path):
            check_columns(columns)
        step = columns.step
        requests = pl.Series(columns.request).n_unique()  # by hashing, many times faster than sorting
        counts = {"steps": len(step) and 1 + np.count_nonzero(step[1:] != step[:-1]), "requests": requests}
        for name, count in counts.items():
            if count != getattr(manifest, name):
                raise TraceError(f"{path} holds {count} {name}, its manifest says {getattr(manifest, name)}")
        return columns, next(iter(held), frozenset())

    def _read_everything(self) -> None:
        rows = shard_files.block_rows(self._manifest)
        for first in range(0, len(self.columns), rows):
            last = min(first + rows, len(self.columns))
            with damaged(self._path):
                check_distinct(self.experts(first, last), first)
            self.weights(first, last)
            self.residency(first, last)

    def _check_experts(self, experts: NDArray[np.uint16], first: int) -> None:
        with damaged(self._path):
            check_ids(experts, self._manifest.experts_per_layer, first)

    def _check_weights(self, weights: NDArray[np.float16], first: int) -> None:
        experts = self.experts(first, first + len(weights))
        with damaged(self._path):
            check_weights(weights, experts, first)

    def _begin(self, shard: Shard) -> int:
        """The byte at which the tensor of a shard begins."""
        if shard.name not in self._begins:
            shape = (shard.rows, *self._manifest.extent(shard.kind))
            file = shard_files.shard_file(self._path / shard.name)
            self._begins[shard.name] = check_tensor(file, shard.kind.partition("-")[0], shape)
        return self._begins[shard.name]
