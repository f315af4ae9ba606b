"""What a command on a model cannot do is said before torch is imported, let alone a model loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[3] / "experiments" / "demo" / "checkpoints" / "mixtral-mini"
PROGRAM = """
import sys
from experiments.cli.main import run
code = run(sys.argv[1:])
print(code, "torch" in sys.modules, "transformers" in sys.modules)
"""
TEXT = ["--text", "pyproject.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quality", str(MODEL), *TEXT, "--weights", "q4_k"], "is for replays and sizing"),
        (["quality", str(MODEL), *TEXT, "--dtype", "float99"], "unknown dtype"),
        (["quality", str(MODEL), *TEXT, "--scratch", "much"], "--scratch"),
        (["generate", str(MODEL), "x", "--capacity", "4/layer", "--device", "tpu"], "unknown device"),
        (
            ["validate", str(MODEL), "--prompts", "{prompts}", "--capacity", "4/layer", "--weights", "q4_k"],
            "is for replays",
        ),
    ],
)
def test_it_is_refused_before_anything_is_loaded(arguments: list[str], message: str, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "prompt": "x"}\n')
    words = [one.format(prompts=prompts) for one in arguments]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.split() == ["2", "False", "False"]


def test_a_lane_asks_for_the_profile_before_the_model(tmp_path: Path) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text('cache.capacity = "4/layer"\nmiss.where = "auto"\n')
    words = ["generate", str(tmp_path), "x", "--plan", str(plan)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert "give --hardware" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.split()[0] == "2" and done.stdout.split()[2] == "False"
