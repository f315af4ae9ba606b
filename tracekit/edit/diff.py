"""Routing drift: how far two recordings of the same prompts differ, say of two formats, engines or machines.

Tokens are matched by request (in order of appearance) and position. Where token ids are known, a request is compared
up to the first token in which the recordings differ: what comes after answers another text.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from tracekit.edit.pieces import Progress
from tracekit.errors import TraceError
from tracekit.rows import UNUSED, first_appearances
from tracekit.trace import Trace

_BLOCK_LOOKUPS = 1 << 21
_EDGES = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)  # of the ranges of positions


class LayerDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One MoE layer, over all compared tokens."""

    layer: int  # model-layer index
    equal: float  # share of tokens with the same set of experts
    jaccard: float  # experts in both over experts in either, mean over tokens
    weight_difference: float | None  # mean absolute difference, over experts in both


class RangeDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of positions `first` to `last`, over all layers."""

    first: int
    last: int
    tokens: int
    equal: float
    jaccard: float


class RequestDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One request; `request` as numbered in the first trace. None where there is no difference."""

    request: int
    compared: int
    equal: float | None
    first_routing_difference: int | None  # position
    first_layer: int | None  # model-layer index of the first layer that differs there
    first_token_difference: int | None  # position


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """How far two recordings differ. Shares are of (token, layer) pairs."""

    compared: int  # tokens
    only_in_first: int
    only_in_second: int
    after_token_difference: int  # tokens left out, for their texts differ already
    equal: float | None
    jaccard: float | None
    weight_difference: float | None
    largest_weight_difference: float | None
    requests_that_differ: int
    by_layer: list[LayerDiff]
    by_position: list[RangeDiff]
    by_request: list[RequestDiff]


@dataclass(frozen=True, slots=True)
class _Match:
    """Rows of the same token in both traces, in the order of the first's rows."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    request: NDArray[np.int32]  # of the first trace, numbered in order of appearance
    requests: int


def diff(one: Trace, other: Trace, *, progress: Progress = lambda rows: None) -> Diff:
    """Compare two traces of the same model and prompts, block by block.

    Raises TraceError when they are of different shapes, or when a request has two tokens at one position.
    """
    _check(one, other)
    match = _match(one, other)
    token_difference = _token_differences(one, other, match)
    position = one.position[match.one]
    kept = position < token_difference[match.request]
    left_out = int(len(kept) - kept.sum())
    rows, others, request, position = match.one[kept], match.other[kept], match.request[kept], position[kept]

    weighted = one.has_weights and other.has_weights
    counts = np.zeros((one.layers, 2))  # equal sets, Jaccard indices
    weights = np.zeros((one.layers, 3))  # sum of differences, experts in both, largest difference
    bucket = np.searchsorted(_EDGES, position, side="right") - 1
    by_position = np.zeros((len(_EDGES), 3))
    by_request = np.zeros((match.requests, 2))  # equal sets, tokens
    first = np.full((match.requests, 2), np.iinfo(np.int64).max)  # position, then layer, of the first difference
    block = max(1, _BLOCK_LOOKUPS // (one.layers * one.top_k))
    nothing = np.zeros((0, 0, 0), np.float32)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        mine, its = _gather(one, "experts", rows[part], block), _gather(other, "experts", others[part], block)
        mine_weights, its_weights = nothing, nothing
        if weighted:
            mine_weights = _gather(one, "weights", rows[part], block).astype(np.float32)
            its_weights = _gather(other, "weights", others[part], block).astype(np.float32)
        _compare(
            mine,
            its,
            mine_weights,
            its_weights,
            request[part],
            position[part],
            bucket[part],
            counts,
            weights,
            by_position,
            by_request,
            first,
        )
        progress(len(mine))
    return _result(
        one, other, match, rows, left_out, token_difference, weighted, counts, weights, by_position, by_request, first
    )


def _check(one: Trace, other: Trace) -> None:
    for name in ("moe_layers", "experts_per_layer", "top_k"):
        if getattr(one.manifest, name) != getattr(other.manifest, name):
            raise TraceError(
                f"cannot compare {one.path} and {other.path}: their {name} differ; compare recordings of one model"
            )


def _match(one: Trace, other: Trace) -> _Match:
    numbers, requests = first_appearances(one.request)
    keys = _keys(one, numbers)
    its_keys = _keys(other, first_appearances(other.request)[0])
    order = np.argsort(its_keys, kind="stable")
    place = np.minimum(np.searchsorted(its_keys[order], keys), max(0, len(order) - 1))
    there = its_keys[order][place] == keys if len(order) else np.zeros(len(keys), np.bool_)
    rows = np.flatnonzero(there)
    return _Match(rows, order[place[rows]] if len(order) else rows, numbers[rows], requests)


def _keys(trace: Trace, request: NDArray[np.int32]) -> NDArray[np.int64]:
    keys = request.astype(np.int64) << 31 | trace.position
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        number, position = int(twice[0]) >> 31, int(twice[0]) & (2**31 - 1)
        raise TraceError(f"{trace.path}: its request {number} has two tokens at position {position}: cannot be matched")
    return keys


def _token_differences(one: Trace, other: Trace, match: _Match) -> NDArray[np.int64]:
    """The position at which each request's tokens first differ; beyond any position where they do not."""
    found = np.full(match.requests, np.iinfo(np.int64).max)
    mine, its = one.token_id[match.one], other.token_id[match.other]
    differ = (mine != its) & (mine >= 0) & (its >= 0)
    np.minimum.at(found, match.request[differ], one.position[match.one][differ].astype(np.int64))
    return found


