"""Slabs hold what the modules held, aligned, whatever an expert consists of."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from engine.runtime.pool import SlotPool  # noqa: E402  # needs torch
from engine.runtime.storage.host_store import HostStore  # noqa: E402
from engine.runtime.storage.slab_layout import ALIGNMENT, PlainLayout, aligned  # noqa: E402
from tracekit.errors import HardwareError  # noqa: E402


def odd_experts(count: int, width: int, dtype: Any) -> Any:
    """Experts whose tensors have awkward sizes, one of them a scalar each, beside a parameter that is not theirs."""
    module = torch.nn.Module()
    module.num_experts = count
    module.gate_up_proj = torch.nn.Parameter(torch.randn(count, 3, width, dtype=dtype))
    module.scale = torch.nn.Parameter(torch.randn(count, dtype=torch.float32))
    module.down_proj_bias = torch.nn.Parameter(torch.randn(count, 1, dtype=dtype))
    module.shared = torch.nn.Parameter(torch.randn(count + 1, 2))
    return module


def layer_of(experts: Any) -> Any:
    return SimpleNamespace(name="layer", experts=experts, num_experts=experts.num_experts)


def test_layers_of_different_shapes_share_one_store() -> None:
    modules = [odd_experts(3, 5, torch.bfloat16), odd_experts(4, 7, torch.float32), odd_experts(2, 1, torch.float16)]
    values = [{name: p.detach().clone() for name, p in module.named_parameters()} for module in modules]
    shared = [module.shared for module in modules]
    store = HostStore([layer_of(module) for module in modules])
    pool = SlotPool(2, store.slab_bytes, torch.device("cpu"))
    assert store.experts == 4
    assert store.bytes == sum(
        m.num_experts * aligned(layout.bytes) for m, layout in zip(modules, store.layouts, strict=True)
    )
    for layer, module in enumerate(modules):
        assert module.shared is shared[layer]
        assert module.gate_up_proj.is_meta
        assert module.gate_up_proj.shape == values[layer]["gate_up_proj"].shape
        for expert in range(module.num_experts):
            key = layer * 4 + expert
            slab = store.slab(key)
            pool.slab(1, slab.numel()).copy_(slab)
            for place in (store.views(key), pool.views(1, store.layout(key))):
                assert place.keys() == {"gate_up_proj", "scale", "down_proj_bias"}
                assert all(torch.equal(place[name], values[layer][name][expert]) for name in place)
                assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in place.values())


def test_a_layout_wastes_less_than_a_cache_line_per_tensor() -> None:
    layout = PlainLayout.of(odd_experts(3, 5, torch.bfloat16))
    assert [field.bytes for field in layout.fields] == [30, 4, 2]
    assert layout.bytes == 2 * ALIGNMENT + 2  # which the last tensor does not fill up
    assert aligned(layout.bytes) == 3 * ALIGNMENT


def test_more_slots_than_memory_is_an_error() -> None:
    with pytest.raises(HardwareError, match="give the cache less capacity"):
        SlotPool(1 << 30, 1 << 30, torch.device("cpu"))
