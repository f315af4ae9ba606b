"""What a trace says of its layers' dense part costs time where no model shape does."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.hardware import load_hardware
from engine.replay.replay import replay
from tests.helpers.traces import make_trace, random_experts
from tracekit.edit import merge
from tracekit.errors import TraceError
from tracekit.rows import DECODE


def test_a_layer_s_dense_part_is_read(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), 20, 2, 8, 2)
    fields = {"num_experts": 8, "expert_bytes": [1 << 20] * 2, "phase": DECODE}
    bare = make_trace(tmp_path / "a.trace", experts, **fields)
    sized = make_trace(tmp_path / "b.trace", experts, **fields, dense_bytes=[64 << 20, 32 << 20])
    machine = load_hardware("rtx3060")
    results = [replay(trace, {"cache": {"capacity": "8/layer"}}, machine) for trace in (bare, sized)]
    times = [result.time for result in results]
    assert times[0] is not None and times[1] is not None
    more = times[1].compute_s - times[0].compute_s
    read = sum(machine.compute_ns(0, size) for size in (64 << 20, 32 << 20))
    assert more == pytest.approx(20 * read / 1e9, rel=1e-6)
    assert any("are read as the trace sizes them" in str(warning) for warning in results[1].warnings)
    assert not any("are read as the trace sizes them" in str(warning) for warning in results[0].warnings)


def test_it_is_part_of_what_a_trace_means(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), 5)
    bare, sized = (
        make_trace(tmp_path / f"{n}.trace", experts, dense_bytes=size) for n, size in enumerate(([], [5, 6]))
    )
    assert bare.digest != sized.digest
    with pytest.raises(TraceError, match="dense_bytes differ"):
        merge([bare, sized], tmp_path / "c.trace")
    with pytest.raises(TraceError, match="dense_bytes has 1 entries for 2 MoE layers"):
        msgspec.structs.replace(sized.manifest, dense_bytes=[5]).check()
