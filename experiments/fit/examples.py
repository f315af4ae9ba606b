"""What predictors are fitted to: the features that they will see when they work, and what really came."""

from dataclasses import dataclass

import numpy as np

from policies.learned.arithmetic import UNIT
from policies.learned.features import RATES, Piece, width
from policies.learned.verdict import log2_steps
from tracekit.demand import step_starts
from tracekit.errors import PolicyError
from tracekit.rows import UNUSED
from tracekit.shards import installed_memory
from tracekit.trace import Trace

FAR = 64
"""Steps until the next use are cut off at this."""
MOST_BYTES = 2 << 30
STEPS = 512
MOST_TOKEN_ID = 1 << 24
"""Many times any vocabulary: an artefact holds a number for each id."""


@dataclass(frozen=True, slots=True)
class Data:
    """Examples in the order of the trace.

    features f32 [examples, sources, features], of 1.0 (not of units); token i64 [examples], rows of an embedding;
    wanted f32 [examples, sources, experts]: whether the expert was chosen, or for eviction log2 of the steps until its
    next use; counts bool [examples, sources, experts] says which of them are to be learned; request [examples].
    """

    features: np.ndarray
    token: np.ndarray
    wanted: np.ndarray
    counts: np.ndarray
    request: np.ndarray


def vocabulary(trace: Trace, most: int) -> np.ndarray:
    """The index of an embedding: index[token id + 1] is a row, 0 for tokens that are not among the `most` frequent.

    PolicyError where it would take gigabytes.
    """
    known = trace.token_id[trace.token_id >= 0]
    if known.max(initial=-1) > MOST_TOKEN_ID:
        raise PolicyError(
            f"{trace.path} has token ids up to {known.max()}: at most {MOST_TOKEN_ID} can be learned from"
        )
    ids, counts = np.unique(known, return_counts=True)
    kept = np.sort(ids[np.argsort(-counts, kind="stable")[:most]])
    index = np.zeros(int(ids.max(initial=-1)) + 2, np.int64)
    index[kept + 1] = np.arange(1, len(kept) + 1)
    return index


def check_readable(blocks: tuple[str, ...], *, by_token: bool, trace: Trace, distance: int) -> None:
    """Raise PolicyError unless the trace holds what a predictor reads: its `blocks`, and token ids if `by_token`."""
    if "lookahead" in blocks and f"lookahead-{distance}" not in trace.kinds:
        raise PolicyError(
            f"this predictor reads lookahead at distance {distance}, which {trace.path} does not hold: record with "
            f"--lookahead {distance}, or fit one that does not read it"
        )
    if "weights" in blocks and not trace.has_weights:
        raise PolicyError(f"this predictor reads gate weights, which {trace.path} does not hold: fit one that does not")
    unknown = np.setdiff1d(trace.request, trace.request[trace.token_id >= 0]) if by_token else np.zeros(0, np.int32)
    if len(unknown):
        of = "" if len(unknown) == trace.manifest.requests else f" of request {unknown[0]}"
        raise PolicyError(
            f"this predictor reads token ids, which {trace.path} does not hold{of}: fit one that does not read them"
        )


