"""Rows of an array column of a trace, read piece by piece: memory for one block, however long the trace."""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.manifest import Manifest, Shard
from tracekit.rows import fixed

_Scalar = TypeVar("_Scalar", bound=np.generic)

Check = Callable[[NDArray[_Scalar], int], None]


class Blocks(Generic[_Scalar]):
    """One array column of the routing shards: `experts`, `weights` or `residency`.

    A shard is checked against its digest again when the first block of it is read, which may be long after the trace
    was opened: a flipped byte becomes an error, never an answer. The last block stays in memory, so reading forwards
    decodes everything once; what was read whole stays, too. `check` is given each block [n, layers, k] and its first
    row, and raises TraceError unless it may stand there.
    """

    def __init__(
        self, path: Path, manifest: Manifest, column: str, dtype: type[_Scalar], check: Check[_Scalar]
    ) -> None:
        self._path, self._manifest, self._column, self._dtype, self._check = path, manifest, column, dtype, check
        self._shards = manifest.shards_of("routing")
        self._first = [0, *accumulate(shard.rows for shard in self._shards)]  # row at which each shard begins
        self._rows = shard_files.block_rows(manifest)
        self._sound: set[str] = set()  # shards whose digest has been found right
        self._held: tuple[int, NDArray[_Scalar]] | None = None  # the last block, or everything, and its first row

    def read(self, first: int, last: int) -> NDArray[_Scalar]:
        """Rows `first` to `last` (excluded), [rows, layers, k], read-only. Raises TraceError where they are damaged."""
        if first < last:
            begin, block = self._block(first)
            if last <= begin + len(block):
                return block[first - begin : last - begin]
        shape = (max(0, last - first), len(self._manifest.moe_layers), self._manifest.top_k)
        rows = np.empty(shape, self._dtype)
        row = first
        while row < last:
            begin, block = self._block(row)
            part = block[row - begin : last - begin]
            rows[row - first : row - first + len(part)] = part
            row += len(part)
        if first == 0 and last == self._first[-1]:
            self._held = 0, rows
        return fixed(rows)

    def _block(self, row: int) -> tuple[int, NDArray[_Scalar]]:
        """The block that holds `row`, and its first row."""
        if self._held is None or not self._held[0] <= row < self._held[0] + len(self._held[1]):
            number = bisect_right(self._first, row) - 1
            shard, start = self._shards[number], self._first[number]
            inside = (row - start) // self._rows * self._rows
            count = min(self._rows, shard.rows - inside)
            self._held = None  # free the old block before there is a new one
            self._held = start + inside, self._load(shard, start, inside, count)
        return self._held

    def _load(self, shard: Shard, start: int, inside: int, count: int) -> NDArray[_Scalar]:
        file = self._path / shard.name
        if shard.name not in self._sound:
            shard_files.check_digest(file, shard)
            self._sound.add(shard.name)
        block = shard_files.read_block(file, shard, self._manifest, self._column, self._dtype, inside, count)
        self._check(block, start + inside)
        return block
