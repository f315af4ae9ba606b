"""What weight formats lose in quality, from a file that was measured: format -> loss, as a share.

Three kinds of JSON are read:

- what `tracekit quality --output DIR` leaves (`DIR/quality.json`, or the folder itself): of plans that leave attention
  as it is, `loss` by the format of the experts;
- a list of measurements, each with `format` and `bits_per_byte` (or `perplexity`), and perhaps `model`, as
  `python -m experiments.research.quality --json` prints it. The loss is how many more bits a byte of text takes than
  with the model's `bf16` (or how much larger perplexity is);
- an object from format to loss: `{"hqq-4bit": 0.012, "q4_k": 0.02}`.

Where a format was measured several times, as of several models, the largest loss counts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.plan.weights import WeightFormat
from tracekit.errors import PlanError
from tracekit.opening import read_file

MOST_BYTES = 16 << 20
REFERENCES = ("bf16", "fp16", "fp32")
"""Formats that others are held against, the first that was measured."""
RESULT = "quality.json"


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement; what else stands in it is not read."""

    format: str
    model: str = ""
    bits_per_byte: float | None = None
    perplexity: float | None = None


class _Weights(msgspec.Struct, frozen=True):
    experts: str | None = None
    attention: str | None = None


class _Loss(msgspec.Struct, frozen=True):
    value: float


class _Plan(msgspec.Struct, frozen=True):
    """A plan as `tracekit quality` measured it."""

    weights: _Weights
    loss: _Loss


def load_quality(path: Path) -> dict[str, float]:
    """The loss of each format that the file knows, by its whole name (`WeightFormat.name`).

    Raises PlanError, naming the file and what is wrong with it.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        given: Any = msgspec.json.decode(read_file(path, MOST_BYTES))
    except OSError as problem:
        raise PlanError(f"--quality {path}: {problem.strerror or problem}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise PlanError(f"--quality {path} is no JSON: {problem}") from None
    try:
        if isinstance(given, list):
            return _losses(path, msgspec.convert(given, list[_Row]))
        if isinstance(given, dict) and isinstance(given.get("plans"), list):
            plans = msgspec.convert(given["plans"], list[_Plan])
            rows = [(one.weights.experts, one.loss.value) for one in plans if one.weights.attention is None]
        else:
            rows = list(msgspec.convert(given, dict[str, float]).items())
    except msgspec.ValidationError as problem:
        raise PlanError(
            f'--quality {path}: {problem}; give what tracekit quality measured, or {{"hqq-4bit": 0.012, ...}}'
        ) from None
    return _checked(path, [(word, loss) for word, loss in rows if word is not None])


def _losses(path: Path, rows: list[_Row]) -> dict[str, float]:
    of_model: dict[str, dict[str, _Row]] = {}
    for row in rows:
        of_model.setdefault(row.model, {})[row.format] = row
    found: list[tuple[str, float]] = []
    for model, measured in of_model.items():
        base = next((measured[word] for word in REFERENCES if word in measured), None)
        if base is None:
            where = f" of {model}" if model else ""
            raise PlanError(f"--quality {path}: nothing to hold formats{where} against: measure bf16, too")
        for word, row in measured.items():
            loss = _worse(row.bits_per_byte, base.bits_per_byte)
            if loss is None:
                loss = _worse(row.perplexity, base.perplexity)
            if loss is not None:
                found.append((word, loss))
    return _checked(path, found)


def _worse(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def _checked(path: Path, losses: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Losses by the whole names of formats, at least 0: what a format seems to gain is noise."""
    found: dict[str, float] = {}
    for word, loss in losses:
        name = WeightFormat.parse(word).name
        if not -1 < loss < float("inf"):
            raise PlanError(f"--quality {path}: a loss of {loss} for {word}: give a share, such as 0.02")
        found[name] = max(found.get(name, 0.0), loss)
    if not found:
        raise PlanError(f"--quality {path} says nothing of any format")
    return found


def parse_loss(text: str | None) -> float | None:
    """The share that `2%` or `0.02` says. PlanError for anything else."""
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise PlanError(f"--quality-loss {text!r} is no share: write 2% or 0.02")
    return share
