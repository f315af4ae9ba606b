"""Other software's formats: block sizes against ggml's own table, bytes against arrays as their packages make them."""

from importlib import import_module

import pytest

from engine.plan import foreign_formats
from engine.plan.weights import WeightFormat
from engine.shapes import load_shape
from tracekit.errors import PlanError


def test_blocks_are_ggmls() -> None:
    pytest.importorskip("gguf", reason="compares with the table of the gguf package")
    table = {kind.name.lower(): size for kind, size in import_module("gguf.constants").GGML_QUANT_SIZES.items()}
    ours = {word: size for word, size in foreign_formats.BLOCKS.items() if word != "nvfp4"}
    assert {word: tuple(table[word]) for word in ours} == ours
    values, size = table["nvfp4"]  # ggml keeps four of the 16-value blocks together
    assert (values // 4, size // 4) == foreign_formats.BLOCKS["nvfp4"]


@pytest.mark.parametrize(
    ("word", "bits"),
    [("q8_0", 8.5), ("q6_k", 6.5625), ("q5_k", 5.5), ("q4_k", 4.5), ("q4_0", 4.5), ("q3_k", 3.4375), ("q2_k", 2.625),
     ("iq2_xxs", 2.0625), ("iq4_xs", 4.25), ("mxfp4", 4.25), ("fp8", 8.0)],
)  # fmt: skip
def test_bits_of_a_value_are_the_published_ones(word: str, bits: float) -> None:
    assert WeightFormat.parse(word).bits_per_parameter == pytest.approx(bits, abs=1e-6)


def test_groups_down_a_column() -> None:
    """AWQ at 4096 x 11008, group 128: qweight [4096, 1376] i32, qzeros [32, 1376] i32, scales [32, 11008] fp16."""
    awq, gptq = WeightFormat.parse("awq-4bit"), WeightFormat.parse("gptq-4bit-g128")
    assert awq.name == "awq-4bit-g128"
    assert awq.tensor_bytes(11008, 4096) == 4 * 4096 * 1376 + 4 * 32 * 1376 + 2 * 32 * 11008
    assert gptq.tensor_bytes(11008, 4096) == awq.tensor_bytes(11008, 4096) + 4 * 4096
    assert WeightFormat.parse("fp8-b128").tensor_bytes(1536, 7168) == 1536 * 7168 + 4 * 12 * 56
    assert WeightFormat.parse("nvfp4").tensor_bytes(64, 32) == 64 * 32 // 16 * 9 + 4


def test_gpt_oss_20b_is_as_large_as_its_card_says() -> None:
    """Its experts in mxfp4: 24 layers of 32 experts; the card's checkpoint of 12.8 GiB holds the rest in 16 bits."""
    shape = load_shape("gpt-oss-20b")
    experts = 24 * 32 * shape.expert_bytes(WeightFormat.parse("mxfp4"))
    rest = 2 * (shape.total_params - 24 * 32 * shape.expert_params)
    assert (experts + rest) / 2**30 == pytest.approx(12.8, rel=0.01)


@pytest.mark.parametrize(
    ("word", "rows", "cols", "says"),
    [("q4_k", 8, 2880, "block of 256"), ("mxfp4", 8, 20, "block of 32"), ("awq-4bit", 8, 100, "group of 128"),
     ("gptq-4bit-g64", 9, 64, "none of 8")],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(word: str, rows: int, cols: int, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        WeightFormat.parse(word).tensor_bytes(rows, cols)


@pytest.mark.parametrize("word", ["q4_k_m", "q9_0", "awq-4bit-g0", "awq-3bit", "fp8-b64"])
def test_an_unknown_word_is_refused(word: str) -> None:
    with pytest.raises(PlanError, match="unknown weight format"):
        WeightFormat.parse(word)


def test_the_engine_does_not_store_them() -> None:
    with pytest.raises(PlanError, match="is for replays and sizing"):
        WeightFormat.parse("q4_k").served()
    assert WeightFormat.parse("hqq-4bit").served() == WeightFormat.parse("hqq-4bit")


def test_a_cache_of_keys_and_values_takes_whole_blocks() -> None:
    assert WeightFormat.parse("q8_0").values_bytes(64) == 68
    assert WeightFormat.parse("fp8").values_bytes(65) == 65
    assert WeightFormat.parse("fp16").values_bytes(64) == 128
