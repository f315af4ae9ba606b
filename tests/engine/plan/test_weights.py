"""Weight formats: the words, and the bytes against what the hqq package really stores."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.weights import FORMATS, WeightFormat
from tracekit.errors import PlanError

HQQ_WORDS = [
    "hqq-8bit-g64", "hqq-4bit-g64", "hqq-4bit-g128", "hqq-3bit-g64", "hqq-2bit-g16",
    "hqq-2bit-g64-m128", "hqq-2bit", "hqq-4bit-g64-m128", "hqq-3bit-g64-m128",
]  # fmt: skip


@pytest.fixture(scope="module")
def quantize() -> ModuleType:
    pytest.importorskip("torch", reason="compares with the hqq package, which needs torch")
    module: ModuleType = pytest.importorskip("hqq.core.quantize", reason="compares with the hqq package")
    return module


@pytest.mark.parametrize(
    ("word", "canonical", "bits", "group", "meta_group"),
    [
        ("fp32", "fp32", 32, 0, 0),
        ("bf16", "bf16", 16, 0, 0),
        ("hqq-8bit", "hqq-8bit-g64", 8, 64, 0),
        ("hqq-4bit", "hqq-4bit-g64", 4, 64, 0),
        ("hqq-3bit", "hqq-3bit-g64", 3, 64, 0),
        # Only the bare word carries the paper's quantised meta-data; a spelled group means what it spells.
        ("hqq-2bit", "hqq-2bit-g16-m128", 2, 16, 128),
        ("hqq-2bit-g16", "hqq-2bit-g16", 2, 16, 0),
    ],
)
def test_a_word_means_its_canonical_spelling(word: str, canonical: str, bits: int, group: int, meta_group: int) -> None:
    parsed = WeightFormat.parse(word)
    assert (parsed.name, parsed.bits, parsed.group, parsed.meta_group) == (canonical, bits, group, meta_group)
    assert WeightFormat.parse(canonical) == parsed
    assert str(parsed) == canonical


@pytest.mark.parametrize("word", FORMATS)
def test_every_word_a_user_is_told_about_parses(word: str) -> None:
    WeightFormat.parse(word)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("hqq-4bits", "did you mean 'hqq-4bit'"),
        ("BF16", "did you mean 'bf16'"),
        ("hqq-5bit", "did you mean"),
        ("", "known: fp32"),
        ("hqq-4bit-g0", "multiple of 8"),
        ("hqq-4bit-g60", "multiple of 8"),
        ("hqq-2bit-g16-m0", "multiple of 8"),
        ("hqq-4bit-g99999999999999999999", "unknown weight format"),
        ("hqq-4bit\n", "unknown weight format"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_mend(word: str, says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        WeightFormat.parse(word)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_no_text_breaks_the_parser(word: str) -> None:
    try:
        assert WeightFormat.parse(WeightFormat.parse(word).name).name
    except PlanError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("word", HQQ_WORDS)
@pytest.mark.parametrize("rows_cols", [(128, 512), (896, 256), (256, 896), (512, 1024), (384, 2560)])
def test_bytes_are_what_hqq_stores(quantize: ModuleType, word: str, rows_cols: tuple[int, int]) -> None:
    """Array by array: the shapes and types that hqq's own quantizer returns for a random matrix."""
    import torch

    weights = WeightFormat.parse(word)
    matrix = torch.randn(*rows_cols, generator=torch.Generator().manual_seed(0))
    options = {"optimize": False, "device": "cpu"}
    codes, meta = quantize.Quantizer.quantize(matrix, weights.bits, group_size=weights.group, axis=1, **options)
    stored = {"codes": codes, "scale": meta["scale"].half(), "zero": meta["zero"].half()}
    if weights.meta_group:
        for name in ("scale", "zero"):
            inner, inner_meta = quantize.Quantizer.quantize(meta[name], 8, group_size=weights.meta_group, **options)
            stored[name] = inner
            stored |= {f"{name}.{part}": inner_meta[part].half() for part in ("scale", "zero")}
    expected = {name: (str(array.dtype), tuple(array.shape)) for name, array in stored.items()}
    assert {t.name: (f"torch.{t.dtype}", t.shape) for t in weights.tensors(*rows_cols)} == expected
    assert weights.tensor_bytes(*rows_cols) == sum(array.nbytes for array in stored.values())


