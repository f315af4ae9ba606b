"""Caches that start anew with each request, warm ones, and prefetching past the last layer: as the replay decides."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.decisions.placing import place
from engine.decisions.run import iter_decisions
from engine.decisions.saving import held_by
from engine.decisions.spec import cache_spec
from engine.plan.placement import save_placement
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from policies.events import BYPASS, EVICT, LOAD, PREFETCH
from tests.engine.runtime.models import PROMPT, MakeModel, answer, plan_of, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tests.helpers.traces import make_trace
from tracekit.errors import PlanError
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
from tracekit.recorder.generation import Decoding  # noqa: E402  # needs torch

NEXT = {"predictor": "previous-token", "count": 2, "staging": 2, "wrap": True}
PLANS: dict[str, dict[str, Any]] = {
    "reset": {"cache": {"capacity": "2/layer", "warm": "reset"}},
    "reset, gate": {"cache": {"capacity": "3/layer", "warm": "reset"}, "prefetch": {"predictor": "gate"}},
    "next step": {"cache": {"capacity": "2/layer"}, "prefetch": NEXT},
    "next step, into the cache": {"cache": {"capacity": "3/layer"}, "prefetch": NEXT | {"target": "cache"}},
    "next step, markov": {"cache": {"capacity": "7"}, "prefetch": NEXT | {"predictor": "markov"}},
    "reset, next step": {"cache": {"capacity": "1/layer", "warm": "reset"}, "prefetch": NEXT},
    "warm": {"cache": {"capacity": "3/layer", "warm": "WARM"}, "eviction": {"policy": "lfu"}},
    "warm, next step": {"cache": {"capacity": "2/layer", "warm": "WARM"}, "prefetch": NEXT},
}
OTHER = PROMPT[::-1]


def requests_of(model: Any, path: Path, prompts: Sequence[list[int]] = (PROMPT, PROMPT[::-1])) -> Trace:
    """What the un-offloaded model routes for prompts, one after the other."""
    parts = [
        record(model, path.with_name(f"{number}.trace"), partial(answer, model, prompt))
        for number, prompt in enumerate(prompts)
    ]
    steps = np.cumsum([0, *(int(part.step[-1]) + 1 for part in parts)])
    return make_trace(
        path,
        np.concatenate([part.experts for part in parts]),
        num_experts=parts[0].manifest.experts_per_layer,
        step=np.concatenate([part.step + first for part, first in zip(parts, steps, strict=False)]),
        request=np.repeat(np.arange(len(parts)), [part.tokens for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        lookahead={d: np.concatenate([part.lookahead(d) for part in parts]) for d in (1, 2)},
    )


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_log_equals_the_replay(family: str, plan: str, make_model: MakeModel, tmp_path: Path) -> None:
    plain = make_model(family)
    trace = requests_of(plain, tmp_path / "t.trace")
    tables = {name: dict(table) for name, table in PLANS[plan].items()}
    if tables["cache"].get("warm") == "WARM":
        tables["cache"]["warm"] = str(record(plain, tmp_path / "w.trace", lambda: answer(plain, PROMPT[:3])).path)
    model = offload(make_model(family), plan_from_dict(tables))
    with offloaded(model) as state:
        first = answer(model)
        assert same(first, answer(plain))
        assert same(answer(model, OTHER), answer(plain, OTHER))
        assert_decided_alike(state.log, trace, state.spec)
        if "next step" in plan and "warm" not in plan:  # which may have been prefetched before
            prefetched = int((state.log.kind == PREFETCH).sum())
            fates = state.prefetches
            assert fates["useful"] + fates["late"] + fates["wasted"] == prefetched > 0
        state.reset()
        assert same(first, answer(model))


def by_domain(model: Any, folder: Path) -> tuple[Trace, str]:
    """What the model routes for four prompts of two domains in turn, and a placement for each domain."""
    trace = requests_of(model, folder / "t.trace", [PROMPT, OTHER, PROMPT[2:], OTHER[1:]])
    trace = trace.with_manifest(msgspec.structs.replace(trace.manifest, domains=["code", "prose"] * 2))
    placement = place(trace, "1/layer", labels=trace.manifest.domains)
    save_placement(placement, folder / "p.placement.toml")
    return trace, str(folder / "p.placement.toml")


DOMAIN_PLANS: dict[str, dict[str, Any]] = {
    "pinned by label": {"cache": {"capacity": "3/layer"}, "placement": {"pinned": "P", "by": "label"}},
    "pinned by routing": {"cache": {"capacity": "3/layer"}, "placement": {"pinned": "P", "detect": 12}},
    "in one prompt": {"cache": {"capacity": "9"}, "placement": {"pinned": "P", "detect": 3}},
    "warm": {"cache": {"capacity": "2/layer", "warm": "P"}, "placement": {"by": "label"}},
    "both": {"cache": {"capacity": "3/layer", "warm": "P"}, "placement": {"pinned": "P", "detect": 5}},
    "gate": {
        "cache": {"capacity": "3/layer", "warm": "reset"},
        "placement": {"pinned": "P", "by": "label"},
        "prefetch": {"predictor": "gate"},
    },
}


@pytest.mark.parametrize("plan", DOMAIN_PLANS)
def test_switches_of_domain_are_the_replays(plan: str, make_model: MakeModel, tmp_path: Path) -> None:
    """Logs are alike across switches, and the model answers as it does without being offloaded."""
    plain = make_model("olmoe")
    trace, path = by_domain(plain, tmp_path)
    tables = {
        name: {key: path if value == "P" else value for key, value in table.items()}
        for name, table in DOMAIN_PLANS[plan].items()
    }
    model = offload(make_model("olmoe"), plan_from_dict(tables))
    with offloaded(model) as state:
        state.serve(trace.manifest.domains)
        for _ in range(2):
            for prompt in (PROMPT, OTHER, PROMPT[2:], OTHER[1:]):
                assert same(answer(model, prompt), answer(plain, prompt))
            assert_decided_alike(state.log, trace, state.spec)
            # What is given up before its copy began is not copied.
            assert (
                copied(state, LOAD, BYPASS) < sum(state.bytes_loaded.values()) <= copied(state, LOAD, BYPASS, PREFETCH)
            )
            state.reset()
        switches: list[int] = []
        for _ in iter_decisions(trace, state.spec, on_switch=lambda step, codes, begins: switches.append(len(codes))):
            pass
        assert len(switches) >= 2 and sum(switches) > 0
        if state.spec.domains is not None and state.spec.domains.detect is None:
            with pytest.raises(PlanError, match="of domain 'poetry', which the placement has not"):
                state.serve(["poetry"])


@pytest.mark.parametrize("experts", ["each", "fused"])
def test_grouped_kernels_serve_switches(experts: str, make_model: MakeModel, tmp_path: Path) -> None:
    """Slots that a switch gives away are those of experts that the visit computes: no call meets another's weights."""
    plain = make_model("olmoe", "float32")
    trace, path = by_domain(plain, tmp_path)
    answers = []
    for capacity in ("2/layer", "100%"):
        tables = {"cache": {"capacity": capacity}, "placement": {"pinned": path, "by": "label"}}
        plan = plan_from_dict(tables | {"compute": {"experts": experts, "kernels": "grouped"}})
        model = offload(make_model("olmoe", "float32"), plan)
        with offloaded(model) as state:
            state.serve(trace.manifest.domains)
            answers.append([answer(model, prompt) for prompt in (PROMPT, OTHER, PROMPT[2:])])
            assert (state.log.kind == PREFETCH).any()
    assert all(map(same, *answers))


