"""Responses of vLLM and SGLang in each layout they have had, and what is wrong with some of them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import ImportOptions, import_trace
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.trace import Trace

PROMPT, GENERATED, LAYERS, TOP_K, EXPERTS = 5, 4, 3, 2, 16
CHOSEN = random_experts(np.random.default_rng(0), PROMPT + GENERATED - 1, LAYERS, EXPERTS, TOP_K).astype(np.int16)


def bring(tmp_path: Path, format_name: str, document: Any, **options: Any) -> Trace:
    source = tmp_path / "responses.json"
    source.write_text(document if isinstance(document, str) else json.dumps(document))
    return import_trace(format_name, source, tmp_path / "a.trace", ImportOptions(**options))


def refusal(tmp_path: Path, format_name: str, document: Any, **options: Any) -> str:
    with pytest.raises(ImportFormatError) as error:
        bring(tmp_path, format_name, document, **options)
    message = str(error.value)
    assert "responses.json" in message and "\n" not in message and len(message) < 500
    assert not (tmp_path / "a.trace").exists()
    return message


def npy(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def flat(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<i4").tobytes()).decode()


def vllm(routed: Any = None, **more: Any) -> dict[str, Any]:
    """A response of vLLM 0.22 or later."""
    return {
        "model": "Qwen/Qwen3-30B-A3B",
        "choices": [{"index": 0, "text": "x", "routed_experts": npy(CHOSEN) if routed is None else routed}],
        "usage": {"prompt_tokens": PROMPT, "completion_tokens": GENERATED},
    } | more


def sglang(routed: Any = None, **meta: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": PROMPT, "completion_tokens": GENERATED}
    routing = {"routed_experts": flat(CHOSEN) if routed is None else routed}
    return {"text": "x", "output_ids": [7] * GENERATED, "meta_info": counts | routing | meta}


def check_request(trace: Trace, first: int = 0) -> None:
    rows = slice(first, first + len(CHOSEN))
    np.testing.assert_array_equal(trace.experts[rows], CHOSEN)
    assert trace.phase[rows].tolist() == [PREFILL] * PROMPT + [DECODE] * (GENERATED - 1)
    assert trace.position[rows].tolist() == list(range(len(CHOSEN)))
    steps = trace.step[rows] - trace.step[first]
    assert steps.tolist() == [0] * PROMPT + [1, 2, 3]


def test_vllm_base64_of_npy(tmp_path: Path) -> None:
    trace = bring(tmp_path, "vllm", vllm())
    check_request(trace)
    manifest = trace.manifest
    assert (manifest.source, manifest.model.id) == ("import:vllm", "Qwen/Qwen3-30B-A3B")
    assert trace.num_experts == CHOSEN.max() + 1 and "--experts" in manifest.notes[0]


def test_vllm_nested_lists_with_the_prompt_apart(tmp_path: Path) -> None:
    """0.21: prompt and generated tokens in two fields; the choices of a request share its prompt."""
    generated = CHOSEN[PROMPT:].tolist()
    document = vllm(generated, prompt_routed_experts=CHOSEN[:PROMPT].tolist())
    document["choices"] = document["choices"] * 2
    trace = bring(tmp_path, "vllm", document, experts=EXPERTS)
    check_request(trace)
    assert trace.manifest.notes == [] and trace.num_experts == EXPERTS
    assert trace.request.tolist() == [0] * len(CHOSEN) + [1] * (GENERATED - 1)
    assert trace.position[len(CHOSEN) :].tolist() == [5, 6, 7]
    assert set(trace.phase[len(CHOSEN) :].tolist()) == {DECODE}


def test_vllm_through_a_gateway(tmp_path: Path) -> None:
    routed = {"data": base64.b64encode(CHOSEN[2:].astype("<u2").tobytes()).decode(), "dtype": "uint16"}
    routed |= {"shape": list(CHOSEN[2:].shape), "encoding": "base64", "start": 2}
    trace = bring(tmp_path, "vllm", vllm(routed))
    np.testing.assert_array_equal(trace.experts, CHOSEN[2:])
    assert trace.position.tolist() == [2, 3, 4, 5, 6, 7]
    assert trace.phase.tolist() == [PREFILL] * 3 + [DECODE] * 3


def test_vllm_lines_and_lists(tmp_path: Path) -> None:
    trace = bring(tmp_path, "vllm", json.dumps(vllm()) + "\n\n" + json.dumps(vllm()) + "\n")
    check_request(trace)
    check_request(trace, len(CHOSEN))
    assert trace.manifest.requests == 2
    (tmp_path / "b").mkdir()
    assert bring(tmp_path / "b", "vllm", [vllm(), [vllm()]]).manifest.requests == 2


def test_vllm_token_ids(tmp_path: Path) -> None:
    document = vllm(prompt_token_ids=[1, 2, 3, 4, 5])
    document["choices"][0]["token_ids"] = [6, 7, 8, 9]
    assert bring(tmp_path, "vllm", document).token_id.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", ["npy", "npz", "npz with the prompt"])
def test_vllm_arrays(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "routed.bin"
    with source.open("wb") as file:
        if kind == "npy":
            np.save(file, CHOSEN)
        elif kind == "npz":
            np.savez(file, routed_experts=CHOSEN, prompt_tokens=PROMPT)
        else:
            np.savez(file, routed_experts=CHOSEN[PROMPT:], prompt_routed_experts=CHOSEN[:PROMPT])
    trace = import_trace("vllm", source, tmp_path / "a.trace")
    if kind == "npy":
        np.testing.assert_array_equal(trace.experts, CHOSEN)
        assert "where the prompt ends" in trace.manifest.notes[-1]
    else:
        check_request(trace)


def test_what_was_not_captured_is_left_out_and_said(tmp_path: Path) -> None:
    """A dense layer (zeros), a cached prefix (-1), a preempted request (null)."""
    whole = np.zeros((len(CHOSEN), LAYERS + 1, TOP_K), np.int16)
    whole[:, 1:] = CHOSEN
    whole[:2] = -1
    whole[4, 2] = -1
    document = vllm(npy(whole))
    document["choices"].append({"index": 1, "routed_experts": None})
    trace = bring(tmp_path, "vllm", document)
    assert trace.manifest.moe_layers == [1, 2, 3] and trace.manifest.model_layers == 4
    expected = CHOSEN[2:].astype(np.uint16)
    expected[2, 1] = UNUSED
    np.testing.assert_array_equal(trace.experts, expected)
    assert trace.position.tolist() == [2, 3, 4, 5, 6, 7]
    notes = " | ".join(trace.manifest.notes)
    for words in ("taken as dense: 0", "2 of 8 tokens hold no routing", "1 choices hold no", "layer 2 has no routing"):
        assert words in notes


def test_sglang_generate(tmp_path: Path) -> None:
    trace = bring(tmp_path, "sglang", [sglang(), sglang()], layers=LAYERS, top_k=TOP_K, model="m", experts=EXPERTS)
    check_request(trace)
    check_request(trace, len(CHOSEN))
    assert (trace.manifest.model.id, trace.manifest.notes) == ("m", [])


def test_sglang_shape_is_inferred(tmp_path: Path) -> None:
    many = random_experts(np.random.default_rng(1), 60, LAYERS, EXPERTS, TOP_K)
    trace = bring(tmp_path, "sglang", sglang(flat(many), prompt_tokens=50, completion_tokens=11))
    np.testing.assert_array_equal(trace.experts, many)
    assert any("3 layers of top-2 inferred" in note for note in trace.manifest.notes)
    (tmp_path / "b").mkdir()
    told = bring(tmp_path / "b", "sglang", sglang(flat(many), prompt_tokens=50, completion_tokens=11), top_k=1)
    assert (told.layers, told.top_k) == (6, 1)


def test_sglang_openai_and_nested(tmp_path: Path) -> None:
    usage = {"prompt_tokens": PROMPT, "completion_tokens": GENERATED}
    document = {"choices": [{"sgl_ext": {"routed_experts": flat(CHOSEN)}}], "usage": usage}
    check_request(bring(tmp_path, "sglang", document, layers=LAYERS, top_k=TOP_K))
    (tmp_path / "b").mkdir()
    check_request(bring(tmp_path / "b", "sglang", sglang(CHOSEN.tolist())))


def test_sglang_from_a_later_token_on(tmp_path: Path) -> None:
    later = sglang(flat(CHOSEN[3:]), routed_experts_start_len=3)
    trace = bring(tmp_path, "sglang", later, layers=LAYERS, top_k=TOP_K)
    assert trace.position.tolist() == [3, 4, 5, 6, 7] and trace.phase.tolist() == [0, 0, 1, 1, 1]


def test_several_choices_share_their_prompt(tmp_path: Path) -> None:
    """From 0.22 on each choice repeats the prompt's rows; usage counts what all of them generated."""
    other = np.concatenate([CHOSEN[:PROMPT], CHOSEN[-2:]])
    document = vllm()
    document["choices"] += [{"index": 1, "routed_experts": npy(other)}]
    document["usage"]["completion_tokens"] = 2 * GENERATED - 1
    trace = bring(tmp_path, "vllm", document, experts=EXPERTS)
    check_request(trace)
    assert trace.request.tolist() == [0] * len(CHOSEN) + [1, 1] and trace.position[-2:].tolist() == [5, 6]
    np.testing.assert_array_equal(trace.experts[-2:], CHOSEN[-2:])
    assert trace.manifest.notes == [
        "5 prompt tokens of 1 further texts of the same prompt repeat the first text's and were left out: the prompt "
        "went through the model once"
    ]
    document["usage"]["completion_tokens"] += 5
    (tmp_path / "b").mkdir()
    assert "hold not the rows that their counts say" in str(bring(tmp_path / "b", "vllm", document).manifest.notes)


