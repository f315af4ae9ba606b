"""What is nearly right is understood, or told what was meant: options, pipes, completion, versions of JSON."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.console import SCHEMA
from experiments.cli.main import COMMANDS, run
from experiments.research.reference_docs import commands
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import ImportFormatError
from tracekit.recorder.prompts import read_prompts

TWO = '{"id": "a", "prompt": "The module"}\n{"id": "b", "prompt": "def read"}\n'


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What an impossible command says, in one line."""
    assert run(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_what_was_meant_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, file = tmp_path / "study.toml", tmp_path / "routing.npz"
    study.write_text('traces = "t"\nobjective = "tokens_per_sec"\n[grid]\ncapacity = "2/layer"\n')
    file.touch()
    assert f"run it first, tracekit study {study} --output DIR" in refused(capsys, "report", str(study))
    said = refused(capsys, "import", str(file), "--output", str(tmp_path / "o.trace"))
    assert f"tracekit import auto {file} --output" in said
    assert "the model comes first" in refused(capsys, "generate", "x", "--chat", "--capacity", "4/layer")
    said = refused(capsys, "study", str(study), "--dry-run")
    assert "one of tokens_per_second, p99, bytes" in said and "did you mean 'tokens_per_second'" in said


def test_the_reference_names_what_is_typed() -> None:
    text = commands()
    assert "| `--set` |" in text and "--settings" not in text
    assert "| `--as` |" in text and "--rows-as" not in text and "`--bounds`, `--no-bounds`" in text


def test_prompts_come_through_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(TWO))
    writer.start()
    assert [prompt.id for prompt in read_prompts(pipe)] == ["a", "b"]
    writer.join()
    program = "from tracekit.recorder.prompts import read_prompts; print([p.id for p in read_prompts('-')])"
    done = subprocess.run([sys.executable, "-c", program], input=TWO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a', 'b']"
    for wrong in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ImportFormatError, match="cannot be read: it is a"):
            read_prompts(wrong)
    monkeypatch.setattr("tracekit.recorder.prompts.MAX_FILE_BYTES", 10)
    endless = threading.Thread(target=lambda: pipe.write_text(TWO))
    endless.start()
    with pytest.raises(ImportFormatError, match="is larger than"):
        read_prompts(pipe)
    endless.join()


def test_shapes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["shapes", "list"]) == 0
    assert "mixtral-8x7b" in capsys.readouterr().out
    assert run(["shapes", "show", "mixtral-8x7b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"] == 8
    assert "one of " in refused(capsys, "shapes", "show") and "takes no name" in refused(capsys, "shapes", "list", "x")


def test_everything_printed_for_machines_has_a_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = str(make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 8, 2, 8)).path)
    for arguments in (
        ["info", trace],
        ["replay", trace, "--capacity", "4/layer"],
        ["curve", trace, "--policy", "lru"],
        ["hardware"],
        ["hardware", "show", "t4"],
        ["shapes"],
        ["policies"],
        ["slice", trace, "--requests", "0:1", "--output", str(tmp_path / "b.trace")],
    ):
        assert run([*arguments, "--json"]) == 0
        printed = capsys.readouterr().out
        assert json.loads(printed)["schema"] == SCHEMA and printed.startswith('{\n  "schema":'), arguments


@pytest.mark.parametrize(
    ("words", "found"), [("tracekit rep", {"replay", "report"}), ("tracekit replay --hardw", {"--hardware"})]
)
def test_a_shell_completes(words: str, found: set[str]) -> None:
    asked = {"_TRACEKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = [sys.executable, "-m", "tracekit"]
    done = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found
    assert "shapes" in COMMANDS
