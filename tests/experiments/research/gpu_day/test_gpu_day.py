"""The day's command in small, on a CPU: every step works, and a second call has nothing left to do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hqq.core.quantize")
from experiments.research.gpu_day import agreement, speed  # noqa: E402
from experiments.research.gpu_day import settings as gpu_settings  # noqa: E402
from experiments.research.gpu_day.settings import EXPERTS_BYTES, SHAPES, Setting, settings  # noqa: E402

ROOT = Path(__file__).parents[4]
LIMIT_S = 90


OLDER = os.environ.get("TRACEKIT_OLD_ENV")
"""The Python of an environment such as machines with GPUs have; `make older` makes one."""


def day(output: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "experiments.research.gpu_day", "--device", "cpu", "--tiny", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(output), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_whole_day_in_small(tmp_path: Path) -> None:
    before = os.times()
    done = day(tmp_path)
    after = os.times()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # By the processor's clock: other tests run beside it.
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < LIMIT_S
    parts = [json.loads((tmp_path / f"gpu-day-part{part}.json").read_text()) for part in (1, 2, 3)]
    assert [len(part["steps"]) for part in parts] == [6, 7, 7]
    assert {found["outcome"] for part in parts for found in part["steps"].values()} == {"done"}
    assert all(row["identical"] for row in parts[0]["steps"]["delays and poisoned slots"]["rows"])
    assert parts[1]["steps"]["link bound: mixtral-8x7b bf16"]["rows"][0]["share of the link bound"] > 0
    for found in parts[2]["steps"].values():
        assert "allocated" not in found or found["foreseen"] >= found["slots and weights"]
    page = (tmp_path / "gpu-day.md").read_text()
    assert "## Part 3" in page and "| torch |" in page and "**Failed**" not in page
    files = list(tmp_path.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16e6 for file in files)

    start = time.monotonic()
    again = day(tmp_path, "--part", "2")
    assert again.returncode == 0 and "done" not in again.stdout and time.monotonic() - start < 60


@pytest.mark.skipif(OLDER is None, reason="TRACEKIT_OLD_ENV names no other environment (make older)")
def test_the_whole_day_in_an_older_environment(tmp_path: Path) -> None:
    """With what that environment has, and nothing of this one."""
    assert OLDER is not None
    done = day(tmp_path, python=OLDER)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = [json.loads((tmp_path / f"gpu-day-part{part}.json").read_text()) for part in (1, 2, 3)]
    assert {found["outcome"] for part in parts for found in part["steps"].values()} == {"done"}
    assert parts[0]["machine"]["torch"] != torch.__version__


def test_shapes_are_real_and_what_they_load_is_bounded(tmp_path: Path) -> None:
    found = {setting.name: setting for setting in settings(tmp_path, tiny=False)}
    assert list(found) == [
        "mixtral-8x7b bf16",
        "mixtral-8x7b hqq-4bit",
        "mixtral-8x7b hqq-2bit",
        "qwen3-30b-a3b bf16",
        "deepseek-v2-lite bf16",
    ]
    for setting in found.values():
        real = SHAPES[setting.shape][1]
        assert setting.config | {"num_hidden_layers": 0} == real | {"num_hidden_layers": 0}
        assert 2 <= setting.config["num_hidden_layers"] <= real["num_hidden_layers"]
    # By hand: 8 experts of 3 x 4096 x 14336 weights in 16 bits are 2.82 GB a layer, of which 8 GiB hold three.
    assert found["mixtral-8x7b bf16"].depth == "3 of 32" and EXPERTS_BYTES >= 3 * 8 * 3 * 4096 * 14336 * 2
    assert found["deepseek-v2-lite bf16"].depth == "8 of 27"


@pytest.mark.parametrize(("free", "depth"), [(124 << 30, "32 of 32"), (64 << 30, "18 of 32")])
def test_the_deepest_setting_takes_what_memory_holds(
    free: int, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixtral in 16 bits, 2.82 GB a layer: whole on a machine of 128 GiB."""
    monkeypatch.setattr(gpu_settings, "host_bytes", lambda: free)
    mixtral = settings(tmp_path, tiny=False)[0]
    deep = mixtral.deepest(torch.device("cpu"), 0.25)
    assert deep.depth == depth and deep.path != mixtral.path


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "mixtral-8x7b"])
def test_the_other_families_run_in_small(shape: str, tmp_path: Path) -> None:
    """Mixtral runs in the whole day above."""
    setting, cpu = Setting(shape, None, True, tmp_path), torch.device("cpu")
    assert speed.resident(setting, cpu, tiny=True)["tokens/s"]["ours"] > 0
    (row,) = speed.against_link(setting, cpu, tiny=True)["rows"]
    assert row["MB loaded per token"] > 0 and row["ms per token"] > row["ms of the dense part"] > 0
    assert agreement.held_out(setting, cpu, tmp_path, tiny=True)["median of plans"]
