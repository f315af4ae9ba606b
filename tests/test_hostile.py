"""Every case that a stranger may send (shared/cases/hostile): one line that names the input, exit code 2, in bounds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import run
from tests.helpers.commands import PYTHON_BYTES, ROOT, command, harmless, idle, worked
from tests.helpers.fuzz_run import peak
from tests.helpers.traces import make_trace, random_experts
from tracekit.importers import IMPORTERS

MIB = 1 << 20
CASES = Path(os.environ.get("TRACEKIT_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "cases" / "hostile"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip(f"the hostile cases are not at {CASES} (set TRACEKIT_SHARED to the folder that holds cases/)")
    return CASES


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command in this process that must be refused in one harmless line; returns the line."""

    def runner(*arguments: object) -> str:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
        assert harmless(said) and len(said) < 1_100, said
        return said

    return runner


# Time that fits


@pytest.mark.parametrize("machine", ["mid", "slow"])
def test_a_replay_beyond_64_bits_of_nanoseconds(cases: Path, refused: Refused, machine: str) -> None:
    profile = cases / "overflow" / f"{machine}.toml"
    line = refused("replay", cases / "overflow" / "n2.trace", "--hardware", profile, "--capacity", "2/layer", "--json")
    assert "link.host_to_device_bytes_per_s" in line


def test_a_chunk_that_cuts_an_expert_into_millions(cases: Path, refused: Refused) -> None:
    profile = cases / "overflow" / "c25.toml"
    line = refused("replay", cases / "overflow" / "n5.trace", "--hardware", profile, "--capacity", "2/layer", "--json")
    assert "link.chunk_bytes" in line


# A right digest proves nothing


@pytest.mark.parametrize("asked", [("replay", "--prefetch", "gate", "--capacity", "2/layer"), ("info", "--verify")])
def test_a_header_that_is_not_utf_8(cases: Path, refused: Refused, asked: tuple[str, ...]) -> None:
    assert "damaged safetensors header" in refused(asked[0], cases / "utf8-header.trace", *asked[1:])


def test_a_predictor_of_a_type_that_numpy_has_not(cases: Path, refused: Refused, tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 5, 8, 8))
    learned = ("--prefetch", "learned", "--prefetch-artefact")
    line = refused("replay", trace.path, "--capacity", "2/layer", *learned, cases / "fit-dtype")
    assert "fit-dtype is damaged" in line


def test_a_card_of_gigabytes_is_not_read(refused: Refused, tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 5, 8, 8))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "predictor.safetensors").write_bytes(b"")
    with (tmp_path / "p" / "predictor.json").open("wb") as file:
        file.truncate(3_900_000_000)
    learned = ("--prefetch", "learned", "--prefetch-artefact")
    assert "too large" in refused("replay", trace.path, "--capacity", "2/layer", *learned, tmp_path / "p")


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_dtype_that_is_a_list(cases: Path, refused: Refused, tmp_path: Path, kind: str) -> None:
    source = cases / ("dtype-list.json" if kind == "vllm" else "dtype-list-sglang.json")
    assert source.name in refused("import", kind, source, "--output", tmp_path / "o.trace")


# Memory


def test_fit_sizes_its_work(cases: Path, refused: Refused, tmp_path: Path) -> None:
    assert "token ids" in refused("fit", "routing", cases / "maxstep.trace", "--output", tmp_path / "f")
    assert "no request" in refused("fit", "routing", cases / "empty.trace", "--output", tmp_path / "g")


def test_one_long_string_among_short_ones(cases: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, cases / "string-bomb.py"], cwd=tmp_path, check=True)
    source = tmp_path / "string-bomb.json"
    done = command("import", "vllm", source, "--output", tmp_path / "o.trace")
    assert done.refused("string-bomb.json")
    assert 0 < done.peak < PYTHON_BYTES + 8 * source.stat().st_size


