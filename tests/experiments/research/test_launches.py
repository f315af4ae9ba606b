"""Launches per layer, as `make bench` prints them."""

import pytest

pytest.importorskip("triton", reason="the kernels' extra is not installed: pip install 'moe-tracekit[kernels]'")
torch = pytest.importorskip("torch")
from experiments.research.benchmarks.launches import emulated, launches  # noqa: E402  # needs torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, kernels are not interpreted")
def test_grouped_kernels_are_the_fewer_launches() -> None:
    resident, miss, eager = (
        launches(emulated(), 8, 2, capacity, None, kernels)
        for capacity, kernels in (("8/layer", "grouped"), ("1/layer", "grouped"), ("8/layer", "eager"))
    )
    assert (resident[1], miss[1]) == (5, 7)  # of at most 6 and 10
    # The dense part is the same.
    assert resident[0] - resident[1] == miss[0] - miss[1] == eager[0] - eager[1] > 0
    assert eager[1] > 3 * resident[1]
