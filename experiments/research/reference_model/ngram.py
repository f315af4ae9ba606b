"""Byte n-gram models: the baselines that a language model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

LONGEST_CONTEXT = 3  # bytes; with the predicted byte they fill a uint32 key
BEFORE_TEXT = b"\0" * LONGEST_CONTEXT  # the context of a text's first byte


@dataclass(frozen=True, slots=True)
class _Order:
    """Counts of one context length: of each seen (context, byte), and per context in all and distinct."""

    grams: Keys  # sorted
    counts: Counts
    contexts: Keys  # sorted
    totals: Counts
    distinct: Counts


@dataclass(frozen=True, slots=True)
class ByteModel:
    """Interpolated byte n-gram model with Witten-Bell weights (Witten & Bell 1991, method C).

    With d the number of distinct bytes seen after the context, P(b | context) is (count(context b) + d P(b |
    shorter context)) / (count(context) + d), down to the uniform distribution over 256 bytes. Order 0 is the
    byte unigram.
    """

    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, texts: Sequence[bytes], order: int = LONGEST_CONTEXT) -> ByteModel:
        """Count all contexts of up to `order` bytes (at most `LONGEST_CONTEXT`)."""
        if not 0 <= order <= LONGEST_CONTEXT:
            raise ValueError(f"order must be 0 to {LONGEST_CONTEXT}, not {order}")
        keys = _keys(texts)
        return cls(tuple(_count(keys, length) for length in range(order + 1)))

    def bits(self, texts: Sequence[bytes]) -> float:
        """The bits that coding `texts` takes, each from its own beginning."""
        keys = _keys(texts)
        probability = np.full(len(keys), 1 / 256)
        for length, order in enumerate(self.orders):
            grams = _last_bytes(keys, length + 1)
            count = _lookup(order.grams, order.counts, grams)
            total = _lookup(order.contexts, order.totals, grams >> np.uint32(8))
            distinct = _lookup(order.contexts, order.distinct, grams >> np.uint32(8))
            seen = np.maximum(total + distinct, 1)
            probability = np.where(total > 0, (count + distinct * probability) / seen, probability)
        return float(-np.log2(probability).sum())


def _keys(texts: Sequence[bytes]) -> Keys:
    """Each byte of each text behind the three before it, as one big-endian number."""
    stream = np.frombuffer(b"".join(BEFORE_TEXT + text for text in texts), dtype=np.uint8)
    lengths = np.array([len(text) + LONGEST_CONTEXT for text in texts])
    is_text = np.ones(len(stream), dtype=bool)
    for i in range(LONGEST_CONTEXT):
        is_text[np.cumsum(lengths) - lengths + i] = False
    wide = stream.astype(np.uint32)
    keys = wide.copy()
    for back in range(1, LONGEST_CONTEXT + 1):
        keys[back:] |= wide[:-back] << np.uint32(8 * back)
    return keys[is_text]


def _last_bytes(keys: Keys, count: int) -> Keys:
    return keys & np.uint32(256**count - 1)


def _count(keys: Keys, length: int) -> _Order:
    grams, counts = np.unique(_last_bytes(keys, length + 1), return_counts=True)
    contexts, first, distinct = np.unique(grams >> np.uint32(8), return_index=True, return_counts=True)
    return _Order(grams, counts, contexts, np.add.reduceat(counts, first), distinct)


def _lookup(keys: Keys, values: Counts, wanted: Keys) -> Counts:
    """The value at each wanted key, 0 where the key is absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
