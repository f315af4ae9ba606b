"""Pruned experts in the engine: bit for bit a masked router's model, and nearly the model without these experts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import Plan
from engine.runtime import offload, offloaded
from experiments.demo.reference_models import CHECKPOINTS
from tests.engine.runtime.masked_router import mask_routers
from tests.engine.runtime.models import FAMILIES, MakeModel, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tests.helpers.reference_routing import most_important
from tracekit.errors import PlanError
from tracekit.rows import UNUSED

torch = pytest.importorskip("torch")
from tracekit.recorder.models import load_model  # noqa: E402  # needs torch
from tracekit.recorder.seam import moe_layers  # noqa: E402  # needs torch

SMALL = {"mixtral": (3, 8), "olmoe": (3, 8), "qwen3_moe": (3, 12), "gpt_oss": (3, 8), "deepseek_v3": (3, 8)}
"""MoE layers and experts."""


def counts(folder: Path, layers: int, experts: int) -> tuple[str, np.ndarray]:
    """A file of counts, which no two experts of a layer share."""
    drawn = np.random.default_rng(5).permuted(np.tile(np.arange(experts), (layers, 1)), axis=1)
    path = folder / "counts.json"
    path.write_text(json.dumps({"logical_count": drawn.tolist()}))
    return str(path), drawn


def plan_of(profile: str, keep: int, capacity: str = "2/layer", **tables: Any) -> Plan:
    return Plan(capacity, routing={"policy": "prune", "keep": keep, "profile": profile}, **tables)


@pytest.mark.parametrize(("name", "keep"), [("mixtral-mini", 6), ("mixtral-mini", 1), ("qwen3-moe-mini", 12)])
def test_the_reference_models_with_a_masked_router_say_the_same(name: str, keep: int, tmp_path: Path) -> None:
    plain, _ = load_model(CHECKPOINTS / name)
    plain.set_experts_implementation("eager")  # others compute something for what is no expert's number
    layers = moe_layers(plain)
    profile, given = counts(tmp_path, len(layers), layers[0].num_experts)
    prompt, tokens = list(range(40, 52)), 5
    model = offload(CHECKPOINTS / name, plan_of(profile, keep))
    with offloaded(model) as state:
        said = answer(model, prompt, tokens)
        log, altered = state.log, state.altered
    left = most_important(given, keep)
    counted = mask_routers(plain, "prune", {}, log, left)
    assert same(said, answer(plain, prompt, tokens))
    assert altered is not None and counted.altered == altered.replaced + altered.dropped > 0
    # Of more choices than experts that are left, the others are dropped.
    assert altered.dropped == altered.choices * max(0, layers[0].top_k - keep) / layers[0].top_k


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_chooses_among_what_is_left(family: str, make_model: MakeModel, tmp_path: Path) -> None:
    profile, given = counts(tmp_path, *SMALL[family])
    model = offload(make_model(family), plan_of(profile, 5, "4/layer"))
    with offloaded(model) as state:
        trace = record(model, tmp_path / "t.trace", lambda: answer(model, new_tokens=8))
        assert_decided_alike(state.log, trace, state.spec)
        assert state.altered is not None and state.altered.replaced > state.altered.dropped == 0
        first, log = state.altered, state.log
        state.reset()
        answer(model, new_tokens=8)
        assert state.altered == first and state.log.rows() == log.rows()
    for layer, left in enumerate(most_important(given, 5)):
        assert set(trace.experts[:, layer].ravel().tolist()) <= left | {UNUSED}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_experts_left_every_family_is_itself(family: str, make_model: MakeModel, tmp_path: Path) -> None:
    profile, _ = counts(tmp_path, *SMALL[family])
    said = []
    for plan in (Plan("2/layer"), plan_of(profile, 12)):
        model = offload(make_model(family), plan)
        with offloaded(model) as state:
            said.append(answer(model, new_tokens=4))
            assert state.altered is None or state.altered.replaced + state.altered.dropped == 0
    assert same(*said)


@pytest.mark.parametrize(("name", "keep"), [("mixtral-mini", 6), ("qwen3-moe-mini", 12)])
def test_it_is_nearly_the_model_without_these_experts(name: str, keep: int, tmp_path: Path) -> None:
    """Weights of altered choices follow from logits in half precision: all else is the smaller model's."""
    plain, _ = load_model(CHECKPOINTS / name, dtype="float32")
    ids = torch.tensor([list(range(40, 60))])
    with torch.inference_mode():
        whole = plain(ids).logits
    layers = moe_layers(plain)
    profile, given = counts(tmp_path, len(layers), layers[0].num_experts)
    for layer, left in zip(layers, most_important(given, keep), strict=True):
        cut(layer, sorted(left))
    model = offload(CHECKPOINTS / name, plan_of(profile, keep, "8/layer"), dtype="float32")
    with offloaded(model), torch.inference_mode():
        found = model(ids).logits
        wanted = plain(ids).logits
    off, meant = (found - wanted).abs().max(), (whole - wanted).abs().max()
    assert off < meant / 500, (off, meant)


def cut(layer: Any, kept: list[int]) -> None:
    """Take all but `kept` experts, and their rows of the gate, out of a layer."""
    with torch.no_grad():
        for module, names in ((layer.experts, ("gate_up_proj", "down_proj")), (layer.router, ("weight",))):
            for name in names:
                setattr(module, name, torch.nn.Parameter(getattr(module, name)[kept].clone(), requires_grad=False))
            module.num_experts = len(kept)


def test_a_profile_of_another_model_or_none_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    profile, _ = counts(tmp_path, 2, 8)
    with pytest.raises(PlanError, match="no profile for this one"):
        offload(make_model(), plan_of(profile, 6))
    with pytest.raises(PlanError, match=r"needs routing\.profile"):
        offload(make_model(), Plan("2/layer", routing="prune"))
    with pytest.raises(PlanError, match="reads no profile"):
        offload(make_model(), Plan("2/layer", routing={"policy": "substitute", "profile": profile}))
