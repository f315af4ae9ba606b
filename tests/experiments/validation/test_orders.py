"""Altered routing in a validation: tokens compared with nothing, decisions alike, both orders side by side."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engine.hardware import load_hardware  # noqa: E402  # needs torch
from engine.plan.plan import Plan  # noqa: E402
from engine.replay.replay import replay  # noqa: E402
from experiments.validation.forced import validate_routing  # noqa: E402
from experiments.validation.validate import validate  # noqa: E402
from tests.helpers.quality import small_model  # noqa: E402
from tests.helpers.routing_traces import logits_trace  # noqa: E402
from tracekit.errors import PlanError  # noqa: E402
from tracekit.notes import is_altered  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402
from tracekit.trace import Trace  # noqa: E402

PROMPTS = (Prompt(id="a", prompt="Return a list of the names in the current scope"), Prompt(id="b", prompt="def read("))
PRIOR = {"policy": "cache-prior", "strength": 0.5}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


def test_both_orders_are_told(model: Path, tmp_path: Path) -> None:
    plan = Plan("2/layer", routing=PRIOR, prefetch="gate")
    kept = tmp_path / "engine.trace"
    found = validate(
        model, plan, PROMPTS, hardware=load_hardware("t4"), max_new_tokens=8, runs=1, keep_trace=kept, device="cpu"
    )
    assert found.decisions.identical and found.passed and found.prior is None
    assert found.tokens.compared == 0 and "another model" in found.verdict
    orders = found.routing
    assert orders is not None and orders.first_order is not None
    closed, first = orders.closed_loop, orders.first_order
    assert (closed.label, first.label) == ("closed loop", "first-order estimate")
    assert closed.routing is not None and first.routing is not None
    assert (closed.routing.label, first.routing.label) == (closed.label, first.label)
    assert closed.routing.altered > 0 and first.routing.altered > 0
    assert closed.tokens == first.tokens == 14 and closed.tokens_per_second and first.tokens_per_second
    assert orders.hit_ratio_error == pytest.approx(first.hit_ratio - closed.hit_ratio)
    assert "off the closed loop by hit ratio" in orders.sentence()
    # The engine's own trace holds altered choices: it is replayed as it is, and altered by nobody again.
    trace = Trace.open(kept)
    assert is_altered(trace.manifest.notes)
    again = replay(trace, Plan("2/layer", prefetch="gate"))
    assert again.phases.decode.hit_ratio == closed.hit_ratio
    with pytest.raises(PlanError, match="recorded with altered routing"):
        replay(trace, plan)


def test_choices_that_are_dropped_are_told(model: Path) -> None:
    plan = Plan("2/layer", routing={"policy": "drop-cold", "share": 1.0})
    found = validate(model, plan, PROMPTS[:1], hardware=load_hardware("t4"), max_new_tokens=4, runs=1, device="cpu")
    assert found.routing is not None and found.routing.first_order is not None
    assert found.routing.closed_loop.routing.dropped > 0


def test_a_trace_that_chooses_is_not_altered(model: Path, tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace", tokens=19)
    with pytest.raises(PlanError, match="here a trace chooses"):
        validate_routing(model, Plan("2/layer", routing=PRIOR), trace)


def test_tiers_are_told_in_both_orders(model: Path, tmp_path: Path) -> None:
    """The engine's routing, replayed with the plan, is decided as the engine decided; the unaltered model's is near."""
    both = {"high": "hqq-4bit", "low": "hqq-2bit-g16", "capacity": "1/layer", "threshold": 0.45}
    plan, kept = Plan("2/layer", precision=both, prefetch="gate"), tmp_path / "engine.trace"
    found = validate(
        model, plan, PROMPTS, hardware=load_hardware("t4"), max_new_tokens=8, runs=1, keep_trace=kept, device="cpu"
    )
    assert found.decisions.identical and found.passed
    assert found.tokens.compared == 0 and "which copy of an expert serves" in found.verdict
    orders = found.routing
    assert orders is not None and orders.first_order is not None
    closed, first = orders.closed_loop, orders.first_order
    assert closed.routing is None and closed.low_share and first.low_share and 0 < closed.low_share < 1
    assert orders.loads_error == pytest.approx(first.loads_per_token / closed.loads_per_token - 1)
    again = replay(Trace.open(kept), Plan("2/layer", precision=both | {"high": "fp32", "low": "bf16"}, prefetch="gate"))
    assert again.precision is not None and again.phases.decode.hit_ratio == closed.hit_ratio
