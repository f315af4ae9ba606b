"""An offloaded model under grouped kernels: the bits of the same kernels over the model that is not offloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine.plan.plan import Plan
from tests.engine.runtime import models
from tests.engine.runtime.models import CONFIGS, PROMPT, Answer, answer, plan_of, same

pytest.importorskip("triton", reason="the kernels' extra is not installed: pip install 'moe-tracekit[kernels]'")
torch = pytest.importorskip("torch")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.experts import grouped, launching  # noqa: E402
from engine.runtime.experts.activation import activation_of  # noqa: E402
from engine.runtime.offload_state import OffloadState  # noqa: E402
from engine.runtime.storage.rounding import rounded  # noqa: E402
from tests.engine.runtime.cuda.models import eager, says, served  # noqa: E402
from tests.engine.runtime.experts.modules import experts_of  # noqa: E402
from tests.helpers.emulated_cuda.device import EARLY, LATE, EmulatedCuda  # noqa: E402
from tracekit.errors import PlanError  # noqa: E402

pytestmark = pytest.mark.skipif(
    not launching.compiles_for(torch.device("cpu")), reason="where there is a GPU, kernels are not interpreted"
)

GATE = {"predictor": "gate", "count": 2, "staging": 2}
SHORT, NEW = PROMPT[:4], 2


def plan(capacity: str = "2/layer", word: str | None = None, experts: str = "each", **tables: Any) -> Plan:
    weights = {} if word is None else {"weights": {"experts": word}}
    return plan_of(capacity, compute={"kernels": "grouped", "experts": experts}, **weights, **tables)


def unoffloaded(family: str, dtype: str, chosen: Plan, quantising: str = "cpu") -> Answer:
    """What the model says that is not offloaded, its experts stacked as they lie."""
    grouped.register()
    model = eager(family, dtype)
    if chosen.weights.experts is not None:
        model = rounded(model, chosen.weights, torch.device(quantising, 0))  # hqq rounds on a device in halves
    model.set_experts_implementation(grouped.IMPLEMENTATION)
    return answer(model, SHORT, NEW)


CASES = [
    ("mixtral", None, "2/layer", "each", "none"),
    ("gpt_oss", "hqq-4bit-g16", "1/layer", "each", "gate"),
    ("deepseek_v3", None, "0", "fused", "gate"),
]


@pytest.mark.parametrize(("family", "word", "capacity", "experts", "prefetch"), CASES)
def test_an_offloaded_model_says_what_the_same_kernels_say_of_stacked_experts(
    family: str, word: str | None, capacity: str, experts: str, prefetch: str
) -> None:
    chosen = plan(capacity, word, experts, prefetch=GATE | {"predictor": prefetch})
    model = eager(family, "float32")
    with offloaded(offload(model, chosen)) as state:
        assert same(answer(model, SHORT, NEW), unoffloaded(family, "float32", chosen))
        assert sum(state.bytes_loaded.values()) > 0


@pytest.mark.parametrize("schedule", [EARLY, LATE])
@pytest.mark.parametrize(("family", "word", "capacity", "experts", "prefetch"), CASES)
def test_on_a_device_as_well_without_a_race(
    family: str, word: str | None, capacity: str, experts: str, prefetch: str, schedule: str
) -> None:
    """Slots are read and copied to by turns, one by several experts of a visit: capacities are small."""
    chosen = plan(capacity, word, experts, prefetch=GATE | {"predictor": prefetch})
    with EmulatedCuda(schedule):
        wanted = unoffloaded(family, "bfloat16", chosen, "cuda")
        model, state = served(chosen, family)
        with state:
            found = answer(model, SHORT, NEW)
            assert same(Answer([logits.cpu() for logits in found.logits], found.tokens), wanted)


VISIT = ["_to_copy", "copy to the host"]
"""The gate's choice is brought to the host in one copy, after one conversion."""
TOLD = ["copy to the device"]
PAIR, LAST_PAIR = ["kernel first", "kernel second"], ["kernel first", "kernel second_of_token"]


