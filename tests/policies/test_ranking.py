"""Ranking of lookahead logits against sorting."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.ranking import rank_lookahead
from tests.helpers.reference_cache import rank_by_votes


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 8), count=st.integers(1, 8))
def test_ranking_is_by_votes_then_logit_then_id(seed: int, top_k: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, experts = int(rng.integers(1, 20)), int(rng.integers(1, 8))
    # Few distinct values: ties everywhere; NaN and infinities are in recordings that overflowed.
    values = np.array([-np.inf, -1, 0, 0.5, 2, np.inf, np.nan], np.float16)
    logits = rng.choice(values, (tokens, experts), p=[0.05, 0.2, 0.3, 0.2, 0.15, 0.05, 0.05])
    starts = np.unique(np.append(rng.integers(0, tokens, 3), [0, tokens]))
    ranked = rank_lookahead(logits, starts.astype(np.int64), top_k, count)
    for visit, (first, last) in enumerate(pairwise(starts)):
        expected = rank_by_votes(logits[first:last].tolist(), top_k, count)
        assert ranked[visit].tolist() == expected + [-1] * (count - len(expected))


def test_a_token_without_usable_logits_has_no_say() -> None:
    logits = np.array([[np.nan, np.nan], [0, 1]], np.float16)
    assert rank_lookahead(logits, np.array([0, 1, 2]), 1, 2).tolist() == [[-1, -1], [1, -1]]
