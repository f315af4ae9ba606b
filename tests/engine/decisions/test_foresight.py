"""Plans with fitted predictors: nothing is known before its time, and fitted requests are no evidence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.decisions.run import iter_decisions  # noqa: E402
from engine.decisions.spec import cache_spec  # noqa: E402
from engine.hardware import load_hardware  # noqa: E402
from engine.plan.plan import load_plan, plan_from_dict  # noqa: E402
from engine.plan.tables import CachePlan  # noqa: E402
from engine.replay.predictor_costs import with_predictors  # noqa: E402
from engine.replay.replay import replay  # noqa: E402
from engine.simulator.costs import model_costs  # noqa: E402
from policies.events import DROP, EVICT, HIT_PREFETCHED, Events  # noqa: E402
from policies.learned.artefact import CARD, TENSORS, load_artefact, save_artefact  # noqa: E402
from tests.helpers.predictors import random_artefact, varied_trace  # noqa: E402
from tests.helpers.traces import make_trace, random_experts  # noqa: E402
from tracekit.edit import Selection, slice_trace  # noqa: E402
from tracekit.errors import PlanError, PolicyError  # noqa: E402
from tracekit.requests import known_requests, request_digests  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

NAMES = ("linear", "routing", "mlp", "recurrent", "token-popularity", "reuse-distance", "reuse-routing")


def plan_with(artefact: Path, name: str, **prefetch: Any) -> Any:
    tables: dict[str, Any] = {"cache": {"capacity": "3/layer"}}
    if name.startswith("reuse"):
        tables["eviction"] = {"policy": "learned", "artefact": str(artefact)}
    else:
        tables["prefetch"] = {"predictor": "learned", "artefact": str(artefact), "count": 3, **prefetch}
    return plan_from_dict(tables)


def decisions(trace: Trace, plan: Any, **settings: Any) -> Events:
    spec = cache_spec(trace.manifest.experts_per_layer, [], plan)
    return Events.join([events for _, events in iter_decisions(trace, spec, **settings)])


@pytest.mark.parametrize("name", NAMES)
def test_no_peeking(name: str, tmp_path: Path) -> None:
    """Whatever comes after a visit may change: choices, weights, logits, tokens. Decisions up to it stay the same."""
    steps, layers = 14, 4
    before = varied_trace(tmp_path / "a.trace", seed=1, steps=steps)
    other = varied_trace(tmp_path / "b.trace", seed=2, steps=steps)
    artefact = random_artefact(tmp_path / "p", name, before)
    plan = plan_with(artefact.path, name)
    whole = decisions(before, plan)
    assert name.startswith("reuse") or (whole.kind == HIT_PREFETCHED).any()
    wide = before.manifest.experts_per_layer
    changed = 0
    for cut in range(1, steps * layers, 5):
        step, layer = divmod(cut, layers)
        ours, theirs = np.flatnonzero(before.step < step), np.flatnonzero(other.step > step)
        here = np.flatnonzero(before.step == step)

        def mixed(get: Callable[[Trace], Any], here: Any = here, ours: Any = ours, theirs: Any = theirs) -> Any:
            return np.concatenate([get(before)[ours], get(before)[here], get(other)[theirs]])

        chosen = mixed(lambda trace: trace.experts).copy()
        rows = slice(len(ours), len(ours) + len(here))
        rng = np.random.default_rng(cut)
        for later in range(layer + 1, layers):  # the same step, layers not yet visited
            chosen[rows, later] = rng.random((len(here), wide[later])).argsort(axis=1)[:, : before.top_k]
        weights = mixed(lambda trace: trace.weights).copy()
        weights[rows, layer + 1 :] = rng.random(weights[rows, layer + 1 :].shape)
        ahead = {d: mixed(lambda trace, d=d: trace.lookahead(d)).copy() for d in (1, 2)}
        for logits in ahead.values():
            logits[rows, layer + 1 :] = rng.normal(size=logits[rows, layer + 1 :].shape)
        remade = make_trace(
            tmp_path / f"{cut}.trace",
            chosen,
            num_experts=wide,
            step=mixed(lambda trace: trace.step),
            token_id=mixed(lambda trace: trace.token_id),
            weights=weights,
            lookahead=ahead,
        )
        again = decisions(remade, plan)
        known = whole.start[cut + 1]
        assert np.array_equal(whole.code[:known], again.code[:known]), (step, layer)
        changed += not np.array_equal(whole.code, again.code)
    assert changed > 5


@pytest.mark.parametrize("name", ["mlp", "recurrent", "reuse-distance"])
def test_pieces_of_any_size_and_uncompiled_policies_decide_alike(name: str, tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace", seed=3)
    plan = plan_with(random_artefact(tmp_path / "p", name, trace).path, name)
    whole = decisions(trace, plan)
    for other in (decisions(trace, plan, chunk=20), decisions(trace, plan, compiled=False)):
        assert np.array_equal(whole.code, other.code) and np.array_equal(whole.start, other.start)


@pytest.mark.parametrize("name", ["mlp", "recurrent", "reuse-distance", "reuse-routing"])
def test_after_a_reset_a_predictor_remembers_nothing(name: str, tmp_path: Path) -> None:
    """Each request is decided as by itself; what leaves the cache in between aside."""
    trace = varied_trace(tmp_path / "t.trace", seed=3)
    plan = plan_with(random_artefact(tmp_path / "p", name, trace).path, name)
    plan = plan.replace(cache=CachePlan(capacity="3/layer", warm="reset"))

    def kept(events: Events, first: int) -> list[tuple[int, ...]]:
        return [(visit + first, *row) for visit, *row in events.rows() if row[0] not in (EVICT, DROP)]

    expected: list[tuple[int, ...]] = []
    first = 0
    for request in np.unique(trace.request).tolist():
        part = slice_trace(trace, Selection(requests=str(request)), tmp_path / f"{request}.trace")
        alone = decisions(part, plan)
        expected += kept(alone, first)
        first += len(alone.start) - 1
    assert kept(decisions(trace, plan, chunk=40), 0) == expected


def test_only_what_is_probable_enough_is_suggested(tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace", seed=4)
    path = random_artefact(tmp_path / "p", "linear", trace).path
    counts = [
        replay(trace, plan_with(path, "linear", least=least), bounds=False).prefetches for least in (0.0, 0.5, 0.9, 1.0)
    ]
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0


def test_requests_that_were_fitted_on_are_no_evidence(tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace", seed=5)
    artefact = random_artefact(tmp_path / "p", "linear", trace)
    seen = slice_trace(trace, Selection(requests="0:2"), tmp_path / "seen.trace")
    digests = sorted({digest for own in request_digests(seen).values() for digest in own})
    fitted = msgspec.structs.replace(artefact.card.fitted, requests=digests)
    tensors = {name: tensor.astype(np.int32) for name, tensor in artefact.tensors.items()}
    save_artefact(artefact.path, msgspec.structs.replace(artefact.card, fitted=fitted), tensors)
    plan = plan_with(artefact.path, "linear")
    assert known_requests(trace, digests) == [0, 1]
    with pytest.raises(
        PlanError, match=r"fitted on 2 of the 3 requests .* no evidence.*tracekit slice.*--allow-fitted"
    ):
        replay(trace, plan)
    with pytest.raises(PlanError, match="fitted on 2 of the 2 requests"):
        replay(seen, plan)
    part = slice_trace(trace, Selection(requests="1", phase="prefill"), tmp_path / "part.trace")
    with pytest.raises(PlanError, match="no evidence"):  # half a request is known, too
        replay(part, plan)
    marked = replay(trace, plan, allow_fitted=True, bounds=False)
    assert any("NOT EVIDENCE" in warning and "2 of the 3" in warning for warning in marked.warnings)
    unseen = slice_trace(trace, Selection(requests="2"), tmp_path / "unseen.trace")
    assert not any("EVIDENCE" in warning for warning in replay(unseen, plan, bounds=False).warnings)


def test_requests_are_known_by_their_tokens_else_by_their_experts(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    experts = random_experts(rng, 40)
    request = np.repeat([0, 1], 20)
    named = make_trace(tmp_path / "a.trace", experts, request=request, token_id=np.arange(40))
    elsewhere = make_trace(tmp_path / "b.trace", experts[::-1], request=1 - request, token_id=np.arange(40))
    assert request_digests(named)[0] == request_digests(elsewhere)[1]  # the same text, routed otherwise
    unnamed = make_trace(tmp_path / "c.trace", experts, request=request)
    again = make_trace(tmp_path / "d.trace", experts[20:], request=7)
    assert request_digests(unnamed)[1] == request_digests(again)[7] != request_digests(unnamed)[0]


def test_predictions_take_time(tmp_path: Path) -> None:
    """The plan's time differs from the same decisions made free of charge by just what was predicted."""
    trace = varied_trace(tmp_path / "t.trace", seed=7, layers=4)
    sizes = {"expert_bytes": [4 << 20] * 4, "expert_params": [2 << 20] * 4}
    trace = trace.with_manifest(msgspec.structs.replace(trace.manifest, **sizes))
    artefact = random_artefact(tmp_path / "p", "linear", trace)
    plan = plan_with(artefact.path, "linear")
    machine = load_hardware("rtx3060")
    bare = model_costs(trace.manifest, machine, None, None, None)
    costs = with_predictors(bare, plan, machine)
    assert (bare.predict_ns == 0).all() and bare.predict_token_ps == 0
    assert (costs.predict_ns[:3] > machine.overhead.per_prediction_ns).all() and costs.predict_ns[3] == 0
    slower = replay(trace, plan, machine, bounds=False).time
    own = msgspec.structs.replace(machine.overhead, per_prediction_ns=0)
    free = machine.with_engine(msgspec.structs.replace(machine.engine, overhead=own))
    faster = replay(trace, plan, free, bounds=False).time
    assert slower is not None and faster is not None
    steps, asked = 30, 3 * machine.overhead.per_prediction_ns
    assert slower.overhead_s - faster.overhead_s == pytest.approx(steps * asked / 1e9)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / CARD).unlink(), "no directory with predictor.json"),
        (lambda path: (path / TENSORS).unlink(), "no directory with"),
        (lambda path: (path / CARD).write_text("{"), "is damaged"),
        (lambda path: (path / CARD).write_text('{"version": 9}'), "is of version 9, this release reads 1"),
        (lambda path: (path / CARD).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda path: (path / TENSORS).write_bytes(b"x" * 40), "is not the file that predictor.json describes"),
        (lambda path: edit(path, lambda card: card.update(distance=0)), "a distance of 0"),
        (lambda path: edit(path, lambda card: card.update(blocks=["recent", "fortune"])), "it reads recent, fortune"),
        (lambda path: edit(path, lambda card: card.update(blocks=["recent"])), "do not fit"),
        (lambda path: edit(path, lambda card: card.update(experts_per_layer=[])), "make no sense"),
        (lambda path: edit(path, lambda card: card["program"].update(outputs=["x"])), "outputs of widths"),
        (lambda path: edit(path, lambda card: card.update(colour="red")), "unknown field `colour`"),
        (lambda path: edit(path, lambda card: card.update(purpose="eviction", distance=0)), "fitted for eviction"),
    ],
)
def test_damaged_artefacts_are_refused_in_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace")
    path = random_artefact(tmp_path / "p", "linear", trace).path
    damage(path)
    with pytest.raises(PolicyError, match=message) as error:
        load_artefact(path, "prefetch")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((path / CARD).read_text())
    change(card)
    (path / CARD).write_text(json.dumps(card))


