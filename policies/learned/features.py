"""What a predictor is told: features of a visit, step by step as an engine has them, or of a whole piece of a trace.

Everything is known when the visit's gate has spoken: this layer's choice and weights, the layers before it, lookahead
logits, and a memory of earlier steps. All of it in whole units (`policies.learned.arithmetic`), from numbers rounded to
half precision as traces hold them.

A prefetcher's features have a row per token, those for eviction one row per visit. Blocks, side by side in this order:

    recent      target layer, earlier steps: decayed share of tokens that chose each expert, at each of RATES
    chosen      1 for each expert that the token chose here (of a visit: share of its tokens)
    weights     the gate weights of those
    earlier     `chosen` of the layer before (0 at the first)
    lookahead   the target layer's gate on this layer's input

For eviction the target layer is the visit's own, and its memory holds this visit already.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from policies.learned.arithmetic import UNIT, Array, bounded, empty_like, whole

BLOCKS = ("recent", "chosen", "weights", "earlier", "lookahead")
RATES = (0, 2, 5)
"""Decay of the memory: each step leaves 1 - 2^-rate of it; 0 keeps the last step only."""
_KEPT = np.array([[1 / (1 << rate)] for rate in RATES])  # powers of two: products are exact
FAR = 64.0
"""Logits are cut off at this."""


def width(block: str, experts: int) -> int:
    """Columns of one block."""
    return experts * (len(RATES) if block == "recent" else 1)


def in_units(values: Array) -> Array:
    """Half-precision numbers as whole units in float64, rounded half up; NaN is -FAR."""
    values = values.astype(np.float64) if isinstance(values, np.ndarray) else values.double()
    return bounded(whole(values * UNIT + 0.5), -FAR * UNIT, FAR * UNIT)


def many_hot(ids: Array, values: Array | None, experts: int) -> Array:
    """[rows, experts]: what each token gave each expert; ids [rows, k], those of `experts` or more are none.

    `values` [rows, k] in units, or None for one UNIT each.
    """
    if isinstance(ids, np.ndarray):
        out = np.zeros((len(ids), experts))
        _many_hot(ids, np.full((1, 1), float(UNIT)) if values is None else values, out)
        return out
    numbers = ids.new_ones(experts).cumsum(0) - 1
    given = (ids[:, :, None] == numbers).double()  # [rows, k, experts]
    return given.sum(1) * UNIT if values is None else (given * values[:, :, None]).sum(1)


@njit(cache=True)
def _many_hot(ids: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    one = values.shape != ids.shape
    for row in range(ids.shape[0]):
        for slot in range(ids.shape[1]):
            if ids[row, slot] < out.shape[1]:
                out[row, ids[row, slot]] += values[0, 0] if one else values[row, slot]


def remembered(memory: Array) -> Array:
    """What `recent` says, from the memory [..., rates, experts]."""
    kept = _KEPT if isinstance(memory, np.ndarray) else memory.new_tensor(_KEPT.tolist())
    return whole(memory * kept)


def remember(memory: Array, share: Array) -> Array:
    """The memory [..., rates, experts] after a step that gave each expert `share` [..., experts]."""
    return memory - remembered(memory) + share[..., None, :]


def share_of(given: Array, rows: int) -> Array:
    """The share of `rows` tokens behind each expert: given [..., experts] is what they gave together."""
    return whole(given / max(rows, 1))


def padded(logits: Array, experts: int) -> Array:
    """Logits [rows, n] in units, with -FAR for experts that this layer does not have: [rows, experts]."""
    found = in_units(logits)
    if found.shape[1] == experts:
        return found
    out = empty_like(found, (len(found), experts))
    out[:] = -FAR * UNIT
    out[:, : found.shape[1]] = found
    return out


def assemble(blocks: tuple[str, ...], known: dict[str, Array], rows: int, like: Array) -> Array:
    """The blocks side by side, f64 [rows, features], beside `like`; what has one row is the same for all."""
    parts = [known[block] for block in blocks]
    joined = empty_like(like, (rows, sum(part.shape[-1] for part in parts)))
    place = 0
    for part in parts:
        joined[:, place : place + part.shape[-1]] = part
        place += part.shape[-1]
    return joined


class Piece:
    """Features of whole steps of a trace at once, layer by layer; `memory` goes on from piece to piece.

    experts [rows, layers, k]; weights the same or None; `ahead(layer)` gives the logits of the layer that lookahead is
    of, [rows, its experts]; starts [steps + 1] rows.
    """

    def __init__(
        self,
        blocks: tuple[str, ...],
        own_layer: bool,
        memory: np.ndarray,
        experts: np.ndarray,
        weights: np.ndarray | None,
        ahead: Callable[[int], np.ndarray],
        starts: np.ndarray,
        num_experts: int,
    ) -> None:
        self.blocks, self.own_layer, self.ahead = blocks, own_layer, ahead
        self.experts, self.weights, self.num_experts = experts, weights, num_experts
        self.step = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        layers, steps = experts.shape[1], len(starts) - 1
        self.chosen = [many_hot(experts[:, layer], None, num_experts) for layer in range(layers)]
        self.real = [(experts[:, layer] < num_experts).any(axis=1) for layer in range(layers)]  # bool [rows]
        self.starts = starts
        self.rows = np.stack([np.add.reduceat(real.astype(np.int64), starts[:-1]) for real in self.real], axis=1)
        self.share = np.stack([self._shared(layer, self.chosen[layer]) for layer in range(layers)], axis=1)
        self.recent = np.empty((steps, layers, len(RATES), num_experts))
        for step in range(steps):
            later = remember(memory, self.share[step])
            self.recent[step] = remembered(later if own_layer else memory)
            memory = later
        self.memory = memory

    def _shared(self, layer: int, given: np.ndarray) -> np.ndarray:
        """The share of each step's tokens, [steps, experts]."""
        total = np.add.reduceat(given, self.starts[:-1])
        return whole(total / np.maximum(self.rows[:, layer], 1)[:, None])  # type: ignore[no-any-return]

    def features(self, layer: int, target: int) -> np.ndarray:
        """f64 [rows, features] at source layer `layer`; for eviction [steps, features]."""
        assert self.weights is not None or "weights" not in self.blocks
        experts, given = self.num_experts, np.empty((0, 0)) if self.weights is None else self.weights
        sources: dict[str, Callable[[], Array]] = {
            "recent": lambda: self.recent[:, target].reshape(len(self.recent), -1),
            "chosen": lambda: self.chosen[layer],
            "weights": lambda: many_hot(self.experts[:, layer], in_units(given[:, layer]), experts),
            "earlier": lambda: self.chosen[layer - 1] if layer else np.zeros_like(self.chosen[0]),
            "lookahead": lambda: padded(self.ahead(layer), experts),
        }
        known = {block: sources[block]() for block in self.blocks}
        if self.own_layer:
            for block in set(known) - {"recent"}:
                known[block] = self._shared(layer, known[block])
            return assemble(self.blocks, known, len(self.recent), self.recent)  # type: ignore[no-any-return]
        if "recent" in known:
            known["recent"] = known["recent"][self.step]
        return assemble(self.blocks, known, len(self.step), self.recent)  # type: ignore[no-any-return]