def copied(state: Any, *kinds: int) -> int:
    """Bytes of the copies of these kinds in the log."""
    key = state.log.expert[np.isin(state.log.kind, kinds)]
    return int(np.array(state.expert_bytes)[key // state.spec.experts].sum())


def test_several_requests_at_once_are_of_the_domain_of_most(make_model: MakeModel, tmp_path: Path) -> None:
    """By labels, as the replay of such steps; by routing they are refused."""
    plain = make_model("olmoe", "float32")
    _, path = by_domain(make_model("olmoe"), tmp_path)
    prompts = [PROMPT, OTHER, [*OTHER[::-1][:9], 3]]
    labels = ["code", "prose", "prose", "code", "code", "prose"]

    def both(model: Any) -> None:
        for _ in range(2):
            for _ in Decoding(model, prompts, max_new_tokens=4, stop=frozenset()).passes():
                pass

    batch = record(plain, tmp_path / "b.trace", lambda: both(plain))
    rows = [30, 3, 3, 3] * 2
    whole = make_trace(
        tmp_path / "whole.trace",
        batch.experts,
        num_experts=8,
        step=np.repeat(np.arange(8), rows),
        request=np.concatenate([np.repeat([0, 1, 2], 10), [0, 1, 2] * 3, np.repeat([3, 4, 5], 10), [3, 4, 5] * 3]),
        domains=labels,
    )
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}, "placement": {"pinned": path, "by": "label"}})
    model = offload(make_model("olmoe", "float32"), plan)
    with offloaded(model) as state:
        state.serve(labels)
        both(model)
        assert_decided_alike(state.log, whole, state.spec)
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}, "placement": {"pinned": path, "detect": 4}})
    model = offload(make_model("olmoe", "float32"), plan)
    with offloaded(model), pytest.raises(PlanError, match=r"placement.detect: 3 requests of a step"):
        both(model)


