"""The rules of the contract, and how a policy fared."""

from dataclasses import asdict, dataclass
from typing import Any

PASS, FAIL, EXEMPT, NOT_RUN = "pass", "fail", "exempt", "not run"

COMMON = {
    "signatures": "hooks are named and called as the base class says",
    "terminates": "every hook returns",
    "bounds": "every index lies inside its array",
    "runs": "no hook raises an error or returns what is no number",
    "state": "only declared arrays are written, element by element",
}
OF_EVICTION = {
    "victims": "a victim is a resident of the group that needs room, or -1",
    "demand": "what a visit demands is not evicted by it",
    "order": "the victim of an Ordered policy is whom asking every resident would find",
}
OF_PREFETCH = {"suggestions": "suggestions are experts of the target layer, no more than there is room for"}
OF_ROUTING = {"choices": "what is left is experts of the layer, each once, with weights that are numbers"}
OF_PRECISION = {"answers": "what it says is True or False"}
DECISIONS = {
    "capacity": "what is resident fits the capacity, in slots and in bytes",
    "deterministic": "the same routing gives the same decisions, in another process too",
    "no-peeking": "what comes later changes no earlier decision",
    "compiled": "compiled code decides as the interpreted policy does",
}
OF_ADMISSION = {"answers": "admits() says True or False"}
RULES = {
    "eviction": {**COMMON, **OF_EVICTION, **DECISIONS},
    "prefetch": {**COMMON, **OF_PREFETCH, **DECISIONS},
    "admission": {**COMMON, **OF_ADMISSION, **DECISIONS},
    "precision": {
        **COMMON,
        **OF_PRECISION,
        **{rule: DECISIONS[rule] for rule in ("deterministic", "no-peeking")},
    },
    "routing": {**COMMON, **OF_ROUTING, **{rule: text for rule, text in DECISIONS.items() if rule != "capacity"}},
}
"""What each rule says, by kind of policy, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rule: `status` is pass, fail, exempt or not run; `message` is one line, empty for pass."""

    rule: str
    status: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """How the policy `name` of a kind (of `RULES`) fared, rule by rule."""

    name: str
    kind: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed or does not apply."""
        return all(outcome.status in (PASS, EXEMPT) for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "policy": self.name,
            "kind": self.kind,
            "passed": self.passed,
            "rules": [{**asdict(outcome), "says": RULES[self.kind][outcome.rule]} for outcome in self.outcomes],
        }
