"""Routing drift: how far two recordings of the same prompts differ, say of two formats, engines or machines.

Tokens are matched by request (in order of appearance) and position. Where token ids are known, a request is compared
up to the first token in which the recordings differ: what comes after answers another text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from tracekit.arrays import F32, F64, I32, I64, U16
from tracekit.edit.pieces import Progress
from tracekit.errors import TraceError
from tracekit.rows import UNUSED, first_appearances
from tracekit.trace import Trace

_Scalar = TypeVar("_Scalar", bound=np.generic)
_BLOCK_LOOKUPS = 1 << 21
_NEVER = np.iinfo(np.int64).max
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


class _Sums(NamedTuple):
    """What is counted over all compared tokens."""

    layers: F64  # [layers]: equal sets, Jaccard indices
    weights: F64  # [layers]: sum of differences, experts in both, largest difference
    ranges: F64  # [ranges of positions]: equal sets, Jaccard indices, tokens
    requests: F64  # [requests]: equal sets, tokens
    first: I64  # [requests]: position, then layer, of the first difference


@dataclass(frozen=True, slots=True)
class _Match:
    """Rows of the same token in both traces, in the order of the first's rows."""

    one: I64
    other: I64
    request: I32  # of the first trace, numbered in order of appearance
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

    sums = _Sums(
        layers=np.zeros((one.layers, 2)),
        weights=np.zeros((one.layers, 3)),
        ranges=np.zeros((len(_EDGES), 3)),
        requests=np.zeros((match.requests, 2)),
        first=np.full((match.requests, 2), _NEVER),
    )
    bucket = np.searchsorted(_EDGES, position, side="right") - 1
    block = max(1, _BLOCK_LOOKUPS // (one.layers * one.top_k))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        mine, its = _gather(one.experts_of, rows[part], block), _gather(other.experts_of, others[part], block)
        my_weights = its_weights = np.zeros((0, 0, 0), np.float32)
        if one.has_weights and other.has_weights:
            my_weights = _gather(one.weights_of, rows[part], block).astype(np.float32)
            its_weights = _gather(other.weights_of, others[part], block).astype(np.float32)
        _compare(mine, its, my_weights, its_weights, request[part], position[part], bucket[part], sums)
        progress(len(mine))
    return _result(one, other, match, len(rows), left_out, token_difference, sums)


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


def _keys(trace: Trace, request: I32) -> I64:
    keys = request.astype(np.int64) << 31 | trace.position
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        number, position = int(twice[0]) >> 31, int(twice[0]) & (2**31 - 1)
        raise TraceError(f"{trace.path}: its request {number} has two tokens at position {position}: cannot be matched")
    return keys


def _token_differences(one: Trace, other: Trace, match: _Match) -> I64:
    """The position at which each request's tokens first differ; beyond any position where they do not."""
    found = np.full(match.requests, _NEVER)
    mine, its = one.token_id[match.one], other.token_id[match.other]
    differ = (mine != its) & (mine >= 0) & (its >= 0)
    np.minimum.at(found, match.request[differ], one.position[match.one][differ].astype(np.int64))
    return found


def _gather(read: Callable[[int, int], NDArray[_Scalar] | None], rows: I64, block: int) -> NDArray[_Scalar]:
    """Some rows of an array column, [rows, layers, k], read in stretches of at most `block` rows."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts = []
    start = 0
    while start < len(ordered):
        low = int(ordered[start])
        end = int(np.searchsorted(ordered, low + block))
        part = read(low, int(ordered[end - 1]) + 1)
        assert part is not None
        parts.append(part[ordered[start:end] - low])
        start = end
    found = np.concatenate(parts)
    out = np.empty_like(found)
    out[order] = found
    return out


def _result(
    one: Trace, other: Trace, match: _Match, compared: int, left_out: int, token_difference: I64, sums: _Sums
) -> Diff:
    layers = one.layers
    numbers = one.request[np.sort(np.unique(one.request, return_index=True)[1])]
    apart, both, largest = sums.weights.T
    return Diff(
        compared=compared,
        only_in_first=one.tokens - len(match.one),
        only_in_second=other.tokens - len(match.one),
        after_token_difference=left_out,
        equal=_share(sums.layers[:, 0].sum(), compared * layers),
        jaccard=_share(sums.layers[:, 1].sum(), compared * layers),
        weight_difference=_share(apart.sum(), both.sum()),
        largest_weight_difference=float(largest.max()) if both.any() else None,
        requests_that_differ=int((sums.first[:, 0] < _NEVER).sum()),
        by_layer=[
            LayerDiff(
                layer=number,
                equal=float(sums.layers[layer, 0] / compared),
                jaccard=float(sums.layers[layer, 1] / compared),
                weight_difference=_share(apart[layer], both[layer]),
            )
            for layer, number in enumerate(one.manifest.moe_layers)
            if compared
        ],
        by_position=[
            RangeDiff(
                first=_EDGES[index],
                last=_EDGES[index + 1] - 1 if index + 1 < len(_EDGES) else int(one.position.max()),
                tokens=int(tokens),
                equal=float(equal / tokens / layers),
                jaccard=float(jaccard / tokens / layers),
            )
            for index, (equal, jaccard, tokens) in enumerate(sums.ranges)
            if tokens
        ],
        by_request=[
            RequestDiff(
                request=int(numbers[request]),
                compared=int(tokens),
                equal=float(equal / tokens / layers) if tokens else None,
                first_routing_difference=int(position) if position < _NEVER else None,
                first_layer=one.manifest.moe_layers[layer] if position < _NEVER else None,
                first_token_difference=int(told) if told < _NEVER else None,
            )
            for request, ((equal, tokens), (position, layer), told) in enumerate(
                zip(sums.requests, sums.first, token_difference, strict=True)
            )
        ],
    )


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


@njit(cache=True)
def _compare(
    mine: U16, its: U16, my_weights: F32, its_weights: F32, request: I32, position: I32, bucket: I64, sums: _Sums
) -> None:
    rows, layers, k = mine.shape
    weighted = my_weights.size > 0
    for row in range(rows):
        owner = request[row]
        sums.requests[owner, 1] += 1
        sums.ranges[bucket[row], 2] += 1
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
                            apart = abs(my_weights[row, layer, slot] - its_weights[row, layer, other])
                            sums.weights[layer, 0] += apart
                            sums.weights[layer, 1] += 1
                            sums.weights[layer, 2] = max(sums.weights[layer, 2], apart)
                        break
            either = used + other_used - both
            equal = 1 if both == either else 0
            jaccard = both / either if either else 1.0
            sums.layers[layer, 0] += equal
            sums.layers[layer, 1] += jaccard
            sums.ranges[bucket[row], 0] += equal
            sums.ranges[bucket[row], 1] += jaccard
            sums.requests[owner, 0] += equal
            if not equal and position[row] < sums.first[owner, 0]:
                sums.first[owner, 0] = position[row]
                sums.first[owner, 1] = layer
