"""`tracekit info MODEL`: what a model takes and where it runs, by sums done by hand."""

import json
from pathlib import Path

import pytest

from experiments.cli.main import run
from tests.helpers.traces import make_trace

EXPERT = 3 * 4096 * 14336


def found(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    assert run(["info", *arguments, "--json"]) == code
    value: dict[str, object] = json.loads(capsys.readouterr().out)
    return value


def test_mixtral_on_twelve_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(capsys, "mixtral-8x7b", "--hardware", "rtx3060", "--weights", "hqq-4bit", "--context", "8192")
    assert (answer["experts"], answer["top_k"], answer["total_params"]) == (8, 2, 46_702_792_704)
    sizes, caches, machines = answer["sizes"], answer["kv_cache_bytes"], answer["machines"]
    assert isinstance(sizes, dict) and isinstance(caches, dict) and isinstance(machines, list)
    assert sizes["q4_k"]["experts"] == 32 * 8 * EXPERT * 9 // 16
    assert caches["8192"] == 8192 * 2 * 8 * 128 * 2 * 32
    (machine,) = machines
    room = 12 * 2**30
    slot = 32 * EXPERT * 9 // 16
    assert machine["fits"] and machine["memory_total"] <= room * 19 // 20 < machine["memory_total"] + slot
    assert machine["missing"] < machine["even"] < machine["resident"]


def test_a_cpu_that_helps_exceeds_nothing_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """As recommendations with the lane do: the end of what is possible is a bound with the host computing, too."""
    answer = found(capsys, "mixtral-8x7b", "--hardware", "rtx3060", "--weights", "hqq-4bit", "--context", "8192")
    assert answer["basis"] == "modelled, not measured"
    (machine,) = answer["machines"]  # type: ignore[misc]
    assert machine["helped"] > machine["resident"]
    how = ["recommend", "mixtral-8x7b", "--hardware", "rtx3060", "--weights", "hqq-4bit", "--tokens", "256", "--json"]
    assert run(how) == 0
    told = json.loads(capsys.readouterr().out)["rtx3060"]
    assert told["basis"] == "modelled, not measured"
    (best,) = told["plans"]
    assert best["plan"]["serve"]["context"] == 8192
    assert machine["resident"] < best["tokens_per_second"] <= machine["helped"]


def test_more_context_leaves_fewer_slots_and_smaller_keys_more(capsys: pytest.CaptureFixture[str]) -> None:
    def slots(*more: str) -> int:
        answer = found(capsys, "qwen3-30b-a3b", "--hardware", "rtx3060", *more)
        machines = answer["machines"]
        assert isinstance(machines, list)
        return int(machines[0]["slots"])

    plain = slots("--context", "32768")
    assert slots("--context", "4096") > plain > slots("--context", "32768", "--batch", "2")
    assert slots("--context", "32768", "--kv-cache", "q4_0") > plain


def test_what_fits_nowhere_is_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(capsys, "deepseek-v3", "--hardware", "rtx3060", "--hardware", "t4", code=1)
    assert [machine["fits"] for machine in answer["machines"]] == [False, False]  # type: ignore[attr-defined]
    assert run(["info", "deepseek-v3", "--hardware", "rtx3060"]) == 1
    assert "fits none of these" in capsys.readouterr().out


def test_a_model_by_its_files_and_a_trace_by_its(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model_type": "qwen3_moe", "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256,
        "vocab_size": 99, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_directory = found(capsys, str(tmp_path), "--hardware", "t4")
    assert by_directory["expert_params"] == 3 * 256 * 256
    assert found(capsys, str(tmp_path / "config.json"), "--hardware", "t4") == by_directory
    assert run(["info", str(tmp_path), "--hardware", "t4"]) == 0
    assert "runs on t4; fastest on t4, which holds all of it" in capsys.readouterr().out.replace("\n", " ")
    trace = make_trace(tmp_path / "mixtral-8x7b.trace", [[[0, 1]]] * 4)
    assert found(capsys, str(trace.path))["tokens"] == 4
    assert run(["info", str(trace.path), "--hardware", "t4"]) == 2
    assert "are of a model, and this is a trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mixtral-8x7c"], "no shipped model of that name; did you mean 'mixtral-8x7b'?"),
        (["mixtral-8x7b", "--verify"], "--verify is of a trace's digests"),
        (["mixtral-8x7.trace"], "no trace at mixtral-8x7.trace: the directory does not exist"),
        (["absent.gguf"], "No such file"),
        (["mixtral-8x7b", "--weights", "q9_k"], "unknown weight format"),
        (["mixtral-8x7b", "--kv-cache", "hqq-4bit"], "a key-value cache is not stored as"),
        (["mixtral-8x7b", "--hardware", "rtx"], "unknown hardware profile"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
