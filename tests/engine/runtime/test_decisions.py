"""The engine decides what a replay of the recorded routing decides, event for event."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.decisions.run import iter_decisions
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from tests.engine.runtime.models import FAMILIES, PROMPT, MakeModel, answer
from tests.helpers.traces import make_trace
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
from tracekit.recorder.collector import RoutingCollector  # noqa: E402  # needs torch

PLANS: dict[str, dict[str, Any]] = {
    "lru": {"cache": {"capacity": "2/layer"}},
    "global": {"cache": {"capacity": "7"}, "eviction": {"policy": "lfu"}},
    "bytes": {"cache": {"capacity": "20kB"}, "prefetch": {"predictor": "gate", "count": 3}},
    "gate": {"cache": {"capacity": "3/layer"}, "prefetch": {"predictor": "gate", "count": 2, "staging": 1}},
    "far": {"cache": {"capacity": "25%"}, "prefetch": {"predictor": "gate", "distance": 2, "target": "cache"}},
    "pinned": {"cache": {"capacity": "60%"}, "placement": {"pinned": "layers 1"}, "prefetch": {"predictor": "gate"}},
    "by layer": {"cache": {"capacity": "2/layer; layers 0,2: 4"}, "eviction": {"policy": "lfu"}},
}


def record(
    model: Any,
    path: Path,
    run: Callable[[], object],
    rows: np.ndarray | None = None,
    distances: tuple[int, ...] = (1, 2),
) -> Trace:
    """The trace of what `run` has the model do; `rows` are the rows of each pass that count."""
    with RoutingCollector(model, lookahead=distances) as collector:
        run()
        passes = [collector.take(rows) for _ in range(collector.waiting)]
    return make_trace(
        path,
        np.concatenate([routing.experts for routing in passes]),
        num_experts=[layer.num_experts for layer in collector.layers],
        step=np.repeat(np.arange(len(passes)), [len(routing.experts) for routing in passes]),
        weights=np.concatenate([routing.weights for routing in passes]),
        lookahead={d: np.concatenate([routing.lookahead[d] for routing in passes]) for d in distances},
    )


def assert_decided_alike(log: Any, trace: Any, spec: Any) -> None:
    pieces = [events for _, events in iter_decisions(trace, spec)]
    for name in ("visit", "kind", "expert", "slot"):
        replayed = np.concatenate([getattr(events, name) for events in pieces])
        np.testing.assert_array_equal(getattr(log, name), replayed, err_msg=name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_equals_the_replay_of_the_unoffloaded_models_trace(
    family: str, plan: str, make_model: MakeModel, tmp_path: Path
) -> None:
    plain = make_model(family)
    trace = record(plain, tmp_path / "t.trace", lambda: answer(plain))
    model = offload(make_model(family), plan_from_dict(PLANS[plan]))
    with offloaded(model) as state:
        answer(model)
        assert_decided_alike(state.log, trace, state.spec)
        first = state.log
        state.reset()
        assert len(state.log.kind) == 0
        answer(model)
        assert first.rows() == state.log.rows()


def test_padding_is_not_in_the_log(make_model: MakeModel, tmp_path: Path) -> None:
    """Recorder and engine leave out the same rows of a left-padded batch, for demand and for lookahead."""
    model = offload(make_model("olmoe", "float32"), plan_from_dict(PLANS["gate"]))
    ids = torch.tensor([[0, 0, 0, *PROMPT[:5]], PROMPT[:8]])
    mask = (torch.arange(8) >= torch.tensor([[3], [0]])).long()
    with offloaded(model) as state, torch.inference_mode():
        rows = np.flatnonzero(mask.numpy())
        trace = record(model, tmp_path / "t.trace", lambda: model(ids, attention_mask=mask), rows)
        assert_decided_alike(state.log, trace, state.spec)
