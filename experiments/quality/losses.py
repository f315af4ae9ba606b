"""What weight formats lose in quality, as a share, where plans are chosen without a trace's model at hand.

Two kinds of JSON are read: what `tracekit quality --output DIR` leaves (the folder, or its quality.json), of which the
plans that alter nothing but how experts are stored count by the format of these; and an object from format to loss,
written by hand for formats that this engine does not run: `{"q4_k": 0.02}`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.plan.plan import plan_from_dict
from engine.plan.weights import WeightFormat
from experiments.quality.measurement import MOST_BYTES, RESULT, load_measurement
from experiments.quality.quality_key import is_stored_only
from tracekit.errors import PlanError
from tracekit.opening import read_file


def load_losses(path: Path) -> dict[str, float]:
    """The loss of each format that the file knows, by its whole name (`WeightFormat.name`).

    Raises PlanError or StudyError, naming the file and what is wrong with it.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        given: Any = msgspec.json.decode(read_file(path, MOST_BYTES))
    except OSError as problem:
        raise PlanError(f"--quality {path}: {problem.strerror or problem}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise PlanError(f"--quality {path} is no JSON: {problem}") from None
    if isinstance(given, dict) and given.get("kind") == "quality":
        plans = load_measurement(path).plans
        losses = [
            (one.weights.experts, one.loss.value)
            for one in plans
            if one.weights.attention is None and is_stored_only(plan_from_dict(one.plan))
        ]
        return _checked(path, [(word, loss) for word, loss in losses if word is not None])
    try:
        return _checked(path, msgspec.convert(given, dict[str, float]).items())
    except msgspec.ValidationError as problem:
        raise PlanError(
            f'--quality {path}: {problem}; give what tracekit quality measured, or {{"q4_k": 0.02, ...}}'
        ) from None


def _checked(path: Path, losses: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Losses by the whole names of formats, at least 0: what a format seems to gain is noise."""
    found: dict[str, float] = {}
    for word, loss in losses:
        if not -1 < loss < float("inf"):
            raise PlanError(f"--quality {path}: a loss of {loss} for {word}: give a share, such as 0.02")
        name = WeightFormat.parse(word).name
        found[name] = max(found.get(name, 0.0), loss)
    if not found:
        raise PlanError(f"--quality {path} says nothing of any format")
    return found
