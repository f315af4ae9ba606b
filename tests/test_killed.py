"""kill -9 at any moment of any command: run again, it leaves what a run that was left alone leaves, and nothing else.

Some moments by default; TRACEKIT_KILLS=60 tries as many, TRACEKIT_KILLS_SEED others. What was killed where is printed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.commands import ROOT
from tests.helpers.studies import traced
from tests.helpers.traces import make_trace, random_experts
from tests.tracekit.recorder.conftest import COMMON, WORDS

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills with SIGKILL")
MOMENTS = int(os.environ.get("TRACEKIT_KILLS", "8"))
SEED = int(os.environ.get("TRACEKIT_KILLS_SEED", "18"))
STUDY = """
traces = ["{folder}/a.trace"]
[grid]
capacity = ["2/layer", "4/layer"]
eviction = ["lru", "fifo"]
prefetch = ["none", "gate"]
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The commands that write what others go on with, and small inputs for each."""
    place = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    first, second = (traced(place / f"{name}.trace", seed) for seed, name in enumerate("ab"))
    tokens = 400
    long = make_trace(
        place / "long.trace",
        random_experts(rng, tokens, 3),
        request=np.arange(tokens) // 50,
        position=np.arange(tokens) % 50,
        token_id=rng.integers(0, 30, tokens),
    )
    choices = [(token, layer, [layer, token % 3 + 4]) for token in range(60) for layer in range(3)]
    lines = [
        {"request_id": t // 20, "token_index": t % 20, "layer": layer, "topk_ids": ids} for t, layer, ids in choices
    ]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "study.toml").write_text(STUDY.format(folder=place))
    prompts = [{"id": number, "prompt": f"w{number} w3"} for number in range(6)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    _write_model(place / "model")

    def job(name: str, *words: object, again: tuple[str, ...] = (), timed: tuple[str, ...] = ()) -> dict[str, Any]:
        return {"name": name, "arguments": [*map(str, words)], "again": again, "timed": timed}

    small = ("--capacity", "2/layer")
    output = ("--output", "{out}/o.trace")
    return [
        job("import", "import", "jsonl", place / "log.jsonl", *output),
        job("merge", "merge", first.path, second.path, *output),
        job("slice", "slice", long.path, "--requests", "1:7", *output),
        job(
            *("record", "record", place / "model", "--prompts", place / "prompts.jsonl", *output),
            *("--max-new-tokens", 4, "--shard-rows", 8, "--logits", "--lookahead", 1),
            again=("--resume",),
        ),
        job(
            *("fit", "fit", "routing", long.path, "--output", "{out}/p", "--epochs", 4),
            timed=("measured_ns_per_visit",),
        ),
        job("slabs", "generate", place / "model", "w1 w2", *small, "--max-new-tokens", 1, "--slabs", "{out}/slabs"),
        job("study", "study", place / "study.toml", "--output", "{out}/study", "--workers", 2),
        job(
            *("quality", "quality", place / "model", "--text", place / "prompts.jsonl", "--device", "cpu"),
            *("--capacity", "2/layer", "--weights", "fp32", "--output", "{out}/q"),
        ),
        job(
            *("events", "replay", long.path, *small, "--events", "{out}/e.parquet", "--steps", "{out}/s.parquet"),
            *("--hardware", "rtx3060", "--model-shape", "mixtral-8x7b", "--timeline", "{out}/t.json.gz"),
        ),
    ]


def _write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(
        transformers.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2)
    ).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)


def test_killed_and_run_again(jobs: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "jobs.json"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings.write_text(json.dumps({"folder": str(tmp_path), "seed": SEED, "moments": MOMENTS, "jobs": jobs}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killing", str(settings)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    with capsys.disabled():
        told = ", ".join(f"{name} {found['killed']} of {found['moments']}" for name, found in report.items())
        print(f"\nkilled before they ended, seed {SEED}: {told}")
    assert [(name, found["differ"]) for name, found in report.items() if found["differ"]] == []
    assert list(temporary.iterdir()) == []
    assert sum(found["killed"] for found in report.values()) >= MOMENTS // 2
