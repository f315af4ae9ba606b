"""A trace, opened for reading: checked once, then plain numpy arrays."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.html_table import html_table
from tracekit.manifest import Manifest, load_manifest, lookahead_distance
from tracekit.rows import Columns
from tracekit.shard_rows import ShardRows

if TYPE_CHECKING:
    import polars as pl

    from tracekit.batching import Batching


class RowSource(Protocol):
    """Where a trace's rows are: on disk (`ShardRows`), in another trace (`batched`, `first_steps`), or anywhere else.

    `columns` and `kinds` are plain attributes. Rows are asked for from `first` to `last`, excluded; arrays are
    read-only.
    """

    @property
    def columns(self) -> Columns: ...

    @property
    def kinds(self) -> frozenset[str]:
        """What rows carry besides their experts: "weights", "residency", "logits", "lookahead-D"."""

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        """[rows, layers, k]."""

    def weights(self, first: int, last: int) -> NDArray[np.float16] | None:
        """[rows, layers, k]; None where rows carry none."""

    def residency(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """[rows, layers, k], as `Trace.recorded`; None where rows carry none."""

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        """Logits or lookahead, [rows, layers, experts]; None where rows carry none."""

    def scan(self) -> "pl.LazyFrame":
        """The routing table, a row per token."""

    def digest(self, manifest: Manifest) -> str:
        """sha256 of what these rows are under a manifest."""


class Trace:
    """What the gates of a model chose, token by token. Open with `Trace.open`; every array is read-only.

    A token's unused slots hold `tracekit.rows.UNUSED` (65535). Rows are in execution order: `step` never decreases,
    and the tokens of one step went through the model together. `batching` says how requests were put together that
    were recorded apart (`tracekit.batched`), and is None for what was recorded.
    """

    def __init__(self, path: Path, manifest: Manifest, rows: RowSource, batching: "Batching | None" = None) -> None:
        self.path: Final = path
        self.manifest: Final = manifest
        self.batching: Final = batching
        self._rows: Final = rows
        self._dense: Final[dict[str, NDArray[np.float16] | None]] = {}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "Trace":
        """Open the trace directory `path`.

        Checked at once: the manifest, the digests, columns, shapes and row counts of the routing shards, the range of
        every value but the experts'. These are checked when they are first read, and the digest again. `verify` reads
        and checks everything now: also the digests of logits and lookahead shards (of which else only the rows that are
        asked for are read), the weights, and that no token chose an expert twice.

        Raises TraceError, in one line, when anything is missing, truncated, damaged or of another version.
        """
        path = Path(path)
        manifest = load_manifest(path)
        return cls(path, manifest, ShardRows(path, manifest, verify=verify))

    def with_manifest(self, manifest: Manifest) -> "Trace":
        """The same rows, said to be of another model or of experts of other sizes."""
        return Trace(self.path, manifest, self._rows, self.batching)

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
    def columns(self) -> Columns:
        """What is one number per token: `step`, `request`, `position`, `phase` and `token_id`."""
        return self._rows.columns

    @property
    def step(self) -> NDArray[np.int32]:
        """The forward pass each token belongs to, [tokens], never decreasing."""
        return self.columns.step

    @property
    def request(self) -> NDArray[np.int32]:
        """The request each token belongs to, [tokens]."""
        return self.columns.request

    @property
    def position(self) -> NDArray[np.int32]:
        """Each token's place in its request's context, [tokens], from 0."""
        return self.columns.position

    @property
    def phase(self) -> NDArray[np.uint8]:
        """PREFILL (0) or DECODE (1), [tokens]."""
        return self.columns.phase

    @property
    def token_id(self) -> NDArray[np.int32]:
        """Vocabulary ids, [tokens]; -1 when unknown."""
        return self.columns.token_id

    @property
    def kinds(self) -> frozenset[str]:
        """What was recorded besides the experts: "weights", "residency", "logits", "lookahead-D"."""
        return self._rows.kinds

    @property
    def has_weights(self) -> bool:
        """Whether gate weights were recorded."""
        return "weights" in self.kinds

    @cached_property
    def experts(self) -> NDArray[np.uint16]:
        """The chosen experts, [tokens, layers, top_k]; unused slots hold UNUSED. Read whole on first use."""
        shard_files.check_memory(self.path, self.manifest)
        return self.experts_of(0, self.tokens)

    @cached_property
    def weights(self) -> NDArray[np.float16] | None:
        """The gate weights of `experts`, same shape; None when the trace holds none. Read whole on first use."""
        if self.has_weights:
            shard_files.check_memory(self.path, self.manifest)
        return self.weights_of(0, self.tokens)

    def experts_of(self, first: int, last: int) -> NDArray[np.uint16]:
        """`experts[first:last]`, with memory for these rows only. Fast when rows are read in order."""
        return self._rows.experts(first, min(last, self.tokens))

    def weights_of(self, first: int, last: int) -> NDArray[np.float16] | None:
        """`weights[first:last]`, with memory for these rows only; None when the trace holds none."""
        return self._rows.weights(first, min(last, self.tokens))

    def dense_of(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        """`dense(kind)[first:last]`, with memory for these rows only; None when it was not recorded."""
        return self._rows.dense(kind, first, min(last, self.tokens))

    @property
    def logits(self) -> NDArray[np.float16] | None:
        """Gate logits, [tokens, layers, num_experts]; None when not recorded. Read whole on first use."""
        return self.dense("logits")

    def lookahead(self, distance: int) -> NDArray[np.float16] | None:
        """Gate of MoE layer l+distance on the hidden state entering the gate of layer l.

        [tokens, layers - distance, num_experts]; entry l speculates about layer l + distance (Eliseev & Mazur
        2023, arXiv 2312.17238, section 3.2). None when this distance was not recorded.
        """
        return self.dense(f"lookahead-{distance}")

    @property
    def lookahead_distances(self) -> list[int]:
        """The distances for which `lookahead` was recorded, ascending."""
        return sorted(distance for kind in self.kinds if (distance := lookahead_distance(kind)) is not None)

    def dense(self, kind: str) -> NDArray[np.float16] | None:
        """`logits`, or the `lookahead` of distance D, by their kinds: "logits" and "lookahead-D"."""
        if kind not in self._dense:
            self._dense[kind] = self.dense_of(kind, 0, self.tokens)
        return self._dense[kind]

    @cached_property
    def recorded(self) -> NDArray[np.uint8] | None:
        """What the cache of the engine that was traced held, [tokens, layers, top_k]; None when the trace does not say.

        0: the expert was not there when the lookup came (or the slot is unused); above: it was, as a hit (1) or after
        a prefetch (2). Read whole on first use.
        """
        return self.recorded_of(0, self.tokens)

    def recorded_of(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """`recorded[first:last]`, with memory for these rows only; None when the trace does not say."""
        return self._rows.residency(first, min(last, self.tokens))

    @cached_property
    def digest(self) -> str:
        """sha256 naming this trace's content; equal digests replay equally."""
        return self._rows.digest(self.manifest)

    def scan(self) -> "pl.LazyFrame":
        """The routing table as a LazyFrame, a row per token; experts and weights are [layers * top_k]."""
        return self._rows.scan()

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}: {self.tokens} tokens, {self.layers} MoE layers, top-{self.top_k})"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        facts = {
            "model": manifest.model.id,
            "source": manifest.source + ("" if manifest.complete else " (incomplete)"),
            "tokens": f"{self.tokens:,} in {manifest.steps:,} steps of {manifest.requests:,} requests",
            "experts": f"top-{self.top_k} of up to {self.num_experts} in {self.layers} MoE layers",
            "besides": ", ".join(sorted(self.kinds)) or "nothing",
            "digest": self.digest[:16],
        }
        return html_table(str(self.path), facts.items())