def test_a_saved_cache_is_the_same_in_replay_and_engine(make_model: MakeModel, tmp_path: Path) -> None:
    """Saved by either, the state is the same file but for its source; loaded, both decide alike; and LRU goes on as if
    it had never been interrupted."""
    plain = make_model("mixtral")
    first = record(plain, tmp_path / "1.trace", lambda: answer(plain))
    second = record(plain, tmp_path / "2.trace", lambda: answer(plain, OTHER))
    for capacity in ("3/layer", "10"):
        plan, path = plan_of(capacity), str(tmp_path / f"{capacity[:1]}.placement.toml")
        ends: list[Any] = []
        for _ in iter_decisions(first, cache_spec([8] * 3, [], plan), on_end=ends.append):
            pass
        model = offload(make_model("mixtral"), plan)
        with offloaded(model) as state:
            answer(model)
            saved = held_by(state.cache, plan, [8] * 3)
            assert saved == held_by(ends[0], plan, [8] * 3)
            before = state.log
            answer(model, OTHER)
            went_on = state.log.rows()[len(before) :]
        save_placement(saved, Path(path))
        warm = plan_from_dict({"cache": {"capacity": capacity, "warm": path}})
        model = offload(make_model("mixtral"), warm)
        with offloaded(model) as state:
            assert same(answer(model, OTHER), answer(plain, OTHER))
            assert_decided_alike(state.log, second, state.spec)
            visits = len(before.start) - 1
            assert [row[:3] for row in state.log.rows()] == [(v - visits, kind, key) for v, kind, key, _ in went_on]


def test_requests_that_share_a_step_are_refused(make_model: MakeModel) -> None:
    model = offload(make_model("mixtral"), plan_from_dict(PLANS["reset"]))
    with offloaded(model), torch.inference_mode():
        with pytest.raises(PlanError, match=r'cache.warm = "reset": 2 requests of a step share a cache'):
            model(input_ids=torch.tensor([PROMPT, PROMPT]))
        assert same(answer(model), answer(make_model("mixtral")))


def test_a_prompt_in_parts_is_one_request(make_model: MakeModel) -> None:
    model = offload(make_model("mixtral"), plan_from_dict({"cache": {"capacity": "100%", "warm": "reset"}}))
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
