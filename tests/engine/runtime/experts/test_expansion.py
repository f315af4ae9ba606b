"""One kernel for each matrix: the bits of `dequantise`, for every format and type."""

from typing import Any

import pytest

from engine.plan.weights import WeightFormat

pytest.importorskip("triton", reason="the kernels' extra is not installed: pip install 'moe-tracekit[kernels]'")
torch = pytest.importorskip("torch")
pytest.importorskip("hqq")
from engine.runtime.experts.launching import compiles_for  # noqa: E402  # needs torch
from engine.runtime.storage.expansion import expand_by_kernel  # noqa: E402
from engine.runtime.storage.quantise import dequantise, quantise  # noqa: E402

pytestmark = pytest.mark.skipif(
    not compiles_for(torch.device("cpu")), reason="where there is a GPU, kernels are not interpreted"
)

WORDS = ["hqq-8bit-g16", "hqq-8bit", "hqq-4bit", "hqq-4bit-g16", "hqq-4bit-g24", "hqq-4bit-g128", "hqq-3bit"]
WORDS += ["hqq-3bit-g8-m32", "hqq-3bit-g64-m16", "hqq-2bit", "hqq-2bit-g16", "hqq-2bit-g16-m16", "hqq-2bit-g64-m16"]


def stored(word: str, rows: int = 96, cols: int = 64) -> tuple[dict[str, Any], WeightFormat, int, int]:
    weight_format = WeightFormat.parse(word)
    while (rows * cols) % (weight_format.group * max(weight_format.meta_group, 1)):
        cols += 64
    matrix = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) / 8
    matrix[:2] = 3.0  # groups without spread
    return quantise(matrix, weight_format), weight_format, rows, cols


@pytest.mark.parametrize("word", WORDS)
def test_bits_are_those_of_dequantise(word: str) -> None:
    parts, weight_format, rows, cols = stored(word)
    wanted = dequantise(parts, weight_format, rows, cols)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        target = torch.full((rows + 2, cols), 7.0, dtype=dtype)
        expand_by_kernel(parts, weight_format, rows, cols, target[1:-1])
        assert torch.equal(target[1:-1], wanted.to(dtype))
        assert (target[[0, -1]] == 7).all()  # nothing is written beside it


def test_ties_are_rounded_to_even_and_what_is_no_number_stays_none() -> None:
    """Codes and scales made by hand: 8 bits, zero 0, scale such that values fall between two of bfloat16."""
    weight_format = WeightFormat.parse("hqq-8bit-g8")
    parts = {
        "codes": torch.arange(256, dtype=torch.uint8).view(32, 8),
        "scale": torch.full((32, 1), 1 + 2**-9, dtype=torch.float16),
        "zero": torch.zeros(32, 1, dtype=torch.float16),
    }
    parts["scale"][::3] = float("inf")
    parts["zero"][1::2] = 0.5
    wanted = dequantise(parts, weight_format, 16, 16).to(torch.bfloat16)
    found = expand_by_kernel(parts, weight_format, 16, 16, torch.empty(16, 16, dtype=torch.bfloat16))
    assert torch.equal(found.nan_to_num(nan=-1.0), wanted.nan_to_num(nan=-1.0)) and bool(wanted.isnan().any())
