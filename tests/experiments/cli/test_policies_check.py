"""`tracekit policies check`: exit codes, table and JSON."""

import json
from pathlib import Path

import pytest

from policies import conformance
from policies.conformance import Outcome, Report
from policies.conformance.report import RULES
from tests.helpers.command_line import Call, assert_one_line


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(
        "from policies.eviction.base import EvictionPolicy\n"
        "class Mine(EvictionPolicy):\n"
        "    def victim(self, cache, group, incoming, now, signal):\n"
        "        return incoming\n"
    )
    return f"{path}:Mine"


def test_a_broken_rule_is_exit_code_1(call: Call, bad: str) -> None:
    code, out, err = call("policies", "check", bad)
    assert code == 1 and err == ""
    (line,) = [line for line in out.splitlines() if line.startswith("victims: ")]
    assert "not in the cache" in line and "step 1" in line

    code, out, err = call("policies", "check", bad, "--json")
    assert code == 1 and err == ""
    (report,) = json.loads(out)["reports"]
    assert (report["policy"], report["kind"], report["passed"]) == (bad, "eviction", False)
    assert [rule["rule"] for rule in report["rules"]] == list(RULES["eviction"])
    assert {rule["rule"] for rule in report["rules"] if rule["status"] == "fail"} == {"victims"}


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_exit_code_0_if_all_pass(call: Call, monkeypatch: pytest.MonkeyPatch, json_option: list[str]) -> None:
    outcomes = [Outcome(rule, "pass") for rule in RULES["prefetch"]]
    outcomes[0] = Outcome(outcomes[0].rule, "exempt", "a bound may")
    asked = []
    monkeypatch.setattr(
        conformance,
        "check",
        lambda name, seconds: asked.append((name, seconds)) or [Report(name, "prefetch", tuple(outcomes))],
    )
    code, out, err = call("policies", "check", "gate", "--timeout", "3", *json_option)
    assert (code, err, asked) == (0, "", [("gate", 3.0)])
    assert "suggestions" in out

    outcomes[1] = Outcome(outcomes[1].rule, "not run", "mend the other rules first")
    assert call("policies", "check", "gate", *json_option)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["check", "./none.py:Mine"], "none.py"),
        (["check", "gaet"], "did you mean 'gate'"),
        (["check"], "check needs"),
        (["list", "lru"], "list takes none"),
        (["check", "lru", "--timeout", "0"], "timeout"),
    ],
)
def test_what_cannot_be_checked_is_one_line(call: Call, arguments: list[str], word: str) -> None:
    assert_one_line(*call("policies", *arguments), word)
