"""Caches that start anew with each request, warm ones, and prefetching past the last layer: as the replay decides."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from policies.events import EVICT
from tests.engine.runtime.models import PROMPT, MakeModel, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tests.helpers.traces import make_trace
from tracekit.errors import PlanError
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
from tracekit.recorder.generation import Decoding  # noqa: E402  # needs torch

NEXT = {"predictor": "previous-token", "count": 2, "staging": 2, "wrap": True}
PLANS: dict[str, dict[str, Any]] = {
    "reset": {"cache": {"capacity": "2/layer", "reset": "request"}},
    "reset, gate": {"cache": {"capacity": "3/layer", "reset": "request"}, "prefetch": {"predictor": "gate"}},
    "next step": {"cache": {"capacity": "2/layer"}, "prefetch": NEXT},
    "next step, into the cache": {"cache": {"capacity": "3/layer"}, "prefetch": NEXT | {"target": "cache"}},
    "next step, markov": {"cache": {"capacity": "7"}, "prefetch": NEXT | {"predictor": "markov"}},
    "reset, next step": {"cache": {"capacity": "1/layer", "reset": "request"}, "prefetch": NEXT},
    "warm": {"cache": {"capacity": "3/layer", "warm": "WARM"}, "eviction": {"policy": "lfu"}},
    "warm, next step": {"cache": {"capacity": "2/layer", "warm": "WARM"}, "prefetch": NEXT},
}
OTHER = PROMPT[::-1]


def requests_of(model: Any, path: Path) -> Trace:
    """What the un-offloaded model routes for two prompts, one after the other."""
    parts = [
        record(model, path.with_name(f"{number}.trace"), partial(answer, model, prompt))
        for number, prompt in enumerate((PROMPT, OTHER))
    ]
    steps = int(parts[0].step[-1]) + 1
    return make_trace(
        path,
        np.concatenate([part.experts for part in parts]),
        num_experts=parts[0].manifest.experts_per_layer,
        step=np.concatenate([parts[0].step, parts[1].step + steps]),
        request=np.repeat([0, 1], [part.tokens for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        lookahead={d: np.concatenate([part.lookahead(d) for part in parts]) for d in (1, 2)},
    )


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_log_equals_the_replay(family: str, plan: str, make_model: MakeModel, tmp_path: Path) -> None:
    plain = make_model(family)
    trace = requests_of(plain, tmp_path / "t.trace")
    tables = {name: dict(table) for name, table in PLANS[plan].items()}
    if "warm" in tables["cache"]:
        tables["cache"]["warm"] = str(record(plain, tmp_path / "w.trace", lambda: answer(plain, PROMPT[:3])).path)
    model = offload(make_model(family), plan_from_dict(tables))
    with offloaded(model) as state:
        first = answer(model)
        assert same(first, answer(plain))
        assert same(answer(model, OTHER), answer(plain, OTHER))
        assert_decided_alike(state.log, trace, state.spec)
        if "next step" in plan and "warm" not in plan:  # which may have been prefetched before
            prefetched = int((state.log.kind == 5).sum())
            fates = state.prefetches
            assert fates["useful"] + fates["late"] + fates["wasted"] == prefetched > 0
        state.reset()
        assert same(first, answer(model))


def test_requests_that_share_a_step_are_refused(make_model: MakeModel) -> None:
    model = offload(make_model("mixtral"), plan_from_dict(PLANS["reset"]))
    with offloaded(model), torch.inference_mode():
        with pytest.raises(PlanError, match=r'cache.reset = "request": 2 requests of a step share a cache'):
            model(input_ids=torch.tensor([PROMPT, PROMPT]))
        assert same(answer(model), answer(make_model("mixtral")))


def test_a_prompt_in_parts_is_one_request(make_model: MakeModel) -> None:
    model = offload(make_model("mixtral"), plan_from_dict({"cache": {"capacity": "100%", "reset": "request"}}))
    with offloaded(model) as state:
        for _ in range(2):
            for _ in Decoding(model, [PROMPT], max_new_tokens=3, stop=frozenset(), chunk=4).passes():
                pass
        events = state.log
        layers = state.spec.layers
        gone = np.unique(events.visit[events.kind == EVICT])
        steps = len(state.log.start[:-1]) // layers
        assert gone.tolist() == [steps // 2 * layers]  # all of it leaves as the second request begins


def test_a_warm_trace_of_another_model_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    other = make_trace(tmp_path / "o.trace", np.zeros((2, 1, 1), np.uint16), num_experts=2)
    plan = plan_from_dict({"cache": {"capacity": "2/layer", "warm": str(other.path)}})
    with pytest.raises(PlanError, match=r"cache.warm: .*o.trace is of 1 MoE layers of 2 experts"):
        offload(make_model("mixtral"), plan)
