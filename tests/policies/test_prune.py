"""`prune` token by token: against the obvious implementation, and the top k of what is left."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache_spec import CacheSpec
from policies.conformance.routing_trial import RoutingTrial
from policies.registry import routing_policy
from policies.rerouting import Rerouter, RoutingSpec
from tests.helpers.reference_routing import prune
from tests.policies.test_routing_policies import EXPERTS, Token, tokens
from tracekit.errors import PlanError
from tracekit.rows import UNUSED

PLACES = st.permutations(range(EXPERTS))


def pruned(
    token: Token, places: list[int], keep: int, score: str = "softmax", layer: int = 0
) -> tuple[list[int], list[float]]:
    """What is made of a token by a model of two layers, the other of which would keep other experts."""
    ids, weights, logits, _ = token
    both = [places[::-1], places[::-1]]
    both[layer] = places
    spec = RoutingSpec((EXPERTS, EXPERTS), "prune", {"keep": keep}, score, np.array(both).ravel())
    cache = CacheSpec(2, EXPERTS, (1, 1), np.ones(2 * EXPERTS, np.int64))
    new, heavy = Rerouter(spec, cache).visit(
        layer,
        np.zeros(EXPERTS, np.uint8),
        np.array([ids], np.uint16),
        np.array([weights], np.float16),
        np.array([logits], np.float16),
    )
    return new[0].tolist(), heavy[0].tolist()


@settings(max_examples=100, deadline=None)
@given(tokens(), PLACES, st.integers(1, EXPERTS + 1), st.sampled_from(["softmax", "sigmoid"]), st.integers(0, 1))
def test_as_the_obvious_implementation(token: Token, places: list[int], keep: int, score: str, layer: int) -> None:
    left = {expert for expert in range(EXPERTS) if places[expert] < keep}
    wanted = prune(*token[:3], left, {}, score)
    assert pruned(token, places, keep, score, layer) == (list(wanted[0]), list(wanted[1]))


@settings(max_examples=60, deadline=None)
@given(tokens(), PLACES, st.integers(1, EXPERTS))
def test_a_top_k_stays_one(token: Token, places: list[int], keep: int) -> None:
    """Of a gate that takes the largest logits, what is left is the largest of those that are not masked."""
    _, weights, logits, there = token
    order = sorted(range(EXPERTS), key=lambda expert: (-logits[expert], expert))
    ids, heavy = pruned((order[: len(weights)], weights, logits, there), places, keep)
    left = [expert for expert in order if places[expert] < keep][: len(weights)]
    assert {one for one in ids if one != UNUSED} == set(left)
    assert ids.count(UNUSED) == len(weights) - len(left)
    assert sum(heavy) == pytest.approx(sum(weights))
    if left == order[: len(weights)]:
        assert heavy == weights


def test_a_user_s_own_is_told_places_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import tracekit as tk\n\nclass Mine(tk.RoutingPolicy):\n    reads = 'weights'\n    needs_profile = True\n\n"
        "    def rewrite(self, layer, ids, weights, logits, scores, present):\n"
        "        if ids[0] != tk.UNUSED and self.place[layer * self.experts + ids[0]] > 1:\n"
        "            ids[0] = tk.UNUSED\n            weights[0] = 0.0\n"
    )
    name = f"{path}:Mine"
    outcomes = list(RoutingTrial(name, routing_policy(name), lambda *_: None).interpreted())
    assert {one.status for one in outcomes} == {"pass"}
    path.write_text(path.read_text().replace("> 1:", "> 1:\n            self.place[0] = 0"))
    outcomes = list(RoutingTrial(name, routing_policy(name), lambda *_: None).interpreted())
    assert next(one for one in outcomes if one.status == "fail").rule == "state"


def test_without_a_profile_it_is_refused() -> None:
    cache = CacheSpec(1, EXPERTS, (1,), np.ones(EXPERTS, np.int64))
    with pytest.raises(PlanError, match=r"needs routing\.profile"):
        Rerouter(RoutingSpec((EXPERTS,), "prune", None, "softmax"), cache)
