"""A trace to give away: nothing in it names a text, a person, a model or a file, and experts have other numbers."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.durable import whole_or_nothing
from tracekit.edit.pieces import Progress, copy_rows
from tracekit.manifest import Manifest, ModelInfo, lookahead_distance
from tracekit.notes import is_about_steps
from tracekit.rows import UNUSED, Columns, first_appearances
from tracekit.shards import routing_table
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

if TYPE_CHECKING:
    import polars as pl

NAMELESS = "anonymous"


class _AnonymousRows:
    """The rows of a trace without token ids, requests numbered from 0, experts renumbered layer by layer."""

    def __init__(self, named: Trace, labels: NDArray[np.uint16]) -> None:
        own = named.columns
        unknown = np.full(len(own), -1, np.int32)
        self.columns = Columns(own.step, first_appearances(own.request)[0], own.position, own.phase, unknown)
        self.kinds = named.kinds
        self.weights, self.residency = named.weights_of, named.recorded_of
        self._named, self._labels = named, labels
        self._places = np.argsort(labels, axis=1)  # where a new number's scores were

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        experts = self._named.experts_of(first, last)
        unused = experts == UNUSED
        new = self._labels[np.arange(len(self._labels))[:, None], np.where(unused, 0, experts)]
        return np.where(unused, np.uint16(UNUSED), new)

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        scores = self._named.dense_of(kind, first, last)
        if scores is None:
            return None
        return np.take_along_axis(scores, self._places[None, lookahead_distance(kind) or 0 :], axis=2)

    def scan(self) -> "pl.LazyFrame":
        rows = len(self.columns)
        arrays = {"weights": self.weights(0, rows), "residency": self.residency(0, rows)}
        besides = {name: array for name, array in arrays.items() if array is not None}
        return routing_table(self.columns, self.experts(0, rows), besides, self._named.manifest).lazy()

    def digest(self, manifest: Manifest) -> str:
        return hashlib.sha256(manifest.encode() + self._named.digest.encode() + self._labels.tobytes()).hexdigest()


def anonymise(
    trace: Trace,
    output: str | Path,
    rng: np.random.Generator,
    *,
    model: str = NAMELESS,
    progress: Progress = lambda rows: None,
) -> Trace:
    """Write `trace` without names and texts, and with each layer's experts renumbered as `rng` draws.

    Left out are token ids, the digest of its prompts, its seed, the domains of its requests, the model's name, revision
    and configuration (`model` is what it is called then), and notes on anything but steps. Requests are numbered from 0
    in order of appearance.
    Logits and lookahead follow their experts. Which rows share experts stays as it was, and so does every replay whose
    policy does not decide ties by an expert's number; lengths of prompts and answers stay, too.

    Who holds the model could read tokens off the experts they chose; so may who draws the same numbers again.

    Raises TraceError when `output` exists or the trace is damaged.
    """
    manifest = trace.manifest
    notes = [*filter(is_about_steps, manifest.notes), "anonymised: no token ids, experts numbered anew"]
    bare = msgspec.structs.replace(
        manifest.without_rows(notes),
        model=ModelInfo(id=model, family=manifest.model.family, dtype=manifest.model.dtype),
        prompts_sha256=None,
        seed=None,
        domains=[],
    )
    rows = _AnonymousRows(trace, _labels(manifest.experts_per_layer, trace.num_experts, rng))
    output = Path(output)
    with whole_or_nothing(output) as aside, TraceWriter(aside, bare) as writer:
        copy_rows(Trace(trace.path, manifest, rows), writer, progress)
        writer.finish()
    return Trace.open(output)


def _labels(experts_per_layer: list[int], most: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """New numbers, [layers, experts]: an order of each layer's own experts."""
    labels = np.tile(np.arange(most, dtype=np.uint16), (len(experts_per_layer), 1))
    for layer, experts in enumerate(experts_per_layer):
        labels[layer, :experts] = rng.permutation(experts)
    return labels
