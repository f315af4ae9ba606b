"""Importers against an independent reader in plain Python, on logs drawn at random."""

import base64
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.traces import random_experts
from tests.tracekit.importers import plain
from tracekit.importers import ImportOptions, import_trace
from tracekit.trace import Trace

EXPERTS, TOP_K = 16, 2
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain")


def bring(folder: Path, format_name: str, data: bytes, **options: Any) -> Trace:
    source, output = folder / "source", folder / "out.trace"
    source.write_bytes(data)
    shutil.rmtree(output, ignore_errors=True)
    return import_trace(format_name, source, output, ImportOptions(**options))


def rows_of(trace: Trace) -> list[plain.Row]:
    columns = zip(
        trace.step.tolist(), trace.request.tolist(), trace.position.tolist(), trace.phase.tolist(), strict=True
    )
    experts = trace.experts.tolist()
    return [plain.Row(*row, tuple(map(tuple, experts[number]))) for number, row in enumerate(columns)]


def check(trace: Trace, expected: list[plain.Row]) -> None:
    found = rows_of(trace)
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine._replace(phase=None) == its._replace(phase=None)
        assert its.phase in (None, mine.phase)


@st.composite
def dumps(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """Lines of a dump, and what they say of passes: batches of requests, chunks of prompts, single tokens."""
    says = draw(st.sampled_from(["step", "lists", "restarts", "order", "phase"]))
    layers = sorted(draw(st.sets(st.integers(0, 9), min_size=2, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = ["a", "b", "c"][: draw(st.integers(1, 3))] if says in ("step", "order", "phase") else ["a"]
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=8))
    if says == "order":
        sizes[0] = max(sizes[0], 2)
    token_major = draw(st.booleans()) and says in ("restarts", "step")
    tokens = dict.fromkeys(names, 0)
    lines: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        batch = [name for name in names if says != "phase" and rng.random() < 0.6] or [names[number % len(names)]]
        pass_lines = []
        for name in batch:
            chosen = random_experts(rng, size, len(layers), EXPERTS, TOP_K).tolist()
            for at in range(size):
                for place, layer in enumerate(layers):
                    line = {"request": name, "layer": layer, "ids": chosen[at][place]}
                    if says == "lists":
                        line["ids"] = [row[place] for row in chosen]
                    elif says == "restarts":
                        line["token"] = at
                    else:
                        line["token"] = tokens[name] + at
                    if says == "step":
                        line |= {"step": 7 * number, "token": at}
                    if says == "phase":
                        line["phase"] = int(tokens[name] > 0)
                    if says != "lists" or at == 0:
                        pass_lines.append((at, place, line))
            tokens[name] += size
        by_layer = says in ("order", "lists") or (says in ("restarts", "step") and not token_major)
        if by_layer:
            pass_lines.sort(key=lambda entry: entry[1])  # stable: requests and tokens keep their order
        lines += [line for _, _, line in pass_lines]
    return says, lines


@given(dumps())
@QUICK
def test_dumps(folder: Path, drawn: tuple[str, list[dict[str, Any]]]) -> None:
    says, lines = drawn
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    check(bring(folder, "jsonl", text), plain.dump(lines, says))


@st.composite
def responses(draw: st.DrawFn) -> list[dict[str, Any]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        prompt, generated = draw(st.integers(1, 8)), draw(st.integers(1, 6))
        first = draw(st.integers(0, prompt - 1))
        chosen = random_experts(rng, prompt + generated - 1, 3, EXPERTS, TOP_K)[first:]
        meta = {"prompt_tokens": prompt, "completion_tokens": generated}
        meta["cached_tokens"] = draw(st.integers(0, prompt - 1))
        routed = base64.b64encode(chosen.astype("<i4").tobytes()).decode()
        found.append({"text": "x", "meta_info": meta | {"routed_experts": routed}})
    return found


@given(responses())
@QUICK
def test_responses(folder: Path, drawn: list[dict[str, Any]]) -> None:
    expected: list[plain.Row] = []
    for request, response in enumerate(drawn):
        expected += plain.sglang(response, 3, TOP_K, request, expected[-1].step + 1 if expected else 0)
    check(bring(folder, "sglang", json.dumps(drawn).encode(), layers=3, top_k=TOP_K), expected)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.integers(0, 40))
@QUICK
def test_binary_logs(folder: Path, sizes: list[int], seed: int, cut: int) -> None:
    """Of mbolt: at the last layer, a prompt's last token only; and cut off where the engine was stopped."""
    rng = np.random.default_rng(seed)
    words = [0x544C424D, 1, EXPERTS]
    for size in sizes:
        for layer in (1, 3, 4):
            tokens = 1 if layer == 4 else size
            words += [layer, TOP_K, tokens, *random_experts(rng, tokens, 1, EXPERTS, TOP_K).ravel().tolist()]
    data = struct.pack(f"<{len(words)}i", *words)
    data = data[: max(len(data) - cut, 12 + 3 * 12 + 4 * TOP_K * (2 * sizes[0] + 1))]
    check(bring(folder, "mbolt", data), plain.mbolt(data))
