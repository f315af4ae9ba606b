"""Labels of requests: in prompts, in traces and what is made of them, and in files of their own."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.traces import domain_trace, make_manifest, make_trace
from tracekit.batched import batched
from tracekit.edit.anonymise import anonymise
from tracekit.edit.merge import merge
from tracekit.edit.slice import Selection, slice_trace
from tracekit.errors import ImportFormatError, PlanError, TraceError
from tracekit.labels import labels_of, numbered, read_labels
from tracekit.recorder.prompts import Prompt, prompts_digest, read_prompts


def test_what_is_made_of_a_trace_knows_its_requests_domains(tmp_path: Path) -> None:
    trace = domain_trace(tmp_path / "a.trace", 1, requests=4)
    assert labels_of(trace) == labels_of(trace, "trace") == ["code", "prose"] * 2
    part = slice_trace(trace, Selection(requests="1,3"), tmp_path / "part.trace")
    assert labels_of(part)[3] == "prose"  # requests keep their numbers
    assert labels_of(batched(trace, 2)) == labels_of(trace)
    bare = make_trace(tmp_path / "bare.trace", trace.experts[:80], num_experts=8, request=np.arange(80) // 40)
    both = merge([part, bare, trace], tmp_path / "both.trace")
    assert labels_of(both) == ["prose", "code", "prose", "", "", *["code", "prose"] * 2]
    assert both.manifest.requests == 8  # request 1 of the first part is none of its rows
    hidden = anonymise(trace, tmp_path / "hidden.trace", np.random.default_rng(0))
    assert hidden.manifest.domains == []
    with pytest.raises(PlanError, match=r"carries none of its requests' domains: give lines like"):
        labels_of(bare)


def test_labels_are_part_of_what_a_trace_means_and_no_trace_without_them_changes() -> None:
    plain, labelled = make_manifest(), make_manifest(domains=["a"])
    assert plain.digest() != labelled.digest()
    assert b"domains" not in plain.encode() and b"domains" in labelled.encode()
    with pytest.raises(TraceError, match="at most 64 printable characters"):
        make_manifest(domains=["a\n"]).check()


def test_a_prompt_says_its_domain_and_is_the_same_prompt(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": 1, "prompt": "x", "domain": "code"}\n\n{"id": 2, "prompt": "y"}\n')
    prompts = read_prompts(file)
    assert [prompt.domain for prompt in prompts] == ["code", None]
    assert prompts_digest(prompts) == prompts_digest([Prompt(id=1, prompt="x"), Prompt(id=2, prompt="y")])
    assert read_labels(file) == ["code", ""]
    for domain, reason in (("a\u0007", "printable"), (3, "domain")):
        file.write_text(json.dumps({"id": 1, "prompt": "x", "domain": domain}))
        with pytest.raises(ImportFormatError, match=reason):
            read_prompts(file)
        with pytest.raises(ImportFormatError, match=f"line 1.*{reason}"):
            read_labels(file)


def test_labels_from_a_file(tmp_path: Path) -> None:
    trace = domain_trace(tmp_path / "a.trace", 1, requests=3)
    file = tmp_path / "labels.jsonl"
    file.write_text('{"domain": "x"}\n{"anything": 1}\n{"domain": "y"}\n')
    assert labels_of(trace, str(file)) == ["x", "", "y"]
    assert numbered(["x", "", "y"], ["y", "x"], "here") == [1, -1, 0]
    file.write_text('{"domain": "x"}\n')
    with pytest.raises(PlanError, match=r"labels 1 requests, and .* has request 2"):
        labels_of(trace, str(file))
    for text, reason in (("x\n", "JSON"), ("[]", "labels no request")):
        file.write_text(text)
        with pytest.raises(ImportFormatError, match=reason):
            labels_of(trace, str(file))
    with pytest.raises(ImportFormatError, match="No such file"):
        labels_of(trace, str(tmp_path / "none"))