@pytest.mark.parametrize("told", [False, True])
def test_vllm_rows_from_a_later_token_on(tmp_path: Path, told: bool) -> None:
    """The request asked for a start, which the response may repeat."""
    document = vllm(npy(CHOSEN[3:]), **({"routed_experts_prompt_start": 3} if told else {}))
    trace = bring(tmp_path, "vllm", document, experts=EXPERTS)
    assert trace.position.tolist() == [3, 4, 5, 6, 7] and trace.phase.tolist() == [0, 0, 1, 1, 1]
    assert ("from position 3" in str(trace.manifest.notes)) != told


@pytest.mark.parametrize(("rows", "words"), [(1, "one row more"), (2, "10 rows for a prompt"), (-6, "2 rows")])
def test_rows_that_fit_no_start(tmp_path: Path, rows: int, words: str) -> None:
    """One row too many is an engine that counts the last token; anything else is left out, or refused if it is all."""
    many = random_experts(np.random.default_rng(3), len(CHOSEN) + rows, LAYERS, EXPERTS, TOP_K)
    if rows == 1:
        assert words in str(bring(tmp_path, "vllm", vllm(npy(many))).manifest.notes)
        return
    assert words in refusal(tmp_path, "vllm", vllm(npy(many)))
    trace = bring(tmp_path, "vllm", [vllm(), vllm(npy(many))])
    assert trace.manifest.requests == 1 and words in str(trace.manifest.notes)