def make_data(trace: Trace, blocks: tuple[str, ...], distance: int, index: np.ndarray) -> Data:
    """Examples of a whole trace that has what `blocks` read; distance 0 is for eviction, an example per step."""
    own, layers, experts = distance == 0, trace.layers, trace.num_experts
    lookahead = f"lookahead-{distance}" if "lookahead" in blocks else None
    starts, sources = step_starts(trace.step), layers - distance
    wide = sum(width(block, experts) for block in blocks)
    examples = len(starts) - 1 if own else trace.tokens
    each = 4 * sources * (wide + experts) + sources * experts
    # The last examples, where there are too many: the memory of earlier steps is then as full as it will be.
    skipped = max(0, examples - MOST_BYTES // max(each, 1))
    found: list[list[np.ndarray]] = [[], [], [], [], []]
    check_size(trace, len(starts) - 1 if own else 0, max(1, examples - skipped) * each)
    memory = np.zeros((layers, len(RATES), experts))
    until = steps_until_next(trace, starts) if own else np.zeros(0)
    done = 0
    for first in range(0, len(starts) - 1, STEPS):
        edges = starts[first : first + STEPS + 1]
        rows = slice(int(edges[0]), int(edges[-1]))
        chosen = trace.experts_of(rows.start, rows.stop)
        foreseen = None if lookahead is None else trace.dense_of(lookahead, rows.start, rows.stop)

        def ahead(layer: int, foreseen: np.ndarray | None = foreseen) -> np.ndarray:
            assert foreseen is not None
            return foreseen[:, layer, : trace.manifest.experts_per_layer[layer + distance]]

        weights = trace.weights_of(rows.start, rows.stop) if "weights" in blocks else None
        piece = Piece(blocks, own, memory, chosen, weights, ahead, edges - edges[0], experts)
        memory = piece.memory
        count = len(edges) - 1 if own else rows.stop - rows.start
        kept = slice(max(0, skipped - done), None)
        done += count
        if skipped >= done:
            continue
        given = [piece.features(layer, layer + distance)[kept] for layer in range(sources)]
        found[0].append(np.stack(given, axis=1).astype(np.float32) / UNIT)
        place = edges[:-1] if own else np.arange(rows.start, rows.stop)
        found[1].append(index[(trace.token_id[place[kept]] + 1).clip(0, len(index) - 1)])
        if own:
            steps = until[first : first + count][kept]
            found[2].append(log2_steps(np.minimum(steps, FAR)).astype(np.float32))
            used = np.stack([np.add.reduceat(piece.chosen[m], piece.starts[:-1]) > 0 for m in range(layers)], axis=1)
            found[3].append(used[kept])
        else:
            wanted = np.stack([piece.chosen[layer + distance][kept] > 0 for layer in range(sources)], axis=1)
            both = np.array([piece.real[layer] & piece.real[layer + distance] for layer in range(sources)])
            real = both.T[kept]
            found[2].append(wanted.astype(np.float32))
            exists = np.arange(experts) < np.array(trace.manifest.experts_per_layer)[distance:, None]
            found[3].append(real[:, :, None] & exists)
        found[4].append(trace.request[place[kept]])
    return Data(*(np.concatenate(parts) for parts in found))


def check_size(trace: Trace, steps: int, features: int) -> None:
    """Raise PolicyError if the examples, `features` bytes, and the steps until next uses do not fit into memory."""
    # The examples are kept twice while their pieces are put together.
    needed = 2 * features + steps * trace.layers * trace.num_experts * 8 + trace.tokens * trace.layers * trace.top_k * 2
    if needed > installed_memory() // 2:
        raise PolicyError(
            f"{trace.path}: fitting on it takes {needed / 2**30:.1f} GiB, and this machine has "
            f"{installed_memory() / 2**30:.1f} GiB, half of which may be taken: fit on a part (tracekit slice)"
        )


def steps_until_next(trace: Trace, starts: np.ndarray) -> np.ndarray:
    """Steps from each step until an expert is demanded again, i64 [steps, layers, experts]; FAR if not so soon."""
    steps = len(starts) - 1
    until = np.empty((steps, trace.layers, trace.num_experts), np.int64)
    left = np.full(until.shape[1:], FAR, np.int64)
    layer = np.arange(trace.layers)[None, :, None]
    for step in range(steps - 1, -1, -1):
        until[step] = left
        left = np.minimum(left + 1, FAR)
        chosen = trace.experts[starts[step] : starts[step + 1]]
        used = chosen != UNUSED
        left[np.broadcast_to(layer, chosen.shape)[used], chosen[used]] = 1
    return until
