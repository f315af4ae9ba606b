"""Whatever is cached, prefetched or bypassed, the offloaded model says what the model says, to the last bit."""

import time
from importlib import import_module
from typing import Any

import pytest

from engine.plan.plan import Plan, plan_from_dict
from engine.runtime import EmulatedLink, offload, offloaded
from engine.runtime.links.queued_link import QueuedLink, Ticket
from tests.engine.runtime.models import FAMILIES, PROMPT, MakeModel, Reference, answer, same

torch = pytest.importorskip("torch")
offloading = import_module("engine.runtime.offload")  # the package's attribute of that name is the function

CAPACITIES = ["1/layer", "2/layer", "50%", "100%", "5"]


def plan_of(capacity: str, predictor: str = "none", **prefetch: Any) -> Plan:
    tables = {"cache": {"capacity": capacity}, "prefetch": {"predictor": predictor, **prefetch}}
    return plan_from_dict(tables)


@pytest.mark.parametrize("staging", [1, 4])
@pytest.mark.parametrize("predictor", ["none", "gate"])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_are_those_of_the_model(
    family: str, capacity: str, predictor: str, staging: int, make_model: MakeModel, reference: Reference
) -> None:
    dtype = "bfloat16" if staging == 1 else "float32"
    model = offload(make_model(family, dtype), plan_of(capacity, predictor, staging=staging))
    with offloaded(model) as state:
        assert same(answer(model), reference(family, dtype))
        assert len(state.log.kind) > 0
        assert all(parameter.is_meta for layer in state.layers for parameter in layer.experts.parameters())


class PoisonLink(QueuedLink):
    """Fills a slot with NaN before it copies, slowly: whoever reads too early, or overwrites, is found out."""

    def __init__(self, *_: object) -> None:
        super().__init__(self.poison_and_copy)

    @staticmethod
    def poison_and_copy(ticket: Ticket) -> None:
        ticket.target.fill_(0xFF)
        time.sleep(0.0005)
        ticket.target.copy_(ticket.source)


@pytest.mark.parametrize("target", ["staging", "cache"])
@pytest.mark.parametrize("capacity", ["1/layer", "3", "50%"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_nobody_reads_a_slot_that_is_being_filled(
    family: str,
    capacity: str,
    target: str,
    make_model: MakeModel,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offloading, "ThreadLink", PoisonLink)
    model = offload(make_model(family), plan_of(capacity, "gate", staging=2, count=4, target=target))
    with offloaded(model) as state:
        assert same(answer(model), reference(family))
        assert state.bytes_loaded["prefetch"] > 0


def test_generate_is_the_models_own(make_model: MakeModel) -> None:
    ids = torch.tensor([PROMPT])
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain, served = make_model("olmoe"), offload(make_model("olmoe"), plan_of("2/layer", "gate"))
    with offloaded(served):
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert torch.equal(served.generate(ids, attention_mask=torch.ones_like(ids), **settings), expected)


def test_an_emulated_link_changes_time_only(make_model: MakeModel, reference: Reference) -> None:
    emulate = EmulatedLink(bytes_per_s=50e6)
    model = offload(make_model(), plan_of("2/layer"), emulate_link=emulate)
    with offloaded(model) as state:
        start = time.perf_counter()
        assert same(answer(model), reference())
        assert time.perf_counter() - start >= sum(state.bytes_loaded.values()) / emulate.bytes_per_s
        assert state.emulated == emulate


def test_padding_demands_nothing_and_reaches_nobody(make_model: MakeModel) -> None:
    """A left-padded request answers as it does alone, up to rounding, and pads load no expert."""
    plain, served = make_model("mixtral", "float32"), offload(make_model("mixtral", "float32"), plan_of("3/layer"))
    ids = torch.tensor([[0, 0, 0, *PROMPT[:5]], PROMPT[:8]])
    mask = (torch.arange(8) >= torch.tensor([[3], [0]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with offloaded(served) as state, torch.inference_mode():
        expected = plain(ids, attention_mask=mask, position_ids=positions).logits
        given = served(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(given[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
        assert given.isfinite().all()
        assert state.timings.step_tokens.tolist() == [13]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("predictor", ["none", "gate"])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_on_cuda_it_is_the_same_as_the_model_on_cuda(
    family: str, capacity: str, predictor: str, make_model: MakeModel
) -> None:
    expected = answer(make_model(family).to("cuda"))
    model = offload(make_model(family), plan_of(capacity, predictor, staging=2), device="cuda")
    with offloaded(model) as state:
        assert same(answer(model), expected)
        state.reset()
        assert same(answer(model), expected)
