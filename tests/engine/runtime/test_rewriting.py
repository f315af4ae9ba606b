"""A routing policy in the engine: bit for bit the model whose router is altered by an obvious implementation of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import Plan
from engine.runtime import offload, offloaded
from experiments.demo.reference_models import CHECKPOINTS
from tests.engine.runtime.masked_router import mask_routers
from tests.engine.runtime.models import FAMILIES, PROMPT, MakeModel, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tracekit.errors import ModelError, PolicyError
from tracekit.rows import UNUSED

torch = pytest.importorskip("torch")

POLICIES: dict[str, dict[str, float | bool]] = {
    "cache-prior": {"strength": 0.5},
    "substitute": {"strength": 0.5, "keep": 1},
    "drop-cold": {"share": 1.0, "renormalise": False},
    "adaptive-k": {"share": 0.7},
}


def plan_of(policy: str, capacity: str = "3/layer", **tables: Any) -> Plan:
    return Plan(capacity, routing={"policy": policy, **POLICIES.get(policy, {})}, **tables)


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("name", ["mixtral-mini", "qwen3-moe-mini"])
def test_the_reference_models_with_a_masked_router_say_the_same(name: str, policy: str) -> None:
    from tracekit.recorder.models import load_model

    prompt, tokens = list(range(40, 52)), 5
    model = offload(CHECKPOINTS / name, plan_of(policy))
    with offloaded(model) as state:
        given = answer(model, prompt, tokens)
        log, altered = state.log, state.altered
    assert altered is not None and altered.replaced + altered.dropped > 0
    plain, _ = load_model(CHECKPOINTS / name)
    plain.set_experts_implementation("eager")  # others compute something for what is no expert's number
    counted = mask_routers(plain, policy, POLICIES[policy], log)
    assert same(given, answer(plain, prompt, tokens))
    assert counted.altered == altered.replaced + altered.dropped


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
def test_small_models_with_a_masked_router_say_the_same(family: str, policy: str, make_model: MakeModel) -> None:
    model = offload(make_model(family), plan_of(policy))
    with offloaded(model) as state:
        given = answer(model, new_tokens=6)
        log = state.log
    plain = make_model(family)
    mask_routers(plain, policy, POLICIES[policy], log)
    assert same(given, answer(plain, new_tokens=6))


TABLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gate weights": {"eviction": "score"},
    "lookahead": {"prefetch": {"predictor": "gate", "count": 2, "staging": 2}},
    "requests": {"warm": "reset"},
    "admission": {"admission": {"policy": "score", "threshold": 0.3, "per_step": 4}},
}


@pytest.mark.parametrize("tables", list(TABLES))
@pytest.mark.parametrize("policy", list(POLICIES))
def test_its_trace_without_the_policy_gives_its_decisions(
    policy: str, tables: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model = offload(make_model("qwen3_moe"), plan_of(policy, "4/layer", **TABLES[tables]))
    with offloaded(model) as state:
        trace = record(model, tmp_path / "t.trace", lambda: answer(model, new_tokens=8))
        assert_decided_alike(state.log, trace, state.spec)
        altered = state.altered
        assert altered is not None and altered.choices == 18 * 3 * 4
        assert altered.dropped == (trace.experts == UNUSED).sum()
        assert (altered.dropped > 0) == (policy in ("drop-cold", "adaptive-k"))
        first, log = altered, state.log
        state.reset()
        answer(model, new_tokens=8)
        assert state.altered == first and state.log.rows() == log.rows()


@pytest.mark.parametrize("policy", ["cache-prior", "adaptive-k"])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_strength_zero_every_family_is_itself(family: str, policy: str, make_model: MakeModel) -> None:
    off = {"adaptive-k": {"share": 1.0}, "drop-cold": {"share": 0.0}}.get(policy, {"strength": 0.0})
    said, logs = [], []
    for routing in ("none", {"policy": policy, **off}):
        model = offload(make_model(family), Plan("2/layer", routing=routing))
        with offloaded(model) as state:
            said.append(answer(model, new_tokens=4))
            logs.append(state.log.rows())
            assert state.altered is None or state.altered.replaced + state.altered.dropped == 0
    assert same(*said) and logs[0] == logs[1]


@pytest.mark.parametrize("policy", ["cache-prior", "drop-cold"])
def test_padding_is_not_altered(policy: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = offload(make_model("olmoe", "float32"), plan_of(policy))
    ids = torch.tensor([[0, 0, 0, *PROMPT[:5]], PROMPT[:8]])
    mask = (torch.arange(8) >= torch.tensor([[3], [0]])).long()
    with offloaded(model) as state, torch.inference_mode():
        rows = np.flatnonzero(mask.numpy())
        trace = record(model, tmp_path / "t.trace", lambda: model(ids, attention_mask=mask), rows)
        assert_decided_alike(state.log, trace, state.spec)
        assert state.altered is not None and state.altered.choices == 13 * 3 * 3


def test_without_a_policy_nothing_is_hooked(make_model: MakeModel) -> None:
    model = offload(make_model(), Plan("2/layer"))
    with offloaded(model) as state:
        assert state.altered is None and state.rewriting is None
        assert not any(layer.experts._forward_pre_hooks or layer.router._forward_hooks for layer in state.layers)


def test_what_cannot_be_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import tracekit as tk\n\nclass Bad(tk.RoutingPolicy):\n    reads = 'weights'\n\n"
        "    def rewrite(self, layer, ids, weights, logits, scores, present):\n        ids[0] = ids[1]\n"
    )
    model = offload(make_model(), Plan("2/layer", routing=f"{bad}:Bad"))
    with offloaded(model) as state:
        with pytest.raises(PolicyError, match="left an expert twice at layer 0"):
            answer(model, new_tokens=1)
        with pytest.raises(ModelError, match="cannot run"):
            answer(model, new_tokens=1)
        state.reset()
    with pytest.raises(PolicyError, match="unknown routing policy 'cache-prio'"):
        offload(make_model(), Plan("2/layer", routing="cache-prio"))
    with pytest.raises(PolicyError, match="between 0 and 1"):
        offload(make_model(), Plan("2/layer", routing={"policy": "cache-prior", "strength": 2.0}))


def test_grouped_kernels_compute_what_is_left(make_model: MakeModel, tmp_path: Path) -> None:
    plan = plan_of("drop-cold", kernels="grouped")
    model = offload(make_model("mixtral", "float32"), plan)
    with offloaded(model) as state, torch.inference_mode():
        ids = torch.tensor([PROMPT[:6]])
        trace = record(model, tmp_path / "t.trace", lambda: model(ids))
        assert_decided_alike(state.log, trace, state.spec)
        given = model(ids).logits
        eager = offload(make_model("mixtral", "float32"), plan_of("drop-cold"))
        with offloaded(eager):
            eager(ids)
            assert torch.allclose(given, eager(ids).logits, atol=1e-4)
        assert state.altered is not None and state.altered.dropped > 0
