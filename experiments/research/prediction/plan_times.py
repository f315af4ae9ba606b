"""Measuring plans on a trace: time by request, and how much of the demand was foreseen."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from engine.hardware import load_hardware
from engine.plan.plan import plan_from_dict
from engine.replay.passes import Replayed
from engine.replay.replay import replay
from engine.replay.result import Result
from experiments.research.prediction.recordings import Setting
from experiments.statistics.request_shares import RequestShares
from tracekit.rows import DECODE
from tracekit.trace import Trace

HARDWARE = "rtx3060"

Keys = Mapping[str, str | int | float | bool]
"""Of a plan's table."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan's replay, and what each request's decoding took [requests], in nanoseconds; of steps [decode steps]."""

    result: Result
    by_request: np.ndarray
    by_step: np.ndarray

    @property
    def rate(self) -> float:
        """Decode tokens per second."""
        assert self.result.time is not None and self.result.time.tokens_per_second is not None
        return self.result.time.tokens_per_second

    @property
    def hit_ratio(self) -> float:
        """Of decode steps."""
        return self.result.phases.decode.hit_ratio


def measure(trace: Trace, setting: Setting, eviction: Keys, prefetch: Keys, *, free: bool = False) -> Measured:
    """Replay one plan on the modelled machine; `free`: as if asking a predictor took no fixed time."""
    requests, kept, machine = RequestShares.of(trace), [], load_hardware(HARDWARE)
    if free:
        overhead = msgspec.structs.replace(machine.overhead, per_prediction_ns=0)
        machine = machine.with_engine(msgspec.structs.replace(machine.engine, overhead=overhead))
    tables = {
        "cache": {"capacity": setting.capacity},
        "eviction": dict(eviction),
        "prefetch": dict(prefetch),
        "weights": {"experts": setting.experts, "attention": "hqq-4bit"},
    }

    def keep(done: Replayed) -> None:
        kept.append(done.step_ns)

    result = replay(trace, plan_from_dict(tables), machine, model_shape=setting.shape, bounds=False, on_done=keep)
    assert result.time is not None
    of_step = np.rint(kept[0][requests.steps.phase == DECODE] * result.time.scale)
    return Measured(result, requests.of_each(kept[0], result.time.scale), of_step)


def foreseen(trace: Trace, prefetch: Keys, count: int, distance: int = 1) -> tuple[float, float]:
    """Recall and precision of a prefetcher's first `count` suggestions, of decode steps, whatever is resident.

    With an empty cache every suggestion is loaded into a staging buffer, and hits are what was suggested rightly.
    """
    tables = {
        "cache": {"capacity": "0/layer"},
        "prefetch": {**prefetch, "distance": distance, "count": count, "staging": distance * count + 1},
    }
    decode = replay(trace, plan_from_dict(tables), bounds=False).phases.decode
    reachable = decode.lookups * (trace.layers - distance) / trace.layers
    return decode.hits_by.prefetch / reachable, decode.hits_by.prefetch / max(decode.prefetches, 1)
