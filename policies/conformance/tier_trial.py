"""A rule of precision tiers on trial: asked watched, twice, and with another future. Rules are never compiled."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from policies.cache import allocated
from policies.conformance.guard import Violation, check_fields, explain, read_only
from policies.conformance.report import FAIL, NOT_RUN, PASS, RULES, Outcome
from policies.fields import Layout
from policies.precision.base import TierRule
from policies.registry import hook_problem

SCENARIOS = 40
Question = tuple[int, float, int, int, bool, bool]
"""What `low` is asked: expert, share, rank, popularity, high_there, low_there."""


@dataclass
class TierTrial:
    """One rule on trial. `trying` is told what it is asked before it is, so that a hang can be described."""

    name: str
    policy: type[TierRule]
    trying: Callable[..., object]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def interpreted(self) -> Iterator[Outcome]:
        """The outcome of every rule, in order."""
        if problem := hook_problem(self.policy, TierRule):
            self.outcomes["signatures"] = Outcome("signatures", FAIL, problem)
        else:
            for seed in range(SCENARIOS):
                self._try(questions(seed))
        broken = bool(self.outcomes)
        for rule in RULES["precision"]:
            if rule in self.outcomes:
                yield self.outcomes[rule]
            elif broken and rule != "signatures":  # a run that ends early shows nothing of the others
                yield Outcome(rule, NOT_RUN, "mend the other rules first")
            else:
                yield Outcome(rule, PASS)

    def compiled(self, digest: str) -> Iterator[Outcome]:
        """In another process: whether it answers as there."""
        if self.digest() != digest:
            message = "another process answers differently: no clock, no unseeded or hashed numbers"
            yield Outcome("deterministic", FAIL, message)

    def digest(self) -> str:
        """A digest of all answers."""
        answers = [self._answers(questions(seed)) for seed in range(SCENARIOS)]
        return hashlib.sha256(repr(answers).encode()).hexdigest()

    def _try(self, asked: list[Question]) -> None:
        self.trying(f"low{asked[0]} and {len(asked) - 1} more")
        try:
            found = self._answers(asked, watched=True)
        except Violation as violation:
            self.outcomes.setdefault(violation.rule, Outcome(violation.rule, FAIL, " ".join(str(violation).split())))
            return
        half = len(asked) // 2
        if self._answers(asked) != found:
            self._fail("deterministic", "two runs differ: no clock, no state outside the declared arrays", asked)
        elif self._answers(asked[:half] + asked[half:][::-1])[:half] != found[:half]:
            self._fail("no-peeking", f"what comes after question {half} changed earlier answers", asked)

    def _answers(self, asked: list[Question], *, watched: bool = False) -> list[bool]:
        layout = Layout(2, 4, 1, 1, np.ones(8, np.int64), np.zeros(0, np.int64))
        rule = self.policy.interpreted(allocated(self.policy, layout, None))
        own = vars(rule)
        if watched:
            own["size"], own["last_use"] = read_only(own["size"]), read_only(own["last_use"])
        expected: dict[str, object] = dict(own)
        answers = []
        for question in asked:
            if not watched:
                answers.append(bool(rule.low(*question)))
                continue
            try:
                answer = rule.low(*question)
            except Exception as error:
                raise explain(error, "low", rule) from None
            check_fields(rule, "low", expected)
            if not isinstance(answer, bool | np.bool_):
                raise Violation("answers", f"low{question} is {answer!r}: return True or False")
            answers.append(bool(answer))
        return answers

    def _fail(self, rule: str, message: str, asked: list[Question]) -> None:
        self.outcomes.setdefault(rule, Outcome(rule, FAIL, f"{message}; first asked low{asked[0]}"))


def questions(seed: int) -> list[Question]:
    """What a rule is asked about a model of two layers of four experts: the same each time, shares on a coarse grid."""
    rng = np.random.default_rng([20260105, seed])
    return [
        (
            int(rng.integers(8)),
            float(rng.integers(17)) / 16,
            int(rng.integers(4)),
            int(rng.integers(-1, 4)),
            bool(rng.integers(2)),
            bool(rng.integers(2)),
        )
        for _ in range(2 + seed)
    ]
