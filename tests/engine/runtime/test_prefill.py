"""Prompts read in chunks: each chunk is a step, which the engine decides as the simulator and answers as the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from experiments.cli.main import run
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from tests.engine.runtime.models import FAMILIES, PROMPT, MakeModel
from tracekit.errors import ModelError
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
from tests.engine.runtime.test_decisions import assert_decided_alike  # noqa: E402  # needs torch
from tests.tracekit.recorder.exactness import Numbers  # noqa: E402
from tests.tracekit.recorder.families import build, packages  # noqa: E402
from tracekit.recorder.generation import UNDIVIDED, Decoding, Scoring, default_chunk  # noqa: E402
from tracekit.recorder.options import RecordOptions  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402
from tracekit.recorder.recorder import record  # noqa: E402

PLAN = {"cache": {"capacity": "3/layer"}, "prefetch": {"predictor": "gate", "count": 2}}
MINI = CHECKPOINTS / NAMES[0]


def decoded(model: Any, prompts: list[list[int]], chunk: int | None) -> tuple[list[list[int]], list[Any]]:
    decoding = Decoding(model, prompts, max_new_tokens=6, chunk=chunk)
    return decoding.generated, list(decoding.passes())


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_decisions_of_chunked_steps(family: str, chunk: int, make_model: MakeModel, tmp_path: Path) -> None:
    expected, passes = decoded(make_model(family), [PROMPT], chunk)
    prompts = [Prompt(id="a", prompt=" ".join(map(str, PROMPT)))]
    model = offload(make_model(family), plan_from_dict(PLAN))
    model.config.eos_token_id = model.generation_config.eos_token_id = -1
    with offloaded(model) as state:
        options = RecordOptions(max_new_tokens=6, lookahead=(1,), prefill_chunk=chunk)
        trace = Trace.open(record(model, Numbers(), prompts, tmp_path / "t.trace", options))
        assert trace.manifest.sampling["prefill_chunk"] == chunk
        assert_decided_alike(state.log, trace, state.spec)
        state.reset()
        assert decoded(model, [PROMPT], chunk)[0] == expected
        steps = -(-len(PROMPT) // chunk)
        assert state.timings.step_tokens.tolist()[:steps] == [min(chunk, 10 - at) for at in range(0, 10, chunk)]
    assert [forward.phase for forward in passes] == [PREFILL] * steps + [DECODE] * 5
    read = np.concatenate([forward.token_id for forward in passes[:steps]])
    assert read.tolist() == PROMPT
    assert np.concatenate([forward.position for forward in passes]).tolist() == list(range(15))
    assert int((trace.step[trace.phase == PREFILL]).max()) == steps - 1


@pytest.mark.parametrize("chunk", [2, 5])
def test_batches_of_unequal_prompts_are_read_in_chunks(chunk: int, make_model: MakeModel) -> None:
    """Every token of every prompt once, whatever padding a chunk begins with; the same tokens follow."""
    prompts = [PROMPT, PROMPT[:3], PROMPT[2:9]]
    whole, _ = decoded(make_model("olmoe", "float32"), prompts, None)
    model = offload(make_model("olmoe", "float32"), plan_from_dict(PLAN))
    with offloaded(model):
        chunked, passes = decoded(model, prompts, chunk)
    assert chunked == whole
    read: list[list[int]] = [[] for _ in prompts]
    for forward in passes:
        if forward.phase == PREFILL:
            for request, position, token in zip(forward.request, forward.position, forward.token_id, strict=True):
                assert position == len(read[request])
                read[request].append(int(token))
    assert read == prompts


def test_transformers_own_chunks_are_steps_too(make_model: MakeModel) -> None:
    ids = torch.tensor([PROMPT])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "prefill_chunk_size": 4}
    plain, served = make_model("qwen3_moe"), offload(make_model("qwen3_moe"), plan_from_dict(PLAN))
    with offloaded(served) as state:
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert torch.equal(served.generate(ids, attention_mask=torch.ones_like(ids), **settings), expected)
        assert state.timings.step_tokens.tolist() == [4, 4, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("package", ["doge", "jamba", "qwen3_next", "nemotron_h", "deepseek_v4", "gpt_oss"])
def test_families_that_cannot_continue_a_prompt_are_refused_and_only_they(package: str) -> None:
    """What transformers computes for a prompt in chunks against the prompt at once: far off for those on the list."""
    model = build(package, packages()[package])
    seen: list[Any] = []

    class Watched(Decoding):
        def choose(self, live: Any, logits: Any) -> None:
            seen.append(logits)
            super().choose(live, logits)

        def check_chunks(self, chunk: int) -> None:
            pass

    prompt = list(range(3, 23))
    for chunk in (None, 3):
        list(Watched(model, [prompt], max_new_tokens=2, chunk=chunk).passes())
    near = torch.allclose(seen[0], seen[2], rtol=1e-3, atol=1e-3)
    assert near == (package not in UNDIVIDED)
    if package in UNDIVIDED:
        for made in (lambda: Decoding(model, [prompt], max_new_tokens=2, chunk=3), lambda: scored(model, prompt)):
            with pytest.raises(ModelError, match=f"does not compute {package} models in chunks"):
                made()
        Decoding(model, [prompt], max_new_tokens=2, chunk=20)
        assert default_chunk(model) is None
    else:
        assert default_chunk(model) == 2048


def scored(model: Any, prompt: list[int]) -> Scoring:
    return Scoring(model, [prompt], chunk=3)


def test_several_prompts_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--capacity", "4/layer", "--max-new-tokens", "5", "--prefill-chunk", "3"]
    texts = ["The list is sorted by", "def read(self, size=-1):"]
    assert run(["generate", str(MINI), *texts, *plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [output["id"] for output in found["outputs"]] == [0, 1] and found["prefill_chunk"] == 3
    assert "text" not in found  # which belongs to a single prompt
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"id": number, "prompt": text}) + "\n" for number, text in enumerate(texts)))
    for more in (["--batch-size", "1"], ["--batch-size", "2"]):
        assert run(["generate", str(MINI), "--prompts", str(file), *plan, *more]) == 0
        shown = capsys.readouterr().out
        assert shown == "".join(output["text"] + "\n" for output in found["outputs"])
    for wrong in ([], [*texts, "--prompts", str(file)]):
        assert run(["generate", str(MINI), *wrong, *plan]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    verdict = ["validate", str(MINI), "--prompts", str(file), "--capacity", "4/layer", "--hardware", "t4", "--json"]
    verdict += ["--threshold", "1e9"]  # decisions are what is held against the engine here, not another machine's time
    assert run([*verdict, "--max-new-tokens", "4", "--prefill-chunk", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
