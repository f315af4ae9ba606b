"""Grouped kernels against double precision: every layout, format, k and number of tokens; and their own bits."""

from typing import Any

import pytest

from tests.engine.runtime.experts.modules import EXPERTS, LAYOUTS, chosen, eager_experts, error, experts_of, in_double

pytest.importorskip("triton", reason="the kernels' extra is not installed: pip install 'moe-tracekit[kernels]'")
torch = pytest.importorskip("torch")
from engine.runtime.experts.grouped import FEW, Call, Stack, grouped_experts  # noqa: E402  # needs torch
from engine.runtime.experts.launching import compiles_for  # noqa: E402
from engine.runtime.experts.stacked import Bytes, shape_of  # noqa: E402
from engine.runtime.storage.slab_layout import aligned, expert_parameters, layout_of  # noqa: E402
from engine.runtime.visit_routing import sort_by_expert  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not compiles_for(CPU), reason="where there is a GPU, kernels are not interpreted")

TOLERANCE = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}
"""Of the largest number. Half a unit in the last place is 2e-3 in bfloat16 and 2.4e-4 in float16; a result is rounded
once between the products and once at the end, where eager rounds five times."""
WORDS = ["hqq-8bit-g16", "hqq-4bit-g64", "hqq-4bit-g24", "hqq-3bit-g64", "hqq-3bit-g8-m32", "hqq-2bit-g16"]
WORDS += ["hqq-2bit-g16-m16", "hqq-4bit-g128"]


def slabs_of(module: Any, word: str | None) -> tuple[Any, Any]:
    """The experts as they are stored, u8 [experts, bytes], and how."""
    layout = layout_of(module, word)
    slabs = torch.zeros(module.num_experts, aligned(layout.bytes, 512), dtype=torch.uint8)
    for name, parameter in expert_parameters(module).items():
        layout.pack(name, parameter.detach(), slabs[:, : layout.bytes])
    return slabs, layout


def in_slots(module: Any, word: str | None, given: tuple[Any, Any, Any], groups: int = 1) -> Any:
    """The kernels' answer from slots in which the experts lie in another order, in so many calls."""
    slabs, layout = slabs_of(module, word)
    slots = slabs.flip(0).contiguous()
    everything = Bytes(slots.view(-1), slots.stride(0))
    stack = Stack(shape_of(module, layout), (everything, everything), (everything, everything), lambda place: ())
    rows, ids, weights = given
    routing = sort_by_expert(ids.numpy().astype("uint16"), module.num_experts, CPU)
    demand = routing.demand
    places = {expert: EXPERTS - 1 - expert for expert in demand}
    # What is there is seldom what comes first in order.
    parts = [demand[number::groups][::-1] for number in range(groups)]
    call = Call(stack, parts, places, routing, rows, weights)
    for number in range(groups):
        call.compute(number)
    return call.out


def as_stored(module: Any, word: str) -> dict[str, Any]:
    """The module's tensors, each expert's expanded from its slab."""
    slabs, layout = slabs_of(module, word)
    each = [layout.weights(layout.views(slab[: layout.bytes])) for slab in slabs]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, dtype) for name in LAYOUTS for dtype in ("float32", "bfloat16")), ("MixtralExperts", "float16")],
)
def test_every_layout_and_number_of_tokens(name: str, dtype: str) -> None:
    module = experts_of(name, dtype)
    for tokens, k in ((1, 3), (3, 1), (19, 4)):
        given = chosen(tokens, k, dtype)
        wanted = in_double(module, *given)
        with torch.inference_mode():
            found, eager = grouped_experts(module, *given), eager_experts(module, *given)
        assert found.dtype is eager.dtype and found.shape == eager.shape
        assert error(found, wanted) <= TOLERANCE[dtype], (tokens, k)
        assert torch.equal(in_slots(module, None, given), found)


@pytest.mark.parametrize(
    ("name", "word"),
    [*(("MixtralExperts", word) for word in WORDS), *(("GptOssExperts", word) for word in WORDS[::2]),
     ("NemotronHExperts", "hqq-2bit-g16-m16")],
)  # fmt: skip
def test_every_format_equals_the_kernels_over_expanded_weights(name: str, word: str) -> None:
    """Bit for bit, and double precision closely: rows that are whole groups, and rows that groups straddle."""
    for hidden, inner in ((128, 64), (192, 96)) if "g24" not in word else ((96, 48),):
        module = experts_of(name, "bfloat16", hidden, inner)
        try:
            stored = as_stored(module, word)
        except Exception as error_:
            pytest.skip(f"{word} cannot store {hidden} x {inner}: {error_}")
        given = chosen(1, 2, "bfloat16", hidden)
        wanted = in_double(module, *given, stored)
        with torch.no_grad():
            for parameter_name, parameter in expert_parameters(module).items():
                parameter.copy_(stored[parameter_name])
            found = in_slots(experts_of(name, "bfloat16", hidden, inner), word, given)
            assert torch.equal(found, grouped_experts(module, *given))
        assert error(found, wanted) <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_calls_nor_other_tokens_change_a_bit(dtype: str) -> None:
    """One call or three; a token alone or among others, as long as programs take as many rows."""
    module = experts_of("GptOssExperts", dtype)
    many = chosen(FEW + 3, 2, dtype)
    assert torch.equal(in_slots(module, None, many, groups=3), in_slots(module, None, many))
    rows, ids, weights = chosen(FEW, 4, dtype)
    whole = in_slots(module, None, (rows, ids, weights))
    for first, last in ((4, 5), (2, 6)):
        some = (rows[first:last], ids[first:last], weights[first:last])
        for groups in (1, 3):
            assert torch.equal(in_slots(module, None, some, groups), whole[first:last])


def test_experts_that_are_chosen_twice_or_not_at_all() -> None:
    module = experts_of("MixtralExperts")
    rows, ids, weights = chosen(4, 3)
    ids[2, 1] = ids[2, 0]
    ids[1] = EXPERTS  # padding, as it is marked
    wanted = in_double(module, rows, ids.clamp(max=EXPERTS - 1), weights * (ids < EXPERTS))
    with torch.inference_mode():
        found = in_slots(module, None, (rows, ids, weights))
        alone = in_slots(module, None, (rows[1:2], ids[1:2], weights[1:2]))
    assert error(found, wanted) <= TOLERANCE["float32"] and not found[1].any()
    assert not alone.any()
    strided = torch.randn(4, 96, 2)[..., 0]  # neither rows nor numbers side by side
    assert torch.equal(
        in_slots(module, None, (strided, ids, weights)), in_slots(module, None, (strided.contiguous(), ids, weights))
    )