def test_hqqs_own_recipe_of_quantised_meta_data_is_ours(quantize: ModuleType) -> None:
    """A whole HQQLinear with meta-data quantised as hqq's `offload_meta` recipe does, against `hqq-2bit`."""
    import torch

    recipe = {"nbits": 8, "channel_wise": True, "group_size": 128, "optimize": False}
    config = quantize.hqq_base_quant_config(nbits=2, group_size=16)
    config |= {"scale_quant_params": dict(recipe), "zero_quant_params": dict(recipe)}
    layer = quantize.HQQLinear(None, config, compute_dtype=torch.float16, device="cpu", initialize=False)
    layer.quantize(torch.randn(256, 512), **{key: config[key] for key in config if key.endswith("_params")})
    arrays = [layer.W_q, layer.meta["scale_q"], layer.meta["zero_q"]]
    arrays += [layer.meta[outer][inner] for outer in ("meta_scale", "meta_zero") for inner in ("scale", "zero")]
    assert WeightFormat.parse("hqq-2bit").tensor_bytes(256, 512) == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("word", [*HQQ_WORDS, "fp32", "fp16"])
def test_bits_per_parameter_is_the_limit_of_large_matrices(word: str) -> None:
    weights = WeightFormat.parse(word)
    rows, cols = 14336, 4096
    exact = 8 * weights.tensor_bytes(rows, cols) / (rows * cols)
    assert exact == pytest.approx(weights.bits_per_parameter, rel=1e-4)


def test_mixtral_experts_in_two_bits_take_about_three() -> None:
    """2 bits of code, 1 bit of 8-bit scales and zeros, 1/32 bit of their own scales and zeros."""
    assert WeightFormat.parse("hqq-2bit").bits_per_parameter == 2 + 16 / 16 + 64 / (16 * 128)
    assert WeightFormat.parse("hqq-2bit").tensor_bytes(14336, 4096) == 14336 * 4096 * 97 // 256


@given(
    st.sampled_from([8, 4, 3, 2]),
    st.integers(1, 32).map(lambda n: 8 * n),
    st.integers(1, 75).map(lambda n: 4 * n),
    st.integers(1, 9),
)
def test_size_is_codes_scales_and_zeros(bits: int, group: int, rows: int, groups_per_row: int) -> None:
    """No code is lost, each group adds four bytes, and only 3-bit pads: by less than a row of words."""
    cols = group * groups_per_row
    groups = rows * groups_per_row
    size = WeightFormat.parse(f"hqq-{bits}bit-g{group}").tensor_bytes(rows, cols) - 4 * groups
    if bits == 3:
        assert groups * group * 4 / 10 <= size < groups * group * 4 / 10 + 4 * group
    else:
        assert size == rows * cols * bits // 8


@pytest.mark.parametrize(
    ("word", "rows", "cols", "says"),
    [
        ("hqq-4bit", 10, 10, "group size 64"),
        ("hqq-4bit", 1, 192, "do not pack 2"),  # three groups: hqq would silently repeat one
        ("hqq-2bit-g64", 6, 64, "do not pack 4"),
        ("hqq-2bit", 28, 128, "meta group size 128"),
        ("bf16", 0, 128, "at least 1"),
        ("hqq-4bit", -64, -64, "at least 1"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(word: str, rows: int, cols: int, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        WeightFormat.parse(word).tensor_bytes(rows, cols)


class _Expert:
    def expert_tensors(self) -> tuple[tuple[int, int], ...]:
        return (128, 64), (64, 128)

    def expert_biases(self) -> tuple[int, ...]:
        return 128, 64


@pytest.mark.parametrize(("word", "size"), [("fp32", 4 * 16576), ("bf16", 2 * 16576), ("hqq-4bit", 8192 + 1024 + 384)])
def test_biases_of_an_expert_are_not_quantised(word: str, size: int) -> None:
    assert WeightFormat.parse(word).expert_bytes(_Expert()) == size
