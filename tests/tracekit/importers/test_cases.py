"""Real and realistic logs that once came out wrong, each with the right value."""

import gzip
import io
import json
import runpy
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracekit.edit import Selection, slice_trace
from tracekit.errors import ImportFormatError
from tracekit.importers import ImportOptions, import_trace
from tracekit.rows import DECODE, PREFILL
from tracekit.stats import describe
from tracekit.trace import Trace

Bring = Callable[..., Trace]


@pytest.fixture
def bring(tmp_path: Path) -> Bring:
    def imported(format_name: str, source: Path, **options: Any) -> Trace:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.trace"
        return import_trace(format_name, source, output, ImportOptions(**options))

    return imported


def notes(trace: Trace) -> str:
    return " | ".join(trace.manifest.notes)


def counts(trace: Trace) -> tuple[int, int, int]:
    """Tokens, of these prefill, and steps."""
    return trace.tokens, int((trace.phase == PREFILL).sum()), trace.manifest.steps


def test_passes_of_several_tokens_are_a_step_each(cases: Path, bring: Bring) -> None:
    for name in ("lists", "restarts"):
        trace = bring("jsonl", cases / "jsonl-pass-structure" / f"{name}.jsonl")
        assert trace.step.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
        assert trace.phase.tolist() == [PREFILL] * 4 + [DECODE] * 4
        assert "requests cannot be told apart" in notes(trace)
        stats = describe(trace)
        assert not stats.requests_told_apart and stats.overlap is None and stats.domain_shift is None


def test_requests_under_another_name(cases: Path, bring: Bring, tmp_path: Path) -> None:
    source = cases / "jsonl-lost-requests" / "problem_id.jsonl"
    trace = bring("jsonl", source)
    assert trace.manifest.requests == 3 and trace.has_weights
    assert trace.position.tolist() == [0, 1, 2, 3] * 3
    # Under a name that nobody knows it is refused, and may be given.
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text(source.read_text().replace("problem_id", "exercise"))
    with pytest.raises(ImportFormatError, match="where exercise changes: --request-field exercise"):
        bring("jsonl", unknown)
    assert bring("jsonl", unknown, request_field="exercise").manifest.requests == 3
    trace = bring("jsonl", unknown, request_field="none")
    assert trace.manifest.requests == 1 and trace.manifest.steps == 3
    with pytest.raises(ImportFormatError, match="line 1 has no exam, which --request-field names"):
        bring("jsonl", unknown, request_field="exam")
    with pytest.raises(ImportFormatError, match="--request-field"):
        bring("vllm", unknown, request_field="none")


def test_rows_of_another_rank(cases: Path, bring: Bring, tmp_path: Path) -> None:
    """The same rows once more: left out where a field says whose they are, else a note."""
    rng = np.random.default_rng(0)
    lines = [
        {"token": token, "layer": layer, "ids": rng.permutation(8)[:2].tolist()}
        for token in range(20)
        for layer in range(3)
    ]
    told, untold = tmp_path / "told.jsonl", tmp_path / "untold.jsonl"
    told.write_text("\n".join(json.dumps(line | {"rank": rank}) for rank in (0, 1) for line in lines))
    untold.write_text("\n".join(json.dumps(line) for line in lines * 2))
    trace = bring("jsonl", told)
    assert trace.tokens == 20 and "1 requests are copies by other ranks" in notes(trace)
    trace = bring("jsonl", untold)
    assert trace.tokens == 40 and "rows 20 to 39 repeat the 20 before" in notes(trace)
    other = [line | {"rank": 1, "ids": [0, 1]} for line in lines]
    told.write_text("\n".join(json.dumps(line) for line in [*(line | {"rank": 0} for line in lines), *other]))
    with pytest.raises(ImportFormatError, match="ranks 0 and 1 hold different rows"):
        bring("jsonl", told)


def test_near_formats(cases: Path, bring: Bring, tmp_path: Path) -> None:
    source = cases / "jsonl-near-formats" / "moe_cache_lab.jsonl"
    trace = bring("jsonl", source)
    assert (trace.num_experts, trace.manifest.model.id) == (4, "m")
    assert trace.phase.tolist() == [PREFILL, PREFILL, DECODE] and trace.step.tolist() == [0, 0, 1]
    assert trace.position.tolist() == [0, 1, 2] and not any("--experts" in note for note in trace.manifest.notes)
    meta = tmp_path / "meta.jsonl"
    header = {"type": "meta", "model_id": "allenai/OLMoE", "num_experts": 64, "top_k": 2}
    meta.write_text("\n".join(map(json.dumps, [header, {"layer": 0, "ids": [1, 8]}, {"layer": 1, "ids": [1, 2]}])))
    trace = bring("jsonl", meta)
    assert (trace.manifest.model.id, trace.num_experts) == ("allenai/OLMoE", 64)


