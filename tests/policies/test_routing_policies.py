"""Routing policies token by token: against the obvious implementation, whatever the gate, and what all of them keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache_spec import CacheSpec
from policies.registry import ROUTING
from policies.rerouting import Rerouter, RoutingSpec
from tests.helpers.reference_routing import RULES
from tracekit.rows import UNUSED

EXPERTS = 8
Token = tuple[list[int], list[float], list[float], list[int]]
"""Choice, weights and logits in half precision, and what is there."""


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    """Any gate's: its choice need not be the top of its logits, nor do weights follow from them; ties are common."""
    top_k = draw(st.integers(1, 4))
    ids = draw(st.lists(st.integers(0, EXPERTS - 1), min_size=top_k, max_size=top_k, unique=True))
    halves = st.integers(-8, 8).map(lambda number: number / 4)
    logits = draw(st.lists(halves, min_size=EXPERTS, max_size=EXPERTS))
    weights = draw(st.lists(st.integers(1, 12).map(lambda n: n / 16), min_size=top_k, max_size=top_k))
    there = draw(st.lists(st.integers(0, EXPERTS - 1), unique=True))
    return ids, weights, logits, there


def rewritten(policy: str, parameters: dict[str, float | bool], token: Token) -> tuple[list[int], list[float]]:
    ids, weights, logits, there = token
    held = np.zeros(EXPERTS, np.uint8)
    held[there] = 1
    spec = RoutingSpec((EXPERTS,), policy, parameters, "softmax")
    cache = CacheSpec(1, EXPERTS, (1,), np.ones(EXPERTS, np.int64))
    new, heavy = Rerouter(spec, cache).visit(
        0,
        held,
        np.array([ids], np.uint16),
        np.array([weights], np.float16),
        np.array([logits], np.float16),
    )
    return new[0].tolist(), heavy[0].tolist()


STRENGTHS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


@pytest.mark.parametrize("policy", list(RULES))
@settings(max_examples=80, deadline=None)
@given(token=tokens(), strength=STRENGTHS, keep=st.integers(0, 2), again=st.booleans())
def test_as_the_obvious_implementation(policy: str, token: Token, strength: float, keep: int, again: bool) -> None:
    parameters: dict[str, float | bool] = {"share": strength, "renormalise": again}
    if policy in ("cache-prior", "substitute"):
        parameters = {"strength": strength}
    if policy != "adaptive-k":
        parameters["keep"] = keep
    ids, weights, logits, there = token
    expected = RULES[policy](ids, weights, logits, set(there), parameters, "softmax")
    assert rewritten(policy, parameters, token) == (list(expected[0]), list(expected[1]))


@pytest.mark.parametrize("policy", [name for name in ROUTING if name not in ("none", "prune")])
@settings(max_examples=40, deadline=None)
@given(token=tokens(), strength=STRENGTHS)
def test_what_all_keep(policy: str, token: Token, strength: float) -> None:
    name = "strength" if policy in ("cache-prior", "substitute") else "share"
    ids, weights = rewritten(policy, {name: strength}, token)
    left = [one for one in ids if one != UNUSED]
    assert len(set(left)) == len(left) >= 1
    assert sum(weights) == pytest.approx(sum(token[1]))  # the layer's output keeps its size
    assert all(weight == 0 for one, weight in zip(ids, weights, strict=True) if one == UNUSED)
    if policy in ("cache-prior", "substitute"):
        assert len(left) == len(token[0])
        held = set(token[3])
        # Whoever came is there, whoever went was not; with everything there, or nothing, all stay.
        assert set(left) - set(token[0]) <= held and not (set(token[0]) - set(left)) & held
    if strength == (1.0 if policy == "adaptive-k" else 0.0):
        assert (ids, weights) == (token[0], token[1])


@pytest.mark.parametrize("policy", ["cache-prior", "substitute"])
@settings(max_examples=40, deadline=None)
@given(token=tokens())
def test_stronger_misses_no_more(policy: str, token: Token) -> None:
    missing = [
        len(set(rewritten(policy, {"strength": strength}, token)[0]) - set(token[3]))
        for strength in (0.0, 0.1, 0.25, 0.5, 1.0)
    ]
    assert missing == sorted(missing, reverse=True)
