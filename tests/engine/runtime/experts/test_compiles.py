"""Grouped kernels compile for a GPU, where there is none, into what is said of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels' extra is not installed: pip install 'moe-tracekit[kernels]'")
pytest.importorskip("torch")
ROOT = Path(__file__).parents[4]


def test_code_for_a_gpu_uses_its_tensor_cores_and_nothing_unordered(tmp_path: Path) -> None:
    """Four bits, which hold all that 16 do. Not interpreted, so in a process of its own; 8.0 is an A100's."""
    given = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    given |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py")), "hqq-4bit-g64", "80"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for name in ("first", "second", "second_of_token"):
        assert found[name]["mma"] > 0 and found[name]["wide copies"] > 0
        assert found[name]["bytes"] == 0  # codes too are read several at a time
    for counts in found.values():
        assert counts["atomics"] == counts["fma"] == 0
