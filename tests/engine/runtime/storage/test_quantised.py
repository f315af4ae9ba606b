"""Quantised experts: bytes as counted, codes that hqq itself expands alike, output and decisions as they should be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.plan.plan import plan_from_dict
from engine.plan.tables import WeightsPlan
from engine.plan.weights import SERVED, WeightFormat
from engine.runtime import offload, offloaded
from engine.shapes import ModelShape, load_shape, shape_names
from tests.engine.runtime.models import PROMPT, MakeModel, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tracekit.errors import PlanError

torch = pytest.importorskip("torch")
quantize = pytest.importorskip("hqq.core.quantize")
from engine.runtime.storage.attention import QuantisedLinear, attention_bytes  # noqa: E402  # needs torch
from engine.runtime.storage.quantise import dequantise, quantise, unpack  # noqa: E402
from engine.runtime.storage.rounding import rounded  # noqa: E402
from engine.runtime.storage.slab_layout import PlainLayout, QuantisedLayout, layout_of  # noqa: E402

WORDS = ["hqq-8bit-g16", "hqq-4bit-g16", "hqq-3bit-g16", "hqq-2bit-g16", "hqq-2bit-g16-m16", "hqq-3bit-g8-m32"]


def module_of(shape: ModelShape) -> Any:
    """An experts module of a shape, without memory, as transformers would lay it out."""
    fused = shape.expert_layout == "gated-fused"
    gated = shape.expert_layout != "plain"
    module: Any = torch.nn.Module()
    module.num_experts, module.is_transposed, module.is_concatenated, module.has_gate = 2, fused, not fused, gated
    wide, hidden = shape.moe_intermediate_size * (1 + gated), shape.hidden_size
    sizes = {"gate_up_proj" if gated else "up_proj": (wide, hidden), "down_proj": (hidden, wide // (1 + gated))}
    for name, size in sizes.items():
        tensor = torch.empty(2, *(size[::-1] if fused else size), device="meta", dtype=torch.bfloat16)
        setattr(module, name, torch.nn.Parameter(tensor))
        if shape.has_expert_bias:
            bias = torch.nn.Parameter(torch.empty(2, size[0], device="meta", dtype=torch.bfloat16))
            setattr(module, f"{name}_bias", bias)
    return module


@pytest.mark.parametrize("word", [*SERVED, "hqq-4bit-g128", "hqq-3bit-g64-m128", "hqq-2bit-g64-m128"])
@pytest.mark.parametrize("name", shape_names())
def test_a_slab_is_as_many_bytes_as_the_shape_says(name: str, word: str) -> None:
    shape, weight_format = load_shape(name), WeightFormat.parse(word)
    try:
        expected = shape.expert_bytes(weight_format)
    except PlanError:
        with pytest.raises(PlanError):
            layout_of(module_of(shape), word)
        return
    module = module_of(shape)
    if not weight_format.quantised:
        module = module.to(getattr(torch, weight_format.plain_dtype))
    layout: Any = layout_of(module, word)
    assert layout.bytes == expected
    ends = [field.offset + field.bytes for field in layout.fields]
    starts = [field.offset for field in layout.fields]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert all(field.offset % field.dtype.itemsize == 0 for field in layout.fields)
    assert isinstance(layout, QuantisedLayout if weight_format.quantised else PlainLayout)


@pytest.mark.parametrize("word", [*WORDS, "hqq-2bit", "hqq-4bit"])
def test_stored_arrays_are_those_counted_and_hqq_expands_them_alike(word: str) -> None:
    weight_format, rows, cols = WeightFormat.parse(word), 128, 192
    matrix = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) / 8
    stored = quantise(matrix, weight_format)
    counted = {t.name: (f"torch.{t.dtype}", t.shape) for t in weight_format.tensors(rows, cols)}
    assert {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in stored.items()} == counted
    assert sum(tensor.nbytes for tensor in stored.values()) == weight_format.tensor_bytes(rows, cols)
    back = dequantise(stored, weight_format, rows, cols)
    quantizer = quantize.Quantizer
    meta: dict[str, Any] = {}
    for name in ("scale", "zero"):
        meta[name] = stored[name].float()
        if weight_format.meta_group:
            inner = {part: stored[f"{name}.{part}"].float() for part in ("scale", "zero")}
            shape = (rows * cols // weight_format.group, 1)
            inner |= {"packing": "8bit_u8", "view_as_float": False, "nbits": 8, "shape": shape}
            meta[name] = quantizer.dequantize(stored[name], inner | {"compute_dtype": torch.float32})
    packing = quantizer.bit_to_packing[weight_format.bits]
    meta |= {"packing": packing, "view_as_float": False, "nbits": weight_format.bits, "compute_dtype": torch.float32}
    meta |= {"group_size": weight_format.group, "axis": 1, "shape": (rows, cols)}
    assert torch.equal(back, quantizer.dequantize(stored["codes"], meta))
    groups = rows * cols // weight_format.group
    codes = unpack(stored["codes"], weight_format.bits)[:groups]
    assert int(codes.max()) == 2**weight_format.bits - 1 and int(codes.min()) == 0


def test_codes_are_the_nearest_and_more_bits_are_nearer() -> None:
    matrix = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    errors = []
    for word in ("hqq-8bit-g16", "hqq-4bit-g16", "hqq-3bit-g16", "hqq-2bit-g16"):
        back = dequantise(quantise(matrix, WeightFormat.parse(word)), WeightFormat.parse(word), 64, 128)
        errors.append(float((back - matrix).pow(2).mean()))
    assert errors == sorted(errors) and errors[0] < 1e-4 and errors[-1] < 0.2
    # The paper's meta-data in 8 bits costs little: codes are chosen for what is stored.
    quantised_meta = WeightFormat.parse("hqq-2bit-g16-m128")
    error = float((dequantise(quantise(matrix, quantised_meta), quantised_meta, 64, 128) - matrix).pow(2).mean())
    assert error < 1.1 * errors[-1]


def test_groups_without_spread_and_empty_weights_survive() -> None:
    for value in (0.0, 1.0, -3e-5):
        for word in WORDS:
            weight_format = WeightFormat.parse(word)
            back = dequantise(quantise(torch.full((32, 128), value), weight_format), weight_format, 32, 128)
            assert torch.isfinite(back).all() and float((back - value).abs().max()) < 0.02, (value, word)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_the_engine_says_what_the_rounded_model_says(
    family: str, word: str, make_model: MakeModel, tmp_path: Path
) -> None:
    """Bit for bit, with the decisions of a replay whose capacity counts the stored bytes."""
    plan = plan_from_dict(
        {"cache": {"capacity": "20kB"}, "weights": {"experts": word}, "prefetch": {"predictor": "gate"}}
    )
    plain = rounded(make_model(family), plan.weights)
    trace = record(plain, tmp_path / "t.trace", lambda: answer(plain))
    expected = answer(plain)
    model = offload(make_model(family), plan)
    with offloaded(model) as state:
        assert same(answer(model), expected)
        assert state.store.slab_bytes < state.layers[0].expert_bytes
        assert state.spec.size.tolist() == [state.store.slab_bytes] * len(state.spec.size)
        assert_decided_alike(state.log, trace, state.spec)
        loads = sum(state.bytes_loaded.values())
        assert loads > 0 and loads % state.store.slab_bytes == 0
        assert all(parameter.is_meta for layer in state.layers for parameter in layer.experts.parameters())


def test_attention_may_have_a_format_of_its_own(make_model: MakeModel) -> None:
    plan = plan_from_dict({"cache": {"capacity": "2/layer"}, "weights": {"attention": "hqq-4bit-g16"}})
    plain = rounded(make_model("mixtral"), plan.weights)
    before = [m.weight.numel() for m in make_model("mixtral").model.layers[0].self_attn.children()]
    model = offload(make_model("mixtral"), plan)
    with offloaded(model):
        assert same(answer(model), answer(plain))
        found = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
        assert len(found) == 3 * 4
        assert attention_bytes(model) == 3 * sum(before) * 6 // 8  # 4 bits, and 32 for each 16 weights
    assert not same(answer(plain, PROMPT, 2), answer(make_model("mixtral"), PROMPT, 2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"experts": "hqq-4bit-g4096"}, "no multiple of the group size 4096"),
        ({"attention": "hqq-4bit-g4096"}, "no multiple of the group size 4096"),
        ({"experts": "fp16"}, "load it so"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_moves(
    weights: dict[str, str], message: str, make_model: MakeModel
) -> None:
    model = make_model()
    with pytest.raises(PlanError, match=message):
        offload(model, plan_from_dict({"cache": {"capacity": "2/layer"}, "weights": weights}))
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_without_hqq_the_error_is_one_line(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from engine.runtime.storage.quantise import quantizer_of_hqq

    quantizer_of_hqq.cache_clear()
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", SimpleNamespace())
    with pytest.raises(PlanError, match="pip install hqq"):
        rounded(make_model(), WeightsPlan(experts="hqq-4bit-g16"))
    quantizer_of_hqq.cache_clear()
