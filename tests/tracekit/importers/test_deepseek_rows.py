"""Whole prompts of MoE-Beyond taken as generated tokens, and their tokens' ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import ImportOptions, import_trace
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

CHOSEN = random_experts(np.random.default_rng(0), 5, 2, 8, 2)
PIECES = ["<bos>", "Ġa", "b,c", "Ġa", "?"]


def bring(tmp_path: Path, **options: Any) -> Trace:
    lines = ["Layer ID,Batch Number,Token,Activated Expert IDs"]
    for layer in range(2):
        for piece, ids in zip(PIECES, CHOSEN[:, layer].tolist(), strict=True):
            lines.append(f'{layer + 1},0,"{piece}","{ids}"')
    folder = tmp_path / "prompts"
    folder.mkdir(exist_ok=True)
    for number in (2, 10):
        (folder / f"prompt_{number}.csv").write_text("\n".join(lines) + "\n")
    output = tmp_path / f"{len(list(tmp_path.iterdir()))}.trace"
    return import_trace("deepseek-csv", folder, output, ImportOptions(**options))


def test_whole_prompts_as_they_were(tmp_path: Path) -> None:
    trace = bring(tmp_path)
    assert trace.step.tolist() == [0] * 5 + [1] * 5 and set(trace.phase.tolist()) == {PREFILL}
    assert any("--as decode" in note for note in trace.manifest.notes)


def test_rows_as_decode_steps(tmp_path: Path) -> None:
    trace = bring(tmp_path, rows_as="decode")
    assert trace.step.tolist() == list(range(10)) and set(trace.phase.tolist()) == {DECODE}
    assert trace.request.tolist() == [0] * 5 + [1] * 5 and trace.position.tolist() == [*range(5), *range(5)]
    np.testing.assert_array_equal(trace.experts[:5], CHOSEN)
    assert any("taken as generated one by one, as --as asks" in note for note in trace.manifest.notes)
    with pytest.raises(ImportFormatError, match="--as is 'both', expected decode or prefill"):
        bring(tmp_path, rows_as="both")


@pytest.mark.parametrize("kind", ["map", "list"])
def test_a_tokenizer_gives_ids_back(tmp_path: Path, kind: str) -> None:
    pieces = ["x", "b,c", "Ġa"]
    vocab = {piece: n for n, piece in enumerate(pieces)} if kind == "map" else [[piece, -1.5] for piece in pieces]
    model = tmp_path / "model"
    model.mkdir()
    found = {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": [{"id": 100, "content": "<bos>"}]}
    (model / "tokenizer.json").write_text(json.dumps(found))
    trace = bring(tmp_path, tokenizer=model)
    assert trace.token_id.tolist() == [100, 2, 1, 2, -1] * 2
    assert any("have no id in" in note for note in trace.manifest.notes)
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ImportFormatError, match=r"is not a tokenizer\.json"):
        bring(tmp_path, tokenizer=model)
