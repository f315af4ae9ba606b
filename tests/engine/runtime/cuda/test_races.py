"""Nothing that two streams or threads do to the same bytes is without an order, and the bits stay the model's.

On an emulated device, which carries copies out as early and as late as their order allows.
"""

from pathlib import Path
from typing import Any

import pytest

from engine.plan.plan import plan_from_dict
from tests.engine.runtime.cuda.models import eager, expected, says, served
from tests.engine.runtime.models import FAMILIES, PROMPT, plan_of, same
from tracekit.errors import ModelError

torch = pytest.importorskip("torch")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.links import cuda_link  # noqa: E402
from engine.runtime.links.cuda_link import CudaLink, _StreamCopies  # noqa: E402
from engine.runtime.links.queued_link import Ticket  # noqa: E402
from engine.runtime.storage.rounding import rounded  # noqa: E402
from tests.helpers.emulated_cuda.device import LATE, SCHEDULES, EmulatedCuda, RaceError  # noqa: E402
from tracekit.recorder.generation import Decoding  # noqa: E402

GATE = {"predictor": "gate", "count": 2, "staging": 2}
NEXT = {"predictor": "previous-token", "count": 2, "staging": 2, "wrap": True}
PLANS: dict[str, dict[str, Any]] = {
    "one slot a layer": {"capacity": "1/layer"},
    "everything bypasses": {"capacity": "0"},
    "half": {"capacity": "50%", "eviction": {"policy": "lfu"}},
    "global": {"capacity": "5", "eviction": {"policy": "score"}},
    "everything": {"capacity": "100%"},
    "one staging buffer": {"capacity": "2/layer", "prefetch": GATE | {"staging": 1}},
    "staging": {"capacity": "2/layer", "prefetch": GATE},
    "into the cache": {"capacity": "3/layer", "prefetch": GATE | {"target": "cache", "count": 4}},
    "two layers ahead": {"capacity": "25%", "prefetch": GATE | {"distance": 2}},
    "past the last layer": {"capacity": "2/layer", "prefetch": NEXT},
    "past it, into the cache": {"capacity": "3/layer", "prefetch": NEXT | {"target": "cache"}},
    "emptied": {"capacity": "2/layer", "cache": {"capacity": "2/layer", "warm": "reset"}, "prefetch": NEXT},
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_capacities_policies_and_prefetchers(family: str, plan: str, schedule: str) -> None:
    with EmulatedCuda(schedule):
        model, state = served(plan_of(**PLANS[plan]), family)
        with state:
            assert same(says(model), expected(family))
            assert same(says(model), expected(family))  # another request
            state.reset()
            assert same(says(model), expected(family))


@pytest.mark.parametrize("plan", ["staging", "into the cache", "two layers ahead"])
def test_prefetches_in_pieces(plan: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demand goes between them, and what is left of one that is given up is not copied."""
    monkeypatch.setattr(CudaLink, "piece_bytes", 2048)
    monkeypatch.setattr(cuda_link, "PIECE_BYTES", 2048)
    with EmulatedCuda(schedule):
        model, state = served(plan_of(**PLANS[plan]))
        assert state.store.slab_bytes > 3 * 2048
        with state:
            assert same(says(model), expected())
            state.reset()
            assert same(says(model), expected())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral", "gpt_oss"}))
def test_families(family: str, schedule: str) -> None:
    with EmulatedCuda(schedule):
        model, state = served(plan_of("2/layer", prefetch=GATE), family, "float32")
        with state:
            assert same(says(model), expected(family, "float32"))


@pytest.mark.parametrize("plan", ["one slot a layer", "staging", "into the cache"])
def test_slabs_on_disk(plan: str, schedule: str, tmp_path: Path) -> None:
    with EmulatedCuda(schedule):
        for _ in range(2):  # written, and read again
            model, state = served(plan_of(**PLANS[plan]), host="disk", slabs=tmp_path / "slabs")
            with state:
                assert same(says(model), expected())


def test_experts_in_four_bits() -> None:
    pytest.importorskip("hqq")
    plan = plan_of("2/layer", prefetch=GATE, weights={"experts": "hqq-4bit-g16"})
    with EmulatedCuda(LATE):
        stored = says(rounded(eager(), plan.weights, torch.device("cuda", 0)))  # hqq rounds on a device in halves
        model, state = served(plan)
        with state:
            assert same(says(model), stored)


@pytest.mark.parametrize("chunk", [3, 4])
def test_chunks(chunk: int, schedule: str) -> None:
    plain = Decoding(eager("olmoe"), [PROMPT], max_new_tokens=3, chunk=chunk)
    list(plain.passes())
    with EmulatedCuda(schedule):
        model, state = served(plan_of("2/layer", prefetch=GATE), "olmoe")
        with state:
            decoding = Decoding(model, [PROMPT], max_new_tokens=3, chunk=chunk)
            list(decoding.passes())
            assert decoding.generated == plain.generated


def test_padded_batches(schedule: str) -> None:
    """Against the same plan on the CPU, whose pads demand no expert either."""
    ids = torch.tensor([[0, 0, 0, *PROMPT[:5]], PROMPT[:8]])
    mask = (torch.arange(8) >= torch.tensor([[3], [0]])).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plan = plan_of("2/layer", prefetch=GATE)
    host = offload(eager(), plan)
    with offloaded(host) as state, torch.inference_mode():
        logits = host(ids, attention_mask=mask, position_ids=positions).logits
        decided = state.log.rows()
    with EmulatedCuda(schedule):
        model, state = served(plan)
        with state, torch.inference_mode():
            there = [tensor.to("cuda:0") for tensor in (ids, mask, positions)]
            given = model(there[0], attention_mask=there[1], position_ids=there[2]).logits
            assert torch.equal(given.cpu(), logits)
            assert state.log.rows() == decided
            assert state.timings.step_tokens.tolist() == [13]


def test_the_cpu_lane(schedule: str) -> None:
    tables = {"cache": {"capacity": "1/layer"}, "miss": {"where": "host"}, "prefetch": GATE}
    with EmulatedCuda(schedule):
        model, state = served(plan_from_dict(tables))
        with state:
            assert same(says(model), expected())
            assert state.lane is not None and state.lane.computed > 0


@pytest.mark.parametrize("disk", [False, True])
def test_a_copy_that_fails_and_a_new_start(
    disk: bool, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"host": "disk", "slabs": tmp_path / "slabs"} if disk else {}
    move, left = _StreamCopies.move, [7]

    def fail_once(self: _StreamCopies, ticket: Ticket) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError("cable unplugged")
        move(self, ticket)

    monkeypatch.setattr(_StreamCopies, "move", fail_once)
    with EmulatedCuda(schedule):
        model, state = served(plan_of("1/layer"), **where)
        with state:
            with pytest.raises(ModelError, match="cable unplugged"):
                says(model)
            state.reset()
            assert same(says(model), expected())


def test_a_missing_order_names_both_operations_their_streams_and_the_slot() -> None:
    with pytest.raises(RaceError) as found, EmulatedCuda(LATE) as device:
        state = served(plan_of("2/layer"))[1]
        with state:
            with torch.cuda.stream(torch.cuda.Stream()):
                state.pool.slab(3, 8).fill_(0)
            with torch.cuda.stream(torch.cuda.Stream()):
                state.pool.slab(3, 4).clone()
    assert str(found.value) == "race on slot 3: fill_ on side stream 2 and clone on side stream 3 have no order"
    assert device.races == [str(found.value)]


def test_operands_on_two_devices_are_refused() -> None:
    with EmulatedCuda(), pytest.raises(AssertionError, match=r"aten.add.Tensor mixes devices"):
        torch.ones(3, device="cuda:0") + torch.ones(3)
