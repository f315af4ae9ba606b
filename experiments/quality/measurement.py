"""A measurement of quality: what plans cost in how well one model predicts one text. No torch is needed to read it.

Loss is what bits per byte grow by, as a share of the unaltered model's: it does not depend on the tokenizer, and it is
a ratio of sums over documents, whose interval `experiments.statistics.interval` knows.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from engine.plan.plan import Plan, plan_from_dict
from engine.plan.tables import Scalar, WeightsPlan
from experiments.quality.quality_key import is_stored_only, quality_key
from experiments.statistics.interval import fewest_requests, interval, ratio_of
from tracekit.errors import StudyError
from tracekit.opening import read_file

RESULT = "quality.json"
MOST_BYTES = 256 << 20
STORED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""A format's word by the type of torch that it is."""


class Estimate(msgspec.Struct, frozen=True):
    """A figure and its interval over documents; None: too few documents for one that would hold."""

    value: float
    low: float | None = None
    high: float | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model: a `digest` of configuration and weights, the format they are `stored` in, the type of computing."""

    name: str
    digest: str
    family: str
    stored: str
    dtype: str


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """The text, and documents that were left out: pairs of a name and the name of the one with the same text."""

    digest: str
    documents: int
    bytes: int
    tokens: int
    counted_once: list[tuple[str, str]]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How text was read: tokens of a window, tokens of a pass, and where."""

    window: int
    chunk: int
    device: str


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """How well text is predicted; perplexity is per token."""

    bits_per_byte: float
    perplexity: float


class ByDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's sums over each document's tokens [documents]."""

    nats: list[float]
    kl_nats: list[float]
    agreed: list[int]


class Documents(msgspec.Struct, frozen=True, kw_only=True):
    """Each document, and the nats that it took the unaltered model [documents]."""

    id: list[str]
    digest: list[str]
    bytes: list[int]
    tokens: list[int]
    nats: list[float]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one plan costs, against the unaltered model on the same documents.

    `loss` and `perplexity_loss` are shares of the unaltered model's figure; `agreement` is the share of tokens at which
    both would choose the same greedily; `kl_divergence` is in nats per token.
    """

    name: str
    plan: dict[str, dict[str, Scalar]]
    weights: WeightsPlan
    expert_bytes: int
    bits_per_parameter: float
    bits_per_byte: float
    perplexity: float
    loss: Estimate
    perplexity_loss: Estimate
    agreement: Estimate
    kl_divergence: Estimate
    by_document: ByDocument


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, quality.json."""

    schema: Literal[1] = 1
    kind: Literal["quality"]
    model: Model
    text: Text
    reading: Way
    level: float
    unaltered: Predicted
    plans: list[Measured]
    documents: Documents
    provenance: dict[str, str]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(msgspec.to_builtins(self), indent=1, allow_nan=False) + "\n"

    def losses(self) -> "Losses":
        """What is known of any plan's loss."""
        measured = {quality_key(plan_from_dict(one.plan)): one.loss for one in reversed(self.plans)}
        return Losses(measured, (None, self.model.stored, "fp32"))

    @property
    def said(self) -> str:
        """What was measured, in words."""
        count = self.text.documents
        return f"{self.model.name} on {count:,} document{'' if count == 1 else 's'}, {self.text.tokens:,} tokens"


class Losses:
    """The losses of plans by what of them alters a model (`quality_key`); `same`: formats that alter nothing."""

    def __init__(self, measured: Mapping[str, Estimate], same: Sequence[str | None]) -> None:
        self._measured, self._same = measured, same

    def of(self, plan: Plan) -> Estimate | None:
        """The loss of a plan: as measured; none where nothing of it alters the model; None: not measured."""
        found = self._measured.get(quality_key(plan))
        if found is None and is_stored_only(plan):
            stored = (plan.weights.experts, plan.weights.attention)
            return Estimate(0.0, 0.0, 0.0) if all(word in self._same for word in stored) else None
        return found


def predicted(documents: Documents, nats: Sequence[float]) -> Predicted:
    """Bits per byte and perplexity, from the nats that each document took."""
    whole = math.fsum(nats)
    return Predicted(
        bits_per_byte=whole / math.log(2) / sum(documents.bytes), perplexity=_exp(whole / sum(documents.tokens))
    )


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of `Measured` that compare."""

    loss: Estimate
    perplexity_loss: Estimate
    agreement: Estimate
    kl_divergence: Estimate


def compared(documents: Documents, found: ByDocument, level: float) -> Comparison:
    """A plan against the unaltered model, paired by document."""
    plain, tokens = np.array(documents.nats), np.array(documents.tokens, np.float64)
    more = np.array(found.nats) - plain
    per_token = estimate(more, tokens, level)
    ends = [None if one is None else _exp(one) - 1 for one in (per_token.low, per_token.high)]
    return Comparison(
        loss=estimate(more, plain, level),
        perplexity_loss=Estimate(math.expm1(per_token.value), *ends),
        agreement=_within(estimate(np.array(found.agreed, np.float64), tokens, level), 0.0, 1.0),
        kl_divergence=_within(estimate(np.array(found.kl_nats), tokens, level), 0.0, math.inf),
    )


def estimate(parts: np.ndarray, wholes: np.ndarray, level: float) -> Estimate:
    """The ratio of the sums of `parts` and `wholes` [documents], and its interval where so few documents give one.

    Documents on which nothing differs do not tell how much does.
    """
    if not parts.any():
        return Estimate(0.0, 0.0, 0.0)
    ratio = ratio_of(parts, wholes)
    effective = min(float(ratio.effective), int((parts != 0).sum()))
    if effective < fewest_requests(level):
        return Estimate(float(ratio.value))
    low, high = interval(ratio, level)
    return Estimate(float(ratio.value), float(low), float(high))


def _within(found: Estimate, least: float, most: float) -> Estimate:
    """The interval as far as the figure can go."""
    ends = [None if end is None else min(max(end, least), most) for end in (found.low, found.high)]
    return Estimate(found.value, *ends)


def _exp(value: float) -> float:
    """e to the value; as much as a number can be where it is more."""
    return math.exp(min(value, 700.0))


def load_measurement(path: str | os.PathLike[str]) -> Measurement:
    """What `tracekit quality --output` wrote: its quality.json, or the folder that holds it. Raises StudyError."""
    place = Path(path)
    place = place / RESULT if place.is_dir() else place
    try:
        return msgspec.json.decode(read_file(place, MOST_BYTES), type=Measurement)
    except FileNotFoundError:
        raise StudyError(f"no measurement of quality at {place}: tracekit quality makes one") from None
    except OSError as problem:
        raise StudyError(f"quality {place} cannot be read: {problem.strerror or problem}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise StudyError(f"{place} is not what tracekit quality writes: {problem}") from None


def parse_loss(value: str | float) -> float:
    """A floor as it is written, "0.5 %" or 0.005, as a share. Raises StudyError."""
    share = None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        share = float(found[1]) / 100 if found else None
    elif not isinstance(value, bool):
        share = float(value)
    if share is None or not 0 <= share < 1:
        also = "" if isinstance(value, str) else " or 0.005"
        raise StudyError(f'a loss of quality of {value!r}: give a share of bits per byte, such as "0.5 %"{also}')
    return share


def loss_text(found: Estimate | None) -> str:
    """A loss as people read it: `0.31 % [0.27, 0.36]`."""
    if found is None:
        return "-"
    words = f"{_percent(found.value)} %"
    if found.low is None or found.high is None:
        return words
    return f"{words} [{_percent(found.low)}, {_percent(found.high)}]"


def _percent(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:.2f}"  # no minus before 0.00