def test_a_cached_prefix_is_no_work(cases: Path, bring: Bring) -> None:
    folder = cases / "prefix-cached-rows"
    for trace in (
        bring("sglang", folder / "sglang.jsonl", layers=4, top_k=2),
        bring("vllm", folder / "vllm.jsonl"),
    ):
        assert counts(trace)[:2] == (19, 11)
        assert trace.position.tolist() == [*range(9), *range(9, 19)]
        assert "9 tokens of cached prefixes" in notes(trace)


def test_notes_name_steps_and_go_with_them(cases: Path, bring: Bring, tmp_path: Path) -> None:
    written = io.StringIO()
    with redirect_stdout(written):
        runpy.run_path(str(cases / "prefix-note-slice" / "make.py"))
    source = tmp_path / "w.jsonl"
    source.write_text(written.getvalue())
    trace = bring("jsonl", source)
    assert counts(trace) == (62, 32, 31)
    assert "steps 0:1: the first 32 tokens" in notes(trace) and "slice --steps 1: leaves them out" in notes(trace)
    cut = slice_trace(trace, Selection(steps="1:"), tmp_path / "cut.trace")
    assert cut.tokens == 30 and "warm-up" not in notes(cut)


def test_rows_that_begin_later(cases: Path, bring: Bring) -> None:
    trace = bring("sglang", cases / "rows-against-usage" / "sglang_start.jsonl", layers=4, top_k=2)
    assert counts(trace) == (8, 4, 5) and trace.position.tolist() == list(range(16, 24))
    assert "from position 16" in notes(trace)


@pytest.mark.parametrize("name", ["bom.jsonl", "stream.txt", "one_error.jsonl"])
def test_responses_as_people_save_them(cases: Path, bring: Bring, name: str) -> None:
    trace = bring("vllm", cases / "saved-responses" / name)
    assert counts(trace) == (12, 5, 8)
    assert ("1 refused requests were left out (line 2: maximum context length)" in notes(trace)) == ("error" in name)


def test_a_response_inside_a_record(cases: Path, bring: Bring) -> None:
    with pytest.raises(ImportFormatError, match="its 'response' holds a response; save that alone"):
        bring("vllm", cases / "saved-responses" / "wrapped.jsonl")


def test_a_byte_order_mark_before_a_header(cases: Path, bring: Bring) -> None:
    trace = bring("llama-csv", cases / "saved-responses" / "bom.csv")
    assert trace.experts.tolist() == [[[1, 2], [3, 4]], [[2, 5], [0, 4]]]


@pytest.mark.parametrize("format_name", ["npz", "vllm", "sglang", "jsonl"])
def test_torch_files_are_named_and_refused(bring: Bring, tmp_path: Path, format_name: str) -> None:
    saved, legacy = tmp_path / "expert_distribution_recorder_1.pt", tmp_path / "old.pt"
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("recorder/data.pkl", b"\x80\x02}q\x00.")
    legacy.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    for source in (saved, legacy):
        with pytest.raises(ImportFormatError, match=r"may run code when it is opened.*import that as npz"):
            bring(format_name, source)


@pytest.mark.parametrize("name", ["chat", "choice_meta", "nvext"])
def test_where_sglang_puts_the_experts(cases: Path, bring: Bring, name: str) -> None:
    trace = bring("sglang", cases / "sglang-sglext" / f"{name}.jsonl", layers=4, top_k=2)
    assert counts(trace) == (9, 6, 4)


def test_one_array_beside_several_choices(cases: Path, bring: Bring, tmp_path: Path) -> None:
    document = json.loads((cases / "sglang-sglext" / "chat.jsonl").read_text())
    document["choices"] *= 2
    document["usage"]["completion_tokens"] *= 2
    source = tmp_path / "two.json"
    source.write_text(json.dumps(document))
    trace = bring("sglang", source, layers=4, top_k=2)
    assert trace.tokens == 9 and trace.manifest.requests == 1
    assert "1 further choices have no routed experts of their own" in notes(trace)


def test_an_unknown_place_is_said(cases: Path, bring: Bring, tmp_path: Path) -> None:
    source = tmp_path / "unknown.json"
    source.write_text((cases / "sglang-sglext" / "chat.jsonl").read_text().replace('"sglext"', '"sgx"'))
    with pytest.raises(ImportFormatError, match=r"in meta_info, sglext, sgl_ext, nvext.*the first has: id, .*sgx"):
        bring("sglang", source)


def test_top_1_layers_without_routing(cases: Path, bring: Bring) -> None:
    trace = bring("vllm", cases / "top1-dense-layers" / "llama4.jsonl", experts=16)
    assert trace.manifest.moe_layers == [1, 3] and trace.tokens == 40
    assert "2 of 4 layers hold no routing and were taken as dense: 0, 2" in notes(trace)


@pytest.mark.parametrize("packed", [gzip.compress])
def test_packed_responses(cases: Path, bring: Bring, tmp_path: Path, packed: Callable[[bytes], bytes]) -> None:
    source = tmp_path / "stream.txt.gz"
    source.write_bytes(packed((cases / "saved-responses" / "stream.txt").read_bytes()))
    assert counts(bring("vllm", source)) == (12, 5, 8)
