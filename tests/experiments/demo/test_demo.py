"""The demo, run as its users run it, in a folder of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("altair")

ROOT = Path(__file__).parents[3]


def demo(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    program = "from experiments.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "demo", "--output", str(folder), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_demo_does_the_whole_chain(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["validation"]["decisions"]["identical"] and found["validation"]["tokens"]["identical"]
    speed = {row["name"] + row["plan"]["prefetch"]["predictor"]: row["result"] for row in found["rows"]}
    assert found["basis"] == "modelled, not measured"
    assert speed["no cachenone"]["hits"] == 0
    assert speed["LRUgate"]["hits_by"]["prefetch"] > 0
    assert speed["Belady" + "none"]["hit_ratio"] > speed["LRUnone"]["hit_ratio"]
    for row in found["rows"]:
        rate = row["result"]["time"]["tokens_per_second"]
        assert 0 < rate <= row["result"]["bounds"]["compute_tokens_per_second"] * 1.000001
    online = [row for row in found["rows"] if not row["is_bound"]]
    best = max(online, key=lambda row: row["result"]["time"]["tokens_per_second"])
    predictor = best["plan"]["prefetch"]["predictor"]
    assert found["winner"] == best["name"] + ("" if predictor == "none" else f" + {predictor} prefetch")
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "mixtral-mini" in page and "Decision logs" in page
    filtered = re.findall(r'data-shown="([^"]*)"', page)
    assert sorted(filtered) == ["Belady", "LFU", "LRU", "no cache", "perfect LFU"], "a policy has one name"
    assert (tmp_path / "demo" / "winner.plan.toml").is_file()


def test_the_demo_replaces_only_what_a_demo_left(tmp_path: Path) -> None:
    precious = tmp_path / "mine" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    done = demo(tmp_path / "mine")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "--output" in done.stderr
    assert precious.read_text() == "years of work"