@contextmanager
def launches_of_visits(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What each visit within the block gives to the computing stream."""
    found: list[list[str]] = []
    own = OffloadState._visit

    def visit(self: OffloadState, *arguments: Any) -> Any:
        before = len(device.launches)
        out = own(self, *arguments)
        found.append(device.launches[before:])
        return out

    with monkeypatch.context() as patched:
        patched.setattr(OffloadState, "_visit", visit)
        yield found


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (128, 8)])
@pytest.mark.parametrize("word", [None, "hqq-2bit-g16"])
def test_a_visit_of_one_token_is_a_few_launches(
    experts: int, top_k: int, word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 6 with everything resident, at most 4 more with misses: 5 here, and 7 where some are there."""
    name, settings = CONFIGS["qwen3_moe"]
    settings = settings | {"num_experts": experts, "num_experts_per_tok": top_k, "num_hidden_layers": 2}
    monkeypatch.setitem(CONFIGS, f"of {experts}", (name, settings))
    with EmulatedCuda(LATE) as device:
        model, state = served(plan(f"{experts}/layer", word), f"of {experts}", random_experts=0)
        with state, torch.inference_mode():
            ids = torch.tensor([PROMPT[:1]]).to("cuda:0")
            with launches_of_visits(device, monkeypatch) as first:
                model(input_ids=ids)  # nothing is there
            with launches_of_visits(device, monkeypatch) as again:
                model(input_ids=ids)  # everything
            assert first == again == [VISIT + TOLD + LAST_PAIR] * 2
            assert state.bytes_loaded["load"] == 2 * top_k * state.store.slab_bytes
    with EmulatedCuda(LATE) as device:
        model, state = served(plan(f"{top_k - 1}/layer", word), f"of {experts}", random_experts=0)
        with state, torch.inference_mode():
            ids = torch.tensor([PROMPT[:1]]).to("cuda:0")
            model(input_ids=ids)
            with launches_of_visits(device, monkeypatch) as some:
                model(input_ids=ids)
            assert some == [VISIT + TOLD + PAIR + LAST_PAIR] * 2
            assert max(map(len, some)) <= len(again[0]) + 4 and len(again[0]) <= 6


def test_the_host_waits_as_often_as_before() -> None:
    with EmulatedCuda(LATE) as device:
        model, state = served(plan("2/layer", prefetch=GATE))
        with state, torch.inference_mode():
            ids = torch.tensor([SHORT]).to("cuda:0")
            for inputs in (ids, ids[:, :1]):
                before = len(device.waits)
                model(input_ids=inputs)
                waits = device.waits[before:]
                assert waits == ["copy to the host"] * len(state.layers) + ["the computing stream"]


def test_quantised_experts_are_expanded_by_a_kernel_each_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager: the bits of the rounded model on the CPU, where none is launched; three launches for each expert."""
    chosen = plan_of("2/layer", weights={"experts": "hqq-4bit-g16"})
    with EmulatedCuda(LATE) as device:
        wanted = says(rounded(eager(), chosen.weights, torch.device("cuda", 0)), 1)
        model, state = served(chosen)
        with state:
            before = len(device.launches)
            assert same(says(model, 1), wanted)
            assert not {"bitwise_right_shift", "bitwise_and", "sub_"} & set(device.launches[before:])
            with launches_of_visits(device, monkeypatch) as visits, torch.inference_mode():
                model(input_ids=torch.tensor([PROMPT[:1]]).to("cuda:0"))
            assert [visit.count("kernel expand") for visit in visits] == [3 * state.top_k] * len(state.layers)


def test_what_kernels_do_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match='"host" needs kernels = "eager"'):
        offload(models.original("mixtral", "bfloat16"), plan_of(compute={"kernels": "grouped"}, miss={"where": "host"}))
    module = experts_of("MixtralExperts")
    module.act_fn = torch.nn.Softsign()
    with pytest.raises(PlanError, match=r'MixtralExperts computes .* use kernels = "eager"'):
        activation_of(module)
    module.has_post_expert_norm = True
    with pytest.raises(PlanError, match="a norm behind its experts"):
        activation_of(module)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(PlanError, match="runs on a CUDA device, not on cpu"):
        offload(models.original("mixtral", "bfloat16"), plan())
    monkeypatch.setattr(launching, "has_triton", lambda: False)
    with pytest.raises(PlanError, match=r'needs Triton.*: pip install "moe-tracekit\[kernels\]"'):
        offload(models.original("mixtral", "bfloat16"), plan())
