"""docs/policies.md: its examples work as it says, and its tables are what the program says.

`python -m tests.experiments.test_policy_docs`, in the repository's root, brings the tables up to date.
"""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.plan import plan_from_dict
from engine.replay.choice_log import ChoiceLog
from engine.replay.event_log import SCHEMA
from experiments.cli.main import run
from policies.admission.base import Admission
from policies.conformance.report import RULES
from policies.conformance.routing_trial import RoutingTrial
from policies.conformance.rules import Trial
from policies.events import KIND_NAMES
from policies.eviction.base import EvictionPolicy
from policies.may_use import MAY_USE, STATEMENTS
from policies.prefetch.base import Prefetcher
from policies.registry import BUILTIN, admission_policy, hooks, prefetcher, routing_policy
from policies.routing.base import RoutingPolicy
from tests.helpers.routing_traces import logits_trace
from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"


def output(*arguments: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


def may_use() -> str:
    """What compiled policies may use, as the page lists it."""
    lines = [f"- {about}: {', '.join(f'`{line}`' for line in lines)}" for about, lines in MAY_USE.items()]
    return "\n".join([*lines, f"- statements: {'; '.join(STATEMENTS)}"])


def policies_table() -> str:
    """The project's own policies, from `tracekit policies list --json`."""
    listed = json.loads(output("policies", "list", "--json"))["policies"]
    found = [p for p in listed if p["name"] in BUILTIN[p["kind"]]]
    lines = ["| name | kind | what it does | reads | parameters | source |", "|---|---|---|---|---|---|"]
    for p in found:
        ranges = {name: f" ({words})" for name, words in p["ranges"].items()}
        parameters = ", ".join(
            f"`{name} = {str(value).lower()}`{ranges.get(name, '')}" for name, value in p["parameters"].items()
        )
        reads = "" if p["reads"] == "nothing" else p["reads"]
        cells = [f"`{p['name']}`", p["kind"], p["summary"], reads, parameters, p["source"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def rules_table() -> str:
    """The rules of `tracekit policies check`."""
    says = {rule: text for kind in RULES.values() for rule, text in kind.items()}
    return "\n".join(f"| {rule} | {text} |" for rule, text in says.items())


def renewed(page: str) -> str:
    """The page with its tables as they should be."""
    page = re.sub(
        r"(?<=<!-- may use -->\n).*?(?=<!-- end of may use -->)", lambda _: f"\n{may_use()}\n\n", page, flags=re.S
    )
    page = re.sub(r"(?<=<!-- policies -->\n).*?(?=<!-- end -->)", lambda _: policies_table() + "\n", page, flags=re.S)
    # Comments would end the table in some renderers: the rows stand between the heading and a closing comment.
    return re.sub(
        r"(?<=\| rule \| what it asks \|\n\|---\|---\|\n).*?(?=\n\n)", lambda _: rules_table(), page, flags=re.S
    )


def examples() -> dict[str, str]:
    """The page's Python by the name of the class in it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    return {re.findall(r"^class (\w+)", block, flags=re.M)[0]: block for block in blocks}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    experts = random_experts(np.random.default_rng(3), tokens=80, layers=3, experts=8, top_k=2)
    return make_trace(tmp_path / "t.trace", experts, num_experts=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))


def test_tables_are_current() -> None:
    page = PAGE.read_text()
    assert page == renewed(page), "run: python -m tests.experiments.test_policy_docs"
    assert "`lru`" in page and "no-peeking" in page


def test_every_hook_column_and_kind_is_described() -> None:
    page = PAGE.read_text()
    for word in [*hooks(EvictionPolicy), *hooks(Prefetcher), *hooks(Admission), *hooks(RoutingPolicy)]:
        assert f"`{word}(" in page
    for word in [*SCHEMA, *KIND_NAMES, *ChoiceLog.schema]:
        assert f"`{word}`" in page


def test_the_eviction_example(trace: Trace, tmp_path: Path) -> None:
    name = f"{tmp_path / 'mine.py'}:Blend"
    (tmp_path / "mine.py").write_text(examples()["Blend"])
    (report,) = json.loads(output("policies", "check", name, "--json"))["reports"]
    assert report["passed"]
    assert [rule["rule"] for rule in report["rules"] if rule["status"] != "pass"] == ["order"]  # it keeps no heap

    found = json.loads(output("replay", trace.path, "--policy", name, "--capacity", "4/layer", "--json"))
    plan = {"cache": {"capacity": "4/layer"}, "eviction": {"policy": name}}
    assert found["hits"] == interpreted_hits(trace, plan) > 0
    # The parameter that the page sets in its plan changes something.
    assert interpreted_hits(trace, {**plan, "eviction": {"policy": name, "worth": 4}}) != found["hits"]


def test_the_prefetch_example(trace: Trace, tmp_path: Path) -> None:
    name = f"{tmp_path / 'ahead.py'}:Again"
    (tmp_path / "ahead.py").write_text(examples()["Again"])
    outcomes = list(Trial("prefetch", name, prefetcher(name), lambda *_: None).interpreted())
    assert {outcome.status for outcome in outcomes} == {"pass"}
    plan = {"cache": {"capacity": "1/layer"}, "prefetch": {"predictor": name}}
    assert interpreted_hits(trace, plan) > interpreted_hits(trace, {"cache": {"capacity": "1/layer"}})


def test_the_routing_example(tmp_path: Path) -> None:
    name = f"{tmp_path / 'lean.py'}:Lean"
    (tmp_path / "lean.py").write_text(examples()["Lean"])
    trial = RoutingTrial(name, routing_policy(name), lambda *_: None)
    outcomes = [*trial.interpreted(), *trial.compiled(trial.digest())]
    assert {outcome.status for outcome in outcomes} == {"pass"}
    gated = logits_trace(tmp_path / "g.trace").path
    way = ("replay", gated, "--capacity", "4/layer", "--routing-policy", name, "--json", "--no-bounds")
    found, seldom = (json.loads(output(*way, *more))["routing"] for more in ((), ("--routing-set", "most=9")))
    assert 0 < seldom["dropped"] < found["dropped"] == found["altered"]


def test_the_admission_example(trace: Trace, tmp_path: Path) -> None:
    name = f"{tmp_path / 'keep.py'}:Twice"
    (tmp_path / "keep.py").write_text(examples()["Twice"])
    outcomes = list(Trial("admission", name, admission_policy(name), lambda *_: None).interpreted())
    assert {outcome.status for outcome in outcomes} == {"pass"}
    plan: dict[str, object] = {"cache": {"capacity": "2/layer"}, "admission": {"policy": name}}
    assert 0 < interpreted_hits(trace, plan) != interpreted_hits(trace, {"cache": {"capacity": "2/layer"}})


def interpreted_hits(trace: Trace, tables: dict[str, object]) -> int:
    spec = cache_spec(trace.manifest.experts_per_layer, [], plan_from_dict(tables))
    return sum(int((events.kind <= 2).sum()) for _, events in iter_decisions(trace, spec, compiled=False))


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
