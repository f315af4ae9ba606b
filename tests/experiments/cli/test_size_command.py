"""`tracekit size`: a table for people, JSON for machines, one line for what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import run
from tests.helpers.traces import make_trace
from tracekit.caution import MARK


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twenty requests of 20 tokens, each decoded, in four layers of eight experts."""
    rng = np.random.default_rng(1)
    liked = rng.random((20, 1, 4, 8)) ** 4
    experts = (rng.random((20, 20, 4, 8)) * liked).argsort(axis=3)[..., -2:].reshape(400, 4, 2)
    place = tmp_path_factory.mktemp("traces") / "t.trace"
    request = np.repeat(np.arange(20), 20)
    make_trace(place, experts, num_experts=8, request=request, position=np.tile(np.arange(20), 20))
    return ["size", "mixtral-8x7b", "--trace", str(place)]


def test_people_are_told_what_is_modelled_and_what_is_not_known(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--hardware", "rtx3060", "--hardware", "rtx3080m", "--context", "4096", "--target", "1", "--ttft", "2s"]
    assert run([*arguments, *named]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    table = printed.out
    assert "modelled, not measured" in table.splitlines()[0] and "Modelled, not measured" in table.splitlines()[-1]
    assert "* rtx3060" in table and "? rtx3080m" in table and "not known" in table
    assert "perhaps" in table, "a trace without prompts says nothing of the first token"
    assert "price is not known: rtx3080m" in table and "the price is that of the device alone: rtx3060" in table
    assert "hours of use" in table and "2021-02-25" in table


def test_machines_get_all_of_it(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(
        'currency = "EUR"\nlife = { hours = 100, source = "x" }\n'
        'electricity = { per_kwh = 0.2, date = 2026-01-01, source = "x" }\n'
        '[machines."rtx3060 link=2x"]\nprice = { device = 7, rest = 5, date = 2026-01-01, source = "x" }\n'
    )
    how = ["--hardware", "rtx3060", "--what-if", "link=2x,vram=16GiB", "--concurrency", "4", "--prices", str(prices)]
    assert run([*arguments, *how, "--target", "1000000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["basis"], found["currency"]) == (1, "modelled, not measured", "EUR")
    rows = {row["machine"]: row for row in found["machines"]}
    assert list(rows) == ["rtx3060", "rtx3060 link=2x", "rtx3060 vram=16GiB", "rtx3060 link=2x,vram=16GiB"]
    assert rows["rtx3060 link=2x"]["purchase"] == 12 and rows["rtx3060"]["purchase"] is None
    assert all(row["reached"] == "no" and row["pareto"] is None for row in rows.values())
    assert all(row["plan"]["serve"]["batch"] == 4 for row in rows.values())
    speed = {name: row["tokens_per_second"] for name, row in rows.items()}
    for better in ("rtx3060 link=2x", "rtx3060 vram=16GiB"):
        assert speed["rtx3060"] <= speed[better] <= speed["rtx3060 link=2x,vram=16GiB"]


def test_without_a_trace_routing_is_a_prior_and_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    how = [
        "size",
        "mixtral-8x7b",
        "--hardware",
        "rtx3060",
        "--tokens",
        "128",
        "--prompt-tokens",
        "256",
        "--ttft",
        "20s",
    ]
    assert run([*how, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["machines"]
    assert found["prior"]["mark"] == MARK and found["trace"] is None and found["prompt_tokens"] == 256
    assert row["low"] < row["tokens_per_second"] < row["high"] and row["time"]["ttft_ms"] > 0
    assert run(how) == 0
    assert capsys.readouterr().out.count(MARK) >= 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens", "5"], "give prior:MODEL in place of a trace"),
        (["--what-if", "link=2x"], "give --hardware"),
        (["--hardware", "t4", "--what-if", "link"], "write link=2x"),
        (["--hardware", "t5"], "unknown hardware profile"),
        (["--hardware", "t4", "--hardware", "t4"], "t4 is there twice"),
        (["--ttft", "soon"], "is no time"),
        (["--ttft", "9" * 400], "is no time"),
        (["--target", "inf"], "is no speed"),
        (["--target", "nan"], "--target"),
        (["--ttft", "0s"], "is no time"),
        (["--prices", "nowhere.toml"], "no such file"),
        (["--hardware", "t4", "--weights", "q9_k"], "q9_k"),
        (["--hardware", "t4", "--context", "16777216"], "nothing fits"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