def test_artefacts_for_something_else_are_refused(tmp_path: Path) -> None:
    trace = varied_trace(tmp_path / "t.trace")
    path = random_artefact(tmp_path / "p", "linear", trace).path
    shallow = varied_trace(tmp_path / "shallow.trace", layers=3)
    with pytest.raises(PolicyError, match=r"is for 4 MoE layers .* not for 3 of"):
        replay(shallow, plan_with(path, "linear"))
    with pytest.raises(PlanError, match=r"looks 1 MoE layers ahead, prefetch\.distance is 2"):
        replay(trace, plan_with(path, "linear", distance=2))
    manifest = trace.manifest
    model = msgspec.structs.replace(manifest.model, id="other/model")
    renamed = trace.with_manifest(msgspec.structs.replace(manifest, model=model))
    with pytest.raises(PolicyError, match=r"was fitted on test/tiny .* is of other/model"):
        replay(renamed, plan_with(path, "linear"))
    bare = make_trace(tmp_path / "bare.trace", trace.experts, num_experts=manifest.experts_per_layer)
    with pytest.raises(PlanError, match=r"lookahead logits at distance 1, which .* does not hold"):
        replay(bare, plan_with(path, "linear"))
    by_weights = random_artefact(tmp_path / "r", "reuse-distance", trace).path
    with pytest.raises(PlanError, match="reads gate weights"):
        replay(bare, plan_with(by_weights, "reuse-distance"))
    with pytest.raises(PolicyError, match="was fitted for eviction, the plan uses it for prefetch"):
        replay(trace, plan_with(by_weights, "linear"))


def test_plans_name_artefacts_where_policies_read_them(tmp_path: Path) -> None:
    layers = [4, 4]
    for table, key in (("prefetch", "predictor"), ("eviction", "policy")):
        with pytest.raises(PlanError, match=rf"needs {table}\.artefact .*--{table}-artefact.*tracekit fit"):
            cache_spec(layers, [], plan_from_dict({"cache": {"capacity": "2"}, table: {key: "learned"}}))
        with pytest.raises(PlanError, match=rf"remove {table}\.artefact"):
            cache_spec(layers, [], plan_from_dict({"cache": {"capacity": "2"}, table: {"artefact": "x"}}))
    plan = plan_with(tmp_path / "p", "linear", least=0.25)
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    assert load_plan(tmp_path / "plan.toml") == plan
    assert plan.to_dict()["prefetch"]["artefact"] == str(tmp_path / "p")
