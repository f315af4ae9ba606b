"""`policies check` of routing policies: each way to break the contract is caught, the project's own keep it."""

import textwrap
from pathlib import Path

import pytest

from policies import registry
from policies.conformance import check
from policies.conformance.report import PASS, RULES, Outcome
from policies.conformance.routing_trial import RoutingTrial
from policies.registry import ROUTING
from policies.routing.base import RoutingPolicy
from tracekit.errors import PolicyError

HEAD = """
import numpy as np
import tracekit as tk

SEEN = []

class Bad(tk.RoutingPolicy):
    reads = "scores"
    seen = tk.scalar(np.int64)

    def rewrite(self, layer, ids, weights, logits, scores, present):
"""


def interpreted(folder: Path, body: str) -> dict[str, Outcome]:
    """The outcomes of the rules that need no compiled code, tried in this process."""
    path = folder / "bad.py"
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body).strip() + "\n", " " * 8))
    name = f"{path}:Bad"
    policy = registry.routing_policy(name)
    return {one.rule: one for one in RoutingTrial(name, policy, lambda *_: None).interpreted()}


BAD = {
    "no such expert": ("ids[0] = 99", "choices", "left 99: give 0 to 2"),
    "twice": ("ids[0] = 0\nif len(ids) > 1: ids[1] = 0", "choices", "an expert twice"),
    "no number": ("weights[0] = np.nan", "choices", "a weight of nan"),
    "returns": ("return ids", "choices", "in place"),
    "writes to logits": ("logits[0] = 0.0", "state", "only read"),
    "writes to what is there": ("present[0] = 1", "state", "only read"),
    "undeclared": ("self.other = 1", "state", "declare other"),
    "outside": ("ids[99] = 1", "bounds", "bad.py"),
    "raises": ("int('x')", "runs", "ValueError"),
    "remembers": ("SEEN.append(1)\nweights[0] = float(len(SEEN))", "deterministic", "two runs differ"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_each_breach_is_named(case: str, tmp_path: Path) -> None:
    body, rule, words = BAD[case]
    outcome = interpreted(tmp_path, body)[rule]
    assert outcome.status == "fail" and words in outcome.message, outcome


@pytest.mark.parametrize("name", list(ROUTING))
def test_our_own_keep_it(name: str) -> None:
    trial = RoutingTrial(name, registry.routing_policy(name), lambda *_: None)
    outcomes = [*trial.interpreted(), *trial.compiled(trial.digest())]
    assert [one.rule for one in outcomes] == list(RULES["routing"])
    assert {one.status for one in outcomes} == {PASS}


def test_state_lasts_from_visit_to_visit(tmp_path: Path) -> None:
    found = interpreted(tmp_path, "self.seen[0] += 1\nif self.seen[0] % 2: weights[0] = weights[0] / 2")
    assert {one.status for one in found.values()} == {PASS}


def test_the_command_tries_it_in_processes_of_its_own(tmp_path: Path) -> None:
    (report,) = check("adaptive-k")
    assert report.kind == "routing" and report.passed
    path = tmp_path / "slow.py"
    path.write_text(HEAD + "        while True: pass\n")
    (report,) = check(f"{path}:Bad", seconds=0.5)
    (failed,) = [one for one in report.outcomes if one.status == "fail"]
    assert failed.rule == "terminates" and "rewrite() never returns" in failed.message


def test_what_is_no_routing_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import tracekit as tk\nclass Mine(tk.RoutingPolicy):\n    reads = 'minds'\n")
    with pytest.raises(PolicyError, match="'minds' is no signal"):
        registry.routing_policy(f"{path}:Mine")
    path.write_text("import tracekit as tk\nclass Mine(tk.RoutingPolicy):\n    def rewrite(self, x):\n        pass\n")
    with pytest.raises(PolicyError, match="wrong signature: write def rewrite"):
        registry.routing_policy(f"{path}:Mine")
    assert issubclass(registry.routing_policy("none"), RoutingPolicy)
