"""The bigmoe-csv importer, on the published route trace and on small ones."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tracekit.edit import Selection, merge, slice_trace
from tracekit.errors import ImportFormatError, TraceError
from tracekit.importers import import_trace
from tracekit.prefix import first_steps
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.stats import describe
from tracekit.trace import Trace

# MoE layers 0 and 2, 4 experts, top-2; a prompt of two tokens, the last layer sees only the second.
ROUTE = """\
# route_trace v1
# model=C:\\models\\tiny-moe-q4.gguf arch=tiny n_layer=3 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=7
# layer=1 expert_bytes=0 dense_bytes=7
# layer=2 expert_bytes=200 dense_bytes=7
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,3,0.75,0,100
0,0,0,0,1,1,0.25,0,100
0,0,1,0,0,2,0.5,0,100
0,0,1,0,1,0,0.5,0,100
0,0,1,2,0,1,0.5,0,200
0,0,1,2,1,3,0.5,0,200
0,1,2,0,0,1,0.5,1,0
0,1,2,0,1,3,0.5,1,0
0,1,2,2,0,0,0.5,0,200
0,1,2,2,1,1,0.5,1,0
"""


def bring(tmp_path: Path, text: str) -> Trace:
    source = tmp_path / "route.csv"
    source.write_text(text)
    return import_trace("bigmoe-csv", source, tmp_path / "a.trace")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    lines = ROUTE.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("turn,"))
    more = [*lines[:first], lines[first] + ",user", *(line + ",7" for line in lines[first + 1 :])]
    assert bring(tmp_path, "\n".join(more)).manifest.notes[0] == "fields not read: user"


def test_a_small_route(tmp_path: Path) -> None:
    trace = bring(tmp_path, ROUTE)
    manifest = trace.manifest
    assert (manifest.model.id, manifest.model.family) == ("tiny-moe-q4", "tiny")
    assert (manifest.moe_layers, manifest.model_layers) == ([0, 2], 3)
    assert (manifest.experts_per_layer, manifest.top_k, manifest.expert_bytes) == ([4, 4], 2, [100, 200])
    assert manifest.complete and manifest.source == "import:bigmoe-csv" and manifest.dense_bytes == [7, 7]
    assert trace.step.tolist() == [0, 0, 1]
    assert trace.phase.tolist() == [PREFILL, PREFILL, DECODE]
    assert trace.position.tolist() == [0, 1, 2]
    assert trace.experts.tolist() == [
        [[3, 1], [UNUSED, UNUSED]],
        [[2, 0], [1, 3]],
        [[1, 3], [0, 1]],
    ]
    assert trace.weights is not None
    assert trace.weights[0].tolist() == [[0.75, 0.25], [0, 0]]


def test_what_the_engine_held(tmp_path: Path) -> None:
    """`residency` is kept, and comes along where rows are copied; without it there is none."""
    trace = bring(tmp_path, ROUTE)
    assert trace.recorded is not None and trace.recorded.dtype == np.uint8
    assert trace.recorded.tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [0, 1]]]
    assert Trace.open(trace.path, verify=True).recorded_of(2, 3).tolist() == [[[1, 1], [0, 1]]]
    assert "residency" in describe(trace).recorded
    cut = slice_trace(trace, Selection(steps="1:"), tmp_path / "cut.trace")
    assert cut.recorded is not None and cut.recorded.tolist() == [[[1, 1], [0, 1]]]
    both = merge([trace, cut], tmp_path / "both.trace")
    assert both.recorded is not None and both.recorded[3:].tolist() == cut.recorded.tolist()
    assert first_steps(both, 1).recorded.tolist() == both.recorded[:2].tolist()
    head, lines = ROUTE.splitlines()[:5], ROUTE.splitlines()[5:]
    (tmp_path / "x").mkdir()
    without = bring(tmp_path / "x", "\n".join([*head, *(line.rsplit(",", 2)[0] for line in lines)]) + "\n")
    assert without.recorded is None and without.digest != trace.digest
    with pytest.raises(TraceError, match="recorded arrays differ"):
        merge([trace, without], tmp_path / "not.trace")


def test_a_second_turn_is_a_second_request(tmp_path: Path) -> None:
    again = "".join("1" + line[1:] + "\n" for line in ROUTE.splitlines()[6:])
    trace = bring(tmp_path, ROUTE + again)
    assert trace.request.tolist() == [0, 0, 0, 1, 1, 1]
    assert trace.step.tolist() == [0, 0, 1, 2, 2, 3]
    assert trace.position.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    head, lines = ROUTE.splitlines()[:6], ROUTE.splitlines()[6:]
    (tmp_path / "x").mkdir()
    shuffled = bring(tmp_path / "x", "\n".join(head + lines[::-1]) + "\n")
    assert shuffled.digest == bring(tmp_path, ROUTE).digest


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (ROUTE, "", "its first line is not"),
        (ROUTE, "\0" * 5000, "its first line is not"),
        ("v1", "v2", "is of version 'v2'"),
        (" n_expert=4", "", "the preamble lacks n_expert"),
        ("n_expert=4", "n_expert=many", "not a number"),
        ("n_expert=4", "n_expert=0", "n_expert is 0"),
        ("n_expert=4", "n_expert=70000", "n_expert is 70000"),
        ("n_layer=3", "n_layer=999999999999999", "n_layer is 999999999999999"),
        ("n_layer=3", "n_layer=1", "has layer 2 of 1"),
        ("n_expert_used=2", "n_expert_used=1", "has slot 1 of 1"),
        ("n_expert_used=2", "n_expert_used=3", "is incomplete"),
        ("n_expert_used=2", "n_expert_used=1000", "is incomplete"),
        ("# layer=2 expert_bytes=200 dense_bytes=7\n", "", "no expert_bytes for layer 2"),
        ("turn,phase", "phase,turn", "expected the columns"),
        ("weight,", "", "is not a readable route trace"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,0,4,0.75,0,100", "routing line 1 has expert 4 of 4"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,0,-1,0.75,0,100", "has expert -1 of 4"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,0,1,0.75,0,100", "expert 1 is listed twice"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,0,3,nan,0,100", "weight nan is not finite"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,0,3,lots,0,100", "is not a readable route trace"),
        ("0,0,0,0,0,3,0.75,0,100", "0,2,0,0,0,3,0.75,0,100", "has phase 2 of 2"),
        ("0,0,0,0,0,3,0.75,0,100", "0,1,0,0,0,3,0.75,0,100", "lines of both phases"),
        ("0,0,0,0,0,3,0.75,0,100", "0,0,0,0,1,3,0.75,0,100", "has two lines"),
        ("0,0,0,0,0,3,0.75,0,100", "99999999999999999999,0,0,0,0,3,0.75,0,100", "is not a readable"),
        ("0,0,0,0,0,3,0.75,0,100\n", "", "step 0 has 1 of 2 experts"),
        ("\n0,1,2,", "\n0,1,9,", "skips a step"),
        ("0,1,2,2,1,1,0.5,1,0\n", "", "step 2 has 1 of 2 experts at MoE layer 1"),
        ("0,1,2,2,1,1,0.5,1,0\n", "0,1,2,2,1,1", "is truncated or damaged: routing line 10 has no weight"),
        ("0,0,1,2,0,1,0.5,0,200\n0,0,1,2,1,3,0.5,0,200\n", "", "step 1 has 0 of 2 experts at MoE layer 1"),
        (ROUTE[ROUTE.index("0,0,0") :], "", "holds no routing lines"),
    ],
)
def test_what_is_no_route_trace(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in ROUTE
    with pytest.raises(ImportFormatError) as error:
        bring(tmp_path, ROUTE.replace(old, new))
    assert words in str(error.value) and "route.csv" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["route.csv"]


def test_where_nothing_can_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="it does not exist"):
        import_trace("bigmoe-csv", tmp_path / "none.csv", tmp_path / "a.trace")
    with pytest.raises(ImportFormatError, match="not a file"):
        import_trace("bigmoe-csv", tmp_path, tmp_path / "a.trace")
    with pytest.raises(ImportFormatError, match=r"unknown import format 'bigmoe'.*did you mean 'bigmoe-csv'"):
        import_trace("bigmoe", tmp_path, tmp_path / "a.trace")
    (tmp_path / "route.csv").write_text(ROUTE)
    with pytest.raises(TraceError, match="there is no directory"):
        import_trace("bigmoe-csv", tmp_path / "route.csv", tmp_path / "no" / "a.trace")
    trace = bring(tmp_path, ROUTE)
    with pytest.raises(TraceError, match="exists"):
        bring(tmp_path, ROUTE)
    assert Trace.open(trace.path, verify=True).tokens == 3


def test_the_published_trace(shared_data: Path, tmp_path: Path) -> None:
    """Qwen3-30B-A3B on a phone: every line of the file is in the trace, in its place, and nothing else is."""
    source = shared_data / "qwen3-30b-a3b-phone" / "route.csv"
    trace = import_trace("bigmoe-csv", source, tmp_path / "a.trace")
    assert trace.manifest.model.id == "Qwen3-30B-A3B-Q4_K_M"
    assert (trace.tokens, trace.layers, trace.top_k, trace.num_experts) == (156, 48, 6, 128)
    assert (trace.manifest.steps, trace.manifest.requests) == (129, 1)
    assert trace.step.tolist() == [0] * 28 + list(range(1, 129))
    assert (trace.phase == PREFILL).sum() == 28
    assert set(trace.manifest.expert_bytes) == {3059712, 2654208}
    assert (trace.experts[:27, 47] == UNUSED).all() and (trace.experts[27, 47] != UNUSED).all()

    lines = pl.read_csv(source, comment_prefix="#")
    place = tuple(lines[name].to_numpy() for name in ("step", "layer", "slot"))
    np.testing.assert_array_equal(trace.experts[place], lines["expert"].to_numpy())
    assert trace.weights is not None
    np.testing.assert_allclose(trace.weights[place], lines["weight"].to_numpy(), rtol=1e-3, atol=1e-6)
    assert (trace.experts != UNUSED).sum() == lines.height