def test_an_archive_that_expands_a_thousand_times(cases: Path, tmp_path: Path) -> None:
    done = command("import", "npz", cases / "bomb.npz", "--output", tmp_path / "o.trace")
    assert done.refused("bomb.npz")
    assert 0 < done.peak < PYTHON_BYTES + 8 * MIB


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("hidden_size", 65536, "do not belong together"),
        ("vocab_size", 2_000_000_000, ""),
        ("num_hidden_layers", 100_000, "num_hidden_layers is 100000"),
        ("hidden_size", 2**40, ""),
    ],
)
def test_a_configuration_of_another_size_than_its_weights(
    refused: Refused, tmp_path: Path, field: str, value: int, says: str
) -> None:
    """Refused by the headers of the weights, or for want of memory: before anything of that size is made up."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "experiments" / "demo" / "checkpoints" / "mixtral-mini", model)
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(described | {field: value}))
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    before = peak()
    prompts, output = ("--prompts", tmp_path / "p.jsonl"), ("--output", tmp_path / "o.trace")
    assert says in refused("record", model, *prompts, *output)
    assert says in refused("generate", model, "a", "--capacity", "2/layer")
    assert peak() - before < 400 * MIB


# What strangers wrote


def test_escapes_in_a_trace_do_not_reach_the_terminal(
    cases: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for asked in (["info"], ["info", "--json"], ["replay", "--capacity", "2/layer"]):
        code = run([asked[0], str(cases / "evil.trace"), *asked[1:]])
        printed = capsys.readouterr()
        assert code == 0 and harmless(printed.out + printed.err), asked
        assert "\\x1b" in printed.out or "\\u001b" in printed.out or asked[0] == "replay"


def test_a_path_full_of_escapes_is_spelled_out(refused: Refused, tmp_path: Path) -> None:
    assert "\\x1b[2J\\u202e" in refused("info", tmp_path / "a\x1b[2J\u202e.trace")
    assert "..." in refused("info", tmp_path / ("x" * 250 + ".trace"))


@pytest.mark.parametrize("asked", ["info", "import", "replay"])
def test_a_path_that_is_not_utf_8(asked: str, tmp_path: Path) -> None:
    """It works, or is refused in one line."""
    name = os.fsdecode(b"\xff\xfe")
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 5, 2, 8))
    odd = tmp_path / f"{name}.trace"
    shutil.copytree(trace.path, odd)
    arguments = {
        "info": ["info", odd],
        "import": ["import", "jsonl", tmp_path / name, "--output", tmp_path / "o.trace"],
        "replay": ["replay", trace.path, "--capacity", "2/layer", "--events", tmp_path / f"{name}.parquet"],
    }[asked]
    done = command(*(os.fsencode(str(argument)).decode("utf-8", "surrogateescape") for argument in arguments))
    assert done.code in (0, 2) and harmless(done.out + done.err), done.err
    assert done.code == 0 or done.refused()


# Files that are none


@pytest.fixture(params=["pipe", "directory", "device", "socket"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Path]:
    """Put something that is no file at a path."""

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "directory":
            path.mkdir()
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            here = Path.cwd()
            os.chdir(path.parent)  # names of sockets are short
            socket.socket(socket.AF_UNIX).bind(path.name)
            os.chdir(here)
        return path

    return put


def test_no_reader_waits_for_what_is_no_file(no_file: Callable[[Path], Path], refused: Refused, tmp_path: Path) -> None:
    trace = make_trace(
        tmp_path / "a.trace", random_experts(np.random.default_rng(0), 5, 2, 8), logits=np.zeros((5, 2, 8))
    )
    sized = ("--capacity", "2/layer")
    policy = no_file(tmp_path / "mine.py")
    assert "it is a" in refused("replay", trace.path, "--policy", f"{policy}:P", *sized)
    for kind in ("--plan", "--hardware", "--model-shape"):
        table = no_file(tmp_path / f"{kind}.toml")
        assert "it is a" in refused("replay", trace.path, kind, table, *(() if kind == "--plan" else sized))
    predictor = tmp_path / "p"
    predictor.mkdir()
    no_file(predictor / "predictor.json")
    learned = ("--prefetch", "learned", "--prefetch-artefact", predictor)
    assert "it is a" in refused("replay", trace.path, *sized, *learned)
    study = no_file(tmp_path / "study.toml")
    assert "it is a" in refused("study", study, "--output", tmp_path / "out")
    for file in sorted(trace.path.iterdir(), reverse=True):
        kept = file.read_bytes()
        place = no_file(file)
        assert "it is a" in refused("info", trace.path)
        place.rmdir() if place.is_dir() else place.unlink()
        file.write_bytes(kept)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("what", ["events", "steps", "timeline"])
def test_a_full_disk_is_called_one(small_disk: Path, refused: Refused, tmp_path: Path, what: str) -> None:
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 8000, 2, 8))
    timed = ("--hardware", "rtx3060", "--model-shape", "mixtral-8x7b", "--timeline-steps", "0:500")
    asked = {"timeline": timed}.get(what, ())
    line = refused("replay", trace.path, "--capacity", "2/layer", f"--{what}", small_disk / "out", *asked)
    assert "No space left on device" in line and "disk/out" in line
    assert list(small_disk.iterdir()) == []


# Every path of every command


def test_no_command_waits_for_what_is_no_file(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe, a device or a directory in the place of every file that a command reads, and of most that it writes."""
    monkeypatch.setattr("tracekit.opening.PATIENCE_S", 0.1)
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 40, 2, 8)).path
    model = ROOT / "experiments" / "demo" / "checkpoints" / "mixtral-mini"
    (tmp_path / "p.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    (tmp_path / "plan.toml").write_text('cache.capacity = "2/layer"\n')
    prompts, out, sized = tmp_path / "p.jsonl", tmp_path / "new", ("--capacity", "2/layer")
    validated = ("validate", model, "--prompts", prompts, "--hardware", "rtx3060")
    timed = ("--hardware", "rtx3060", "--model-shape", "mixtral-8x7b")
    cases = [
        *(("import", kind, "{}", "--output", out) for kind in ["auto", *sorted(IMPORTERS)]),
        ("import", "deepseek-csv", prompts, "--tokenizer", "{}", "--output", out),
        ("info", "{}"),
        ("merge", trace, "{}", "--output", out),
        ("slice", "{}", "--requests", "0:1", "--output", out),
        ("anonymise", "{}", "--output", out),
        ("diff", trace, "{}"),
        ("curve", "{}"),
        ("replay", "{}", *sized),
        *(("replay", trace, "--plan", "{}"), ("replay", trace, *sized, "--hardware", "{}")),
        ("replay", trace, *sized, "--hardware", "rtx3060", "--model-shape", "{}"),
        ("replay", trace, *sized, "--policy", "{}.py:P"),
        ("replay", trace, *sized, "--policy", "static", "--profile", "{}"),
        ("replay", trace, *sized, "--pinned", "popular:1/layer", "--pinned-profile", "{}"),
        ("replay", trace, *sized, "--split", "curve", "--split-from", "{}"),
        ("place", "{}", "--slots", "1/layer", "--output", out.with_suffix(".toml")),
        ("replay", trace, *sized, "--prefetch", "learned", "--prefetch-artefact", "{}"),
        ("replay", "--counts", "{}", *timed),
        *(("replay", trace, *sized, option, "{}") for option in ("--events", "--steps")),
        ("replay", trace, *sized, *timed, "--timeline", "{}"),
        ("study", "{}", "--output", out),
        ("report", "{}", "--output", out),
        ("fit", "{}.py:P", trace, "--output", out),
        ("fit", "routing", "{}", "--output", out),
        ("fit", "routing", trace, "--hold-out-domain", "a", "--prompts", "{}", "--output", out),
        ("record", model, "--prompts", "{}", "--output", out),
        ("record", model, "--prompts", prompts, "--plan", "{}", "--output", out),
        ("record", "{}", "--prompts", prompts, "--output", out),
        ("generate", "{}", "a", *sized),
        ("generate", model, "--prompts", "{}", *sized),
        ("generate", model, "a", "--plan", "{}"),
        ("generate", model, "a", *sized, "--slabs", "{}"),
        ("generate", model, "a", *sized, "--hardware", "{}"),
        (*validated, "--plan", "{}"),
        ("validate", model, "--prompts", "{}", "--plan", tmp_path / "plan.toml", "--hardware", "rtx3060"),
        ("validate", model, "--prompts", prompts, "--plan", tmp_path / "plan.toml", "--hardware", "{}"),
        ("policies", "check", "{}.py:P"),
        ("hardware", "show", "{}"),
    ]
    for kind in ("pipe", "device"):
        for number, words in enumerate(cases):
            bad = tmp_path / f"{kind}-{number}"
            place = tmp_path / f"{kind}-{number}.py" if any("{}.py" in str(word) for word in words) else Path(bad)
            os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
            refused(*(str(word).replace("{}", str(bad)) for word in words))
            assert not out.exists(), words


# Ctrl-C


def test_a_policy_that_never_returns_hears_ctrl_c(cases: Path, tmp_path: Path) -> None:
    """Compiled code holds no lock of Python's, and asks nobody: a thread of ours ends the process."""
    shutil.copy(cases / "never-returns.py", tmp_path / "never_returns.py")
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 50, 2, 8))
    asked = ("replay", trace.path, "--policy", f"{tmp_path}/never_returns.py:P", "--capacity", "2/layer")
    done = command(*asked, limit_s=120, interrupt=worked(12))
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_a_policy_that_never_returns_in_a_study_hears_ctrl_c(cases: Path, tmp_path: Path) -> None:
    """In its threads: what is finished is kept, and nobody waits for the rest."""
    shutil.copy(cases / "never-returns.py", tmp_path / "never_returns.py")
    make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 50, 2, 8))
    grid = '[grid]\ncapacity = ["2/layer", "3/layer"]\neviction = ["lru", "./never_returns.py:P"]\n'
    (tmp_path / "s.toml").write_text('traces = ["a.trace"]\n' + grid)
    words = ["study", str(tmp_path / "s.toml"), "--output", str(tmp_path / "out"), "--workers", "2"]
    program = "from experiments.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program, *words], env=environment, stderr=subprocess.PIPE) as study:
        try:
            deadline = time.monotonic() + 240
            while not any((tmp_path / "out").glob("cells/*.parquet")) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(5)
            assert study.poll() is None
            study.send_signal(signal.SIGINT)
            pressed = time.monotonic()
            _, said = study.communicate(timeout=60)
            waited = time.monotonic() - pressed
        finally:
            study.kill()
    assert study.returncode == 130
    assert said.startswith(b"interrupted") and said.count(b"\n") == 1, said
    assert waited < 2


def test_a_copy_over_a_link_of_one_byte_per_second_hears_ctrl_c(tmp_path: Path) -> None:
    model = ROOT / "experiments" / "demo" / "checkpoints" / "mixtral-mini"
    (tmp_path / "p.toml").write_text('cache.capacity = "2/layer"\neviction.policy = "lru"\n')
    asked = ("generate", model, "--plan", tmp_path / "p.toml", "once", "--emulate-link", "1e-9")
    done = command(*asked, limit_s=120, interrupt=idle(4))
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")