def test_events_of_several_responses(tmp_path: Path) -> None:
    """A stream of two requests, interleaved: tokens come piece by piece, the routing with the last event."""
    first, second = vllm(id="a", prompt_token_ids=[1, 2, 3, 4, 5]), vllm(id="b")
    pieces = [{"id": "a", "choices": [{"index": 0, "token_ids": [6, 7]}]}, {"id": "b", "choices": [{"index": 0}]}]
    first["choices"][0]["token_ids"] = [8, 9]
    text = "".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in [*pieces, second, first]) + "data: [DONE]\n"
    trace = bring(tmp_path, "vllm", text)
    check_request(trace)
    check_request(trace, len(CHOSEN))
    assert trace.token_id[: len(CHOSEN)].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


RAGGED = CHOSEN.tolist()
RAGGED[3] = RAGGED[3][:-1]
TWICE = CHOSEN.copy()
TWICE[4, 1] = 7
NEGATIVE = CHOSEN.copy()
NEGATIVE[4, 1, 0] = -3


@pytest.mark.parametrize(
    ("format_name", "document", "words"),
    [
        ("vllm", vllm(RAGGED), "token 3 has 2 layers, token 0 has 3: rows were dropped"),
        ("vllm", vllm(npy(TWICE)), "row 4, MoE layer 1: expert 7 is listed twice"),
        ("vllm", vllm(npy(NEGATIVE)), "row 4, layer 1: expert id -3 is out of range"),
        ("vllm", vllm(npy(CHOSEN.astype(float))), "expected expert ids"),
        ("vllm", vllm(npy(CHOSEN[0])), "expected [tokens, layers, k]"),
        ("vllm", vllm(npy(CHOSEN)[:-9]), "is not base64"),
        ("vllm", vllm(npy(CHOSEN)[:-40]), "the file does not hold that"),
        ("vllm", vllm(flat(CHOSEN)), "import sglang"),
        ("vllm", vllm(npy(np.zeros_like(CHOSEN))), "holds no routing"),
        ("vllm", vllm(npy(CHOSEN[:0])), "0 rows for a prompt of 5 and 4 generated tokens"),
        ("vllm", {"choices": []}, "no routed tokens"),
        ("vllm", {"choices": [{"routed_experts": None}]}, "no routed tokens"),
        ("vllm", {"error": "x"}, "holds refused requests only (response 0: x)"),
        ("vllm", {"choices": [{"routed_experts": {"data": "AAAA", "shape": [9, 9, 9]}}]}, "not whole int32"),
        ("vllm", {"choices": [{"routed_experts": {"data": "AAAAAA==", "shape": [9, 9, 9]}}]}, "claims shape"),
        ("vllm", {"choices": [{"routed_experts": 5}]}, "neither a nested list nor base64"),
        ("vllm", {"choices": [{"routed_experts": [["a"]]}]}, "expected expert ids"),
        ("vllm", [vllm(), vllm(npy(CHOSEN[:, :2]))], "has 2 layers of 2 slots, response 0 has 3 of 2"),
        ("vllm", "[1, 2]", "is not a JSON object"),
        ("vllm", '{"choices": [', "is not JSON"),
        ("vllm", json.dumps(vllm()) + '\n{"choices"', "line 2 is not JSON (truncated?)"),
        ("vllm", "", "no routed tokens"),
        ("sglang", sglang(flat(CHOSEN), prompt_tokens=None), "give --layers and --top-k"),
        ("sglang", sglang(flat(CHOSEN)[:-4]), "not whole int32 numbers: truncated?"),
        ("sglang", {"meta_info": {}}, "no routed tokens"),
        ("sglang", {"meta_info": 3}, "no routed tokens"),
        ("sglang", {}, "has no meta_info or choices"),
    ],
)
def test_refusals(tmp_path: Path, format_name: str, document: Any, words: str) -> None:
    assert words in refusal(tmp_path, format_name, document)


def test_sglang_shape_that_does_not_fit(tmp_path: Path) -> None:
    assert "not a multiple" in refusal(tmp_path, "sglang", sglang(), layers=5, top_k=7)
    nested = sglang(CHOSEN.tolist())
    assert "--layers and --top-k say 5 of 2" in refusal(tmp_path, "sglang", nested, layers=5, top_k=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 4}, "--experts says there are 4"),
        ({"experts": 0}, "--experts is 0"),
        ({"experts": 2**40}, "--experts is"),
        ({"top_k": 2}, "leave --top-k out"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(ImportFormatError, match=words):
        bring(tmp_path, "vllm", vllm(), **options)