def _gather(trace: Trace, column: str, rows: NDArray[np.int64], block: int) -> NDArray[np.generic]:
    """Any rows of an array column, read in stretches of at most `block` rows."""
    read = trace.experts_of if column == "experts" else trace.weights_of
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    out: NDArray[np.generic] | None = None
    start = 0
    while start < len(ordered):
        low = int(ordered[start])
        end = int(np.searchsorted(ordered, low + block))
        part = read(low, int(ordered[end - 1]) + 1)
        assert part is not None
        if out is None:
            out = np.empty((len(rows), *part.shape[1:]), part.dtype)
        out[order[start:end]] = part[ordered[start:end] - low]
        start = end
    return np.zeros((0, trace.layers, trace.top_k)) if out is None else out


def _result(
    one: Trace,
    other: Trace,
    match: _Match,
    rows: NDArray[np.int64],
    left_out: int,
    token_difference: NDArray[np.int64],
    weighted: bool,
    counts: NDArray[np.float64],
    weights: NDArray[np.float64],
    by_position: NDArray[np.float64],
    by_request: NDArray[np.float64],
    first: NDArray[np.int64],
) -> Diff:
    compared, layers = len(rows), one.layers
    pairs = compared * layers
    never = np.iinfo(np.int64).max
    numbers = one.request[np.sort(np.unique(one.request, return_index=True)[1])]
    both = weights[:, 1].sum()
    return Diff(
        compared=compared,
        only_in_first=one.tokens - len(match.one),
        only_in_second=other.tokens - len(match.one),
        after_token_difference=left_out,
        equal=float(counts[:, 0].sum() / pairs) if pairs else None,
        jaccard=float(counts[:, 1].sum() / pairs) if pairs else None,
        weight_difference=float(weights[:, 0].sum() / both) if weighted and both else None,
        largest_weight_difference=float(weights[:, 2].max()) if weighted and both else None,
        requests_that_differ=int((first[:, 0] < never).sum()),
        by_layer=[
            LayerDiff(
                layer=number,
                equal=float(counts[layer, 0] / compared),
                jaccard=float(counts[layer, 1] / compared),
                weight_difference=float(weights[layer, 0] / weights[layer, 1])
                if weighted and weights[layer, 1]
                else None,
            )
            for layer, number in enumerate(one.manifest.moe_layers)
            if compared
        ],
        by_position=[
            RangeDiff(
                first=_EDGES[index],
                last=_EDGES[index + 1] - 1 if index + 1 < len(_EDGES) else int(one.position.max()),
                tokens=int(by_position[index, 2]),
                equal=float(by_position[index, 0] / by_position[index, 2] / layers),
                jaccard=float(by_position[index, 1] / by_position[index, 2] / layers),
            )
            for index in np.flatnonzero(by_position[:, 2])
        ],
        by_request=[
            RequestDiff(
                request=int(numbers[request]),
                compared=int(by_request[request, 1]),
                equal=float(by_request[request, 0] / by_request[request, 1] / layers)
                if by_request[request, 1]
                else None,
                first_routing_difference=int(first[request, 0]) if first[request, 0] < never else None,
                first_layer=one.manifest.moe_layers[first[request, 1]] if first[request, 0] < never else None,
                first_token_difference=int(token_difference[request]) if token_difference[request] < never else None,
            )
            for request in range(match.requests)
        ],
    )


@njit(cache=True)
def _compare(  # type: ignore[no-untyped-def]
    mine, its, mine_weights, its_weights, request, position, bucket, counts, weights, by_position, by_request, first
):
    rows, layers, k = mine.shape
    weighted = mine_weights.size > 0
    for row in range(rows):
        owner = request[row]
        by_request[owner, 1] += 1
        by_position[bucket[row], 2] += 1
        for layer in range(layers):
            used, other_used, both = 0, 0, 0
            for slot in range(k):
                used += mine[row, layer, slot] != UNUSED
                other_used += its[row, layer, slot] != UNUSED
            for slot in range(k):
                expert = mine[row, layer, slot]
                if expert == UNUSED:
                    continue
                for other in range(k):
                    if its[row, layer, other] == expert:
                        both += 1
                        if weighted:
                            apart = abs(mine_weights[row, layer, slot] - its_weights[row, layer, other])
                            weights[layer, 0] += apart
                            weights[layer, 1] += 1
                            weights[layer, 2] = max(weights[layer, 2], apart)
                        break
            either = used + other_used - both
            equal = 1 if both == either else 0
            jaccard = both / either if either else 1.0
            counts[layer, 0] += equal
            counts[layer, 1] += jaccard
            by_position[bucket[row], 0] += equal
            by_position[bucket[row], 1] += jaccard
            by_request[owner, 0] += equal
            if not equal and position[row] < first[owner, 0]:
                first[owner, 0] = position[row]
                first[owner, 1] = layer
