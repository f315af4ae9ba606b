"""A trace to give away: nothing in it names a text, a person or a file."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.edit.pieces import Progress, pieces, whole_or_nothing
from tracekit.notes import is_about_steps
from tracekit.rows import UNUSED
from tracekit.stats.order import dense
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


def anonymise(
    trace: Trace,
    output: str | Path,
    *,
    model: str | None = None,
    relabel: np.random.Generator | None = None,
    progress: Progress = lambda rows: None,
) -> Trace:
    """Write `trace` without token ids, the digest of its prompts, its seed, and notes on anything but steps.

    Requests are numbered from 0 in order of appearance. `model` replaces the model's name, revision and configuration.
    `relabel` draws new numbers for each layer's experts, logits and lookahead with them: who holds the model can then
    no longer read tokens off the experts they chose. Which rows share experts stays as it was, and so does every replay
    whose policy does not look at an expert's number; lengths of prompts and answers stay, too.

    Raises TraceError when `output` exists or the trace is damaged.
    """
    manifest = trace.manifest
    told = "experts relabelled" if relabel is not None else "experts as the model numbers them"
    base = msgspec.structs.replace(
        manifest,
        model=manifest.model if model is None else type(manifest.model)(id=model, family=manifest.model.family),
        prompts_sha256=None,
        seed=None,
        notes=[*filter(is_about_steps, manifest.notes), f"anonymised: no token ids, {told}"],
        tokens=0,
        requests=0,
        steps=0,
        shards=[],
        complete=False,
    )
    labels = None if relabel is None else _labels(manifest.experts_per_layer, trace.num_experts, relabel)
    request, _ = dense(trace.request)
    output, first = Path(output), 0
    with whole_or_nothing(output) as aside, TraceWriter(aside, base) as writer:
        for piece in pieces(trace):
            columns = dict(piece.columns)
            columns |= {"request": request[first : first + piece.rows], "token_id": -1}
            if labels is not None:
                columns |= _relabelled(columns, labels)
            writer.append(**columns)
            writer.flush()
            first += piece.rows
            progress(piece.rows)
        writer.finish()
    return Trace.open(output)


def _labels(experts_per_layer: list[int], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """New numbers, [layers, experts]: an order of each layer's own experts."""
    labels = np.tile(np.arange(most), (len(experts_per_layer), 1))
    for layer, experts in enumerate(experts_per_layer):
        labels[layer, :experts] = rng.permutation(experts)
    return labels


def _relabelled(columns: dict[str, Any], labels: NDArray[np.int64]) -> dict[str, Any]:
    layers = len(labels)
    experts = columns["experts"].astype(np.int64)
    unused = experts == UNUSED
    new = labels[np.arange(layers)[:, None], np.where(unused, 0, experts)]
    # Where a new number's scores were: the inverse of the labels.
    old = np.argsort(labels, axis=1)
    found: dict[str, Any] = {"experts": np.where(unused, UNUSED, new)}
    if columns.get("logits") is not None:
        found["logits"] = np.take_along_axis(columns["logits"], old[None], axis=2)
    found["lookahead"] = {
        distance: np.take_along_axis(values, old[None, distance:], axis=2)
        for distance, values in columns["lookahead"].items()
    }
    return found
