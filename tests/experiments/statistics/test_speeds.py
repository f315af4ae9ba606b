"""The interval of a speed over requests: against the same by hand, steps that do not count left out."""

from pathlib import Path

import numpy as np
import pytest

from experiments.statistics.comparison import rate_intervals
from experiments.statistics.request_shares import RequestShares
from experiments.statistics.speeds import interval_words, speed_interval
from tests.helpers.traces import make_trace


def test_it_is_over_requests_and_leaves_out_what_warms_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    requests, tokens = 20, 15
    request = np.repeat(np.arange(requests), tokens)
    experts = rng.integers(0, 4, (requests * tokens, 2, 1))
    trace = make_trace(tmp_path / "t.trace", experts, num_experts=4, request=request)
    shares = RequestShares.of(trace)
    step_ns = rng.integers(10**6, 10**7, len(shares.steps.phase))
    found = speed_interval(shares, step_ns, 2.0)
    own = step_ns.reshape(requests, tokens)
    assert found is not None
    by_hand = rate_intervals(np.full(requests, tokens), 2.0 * own.sum(axis=1)[None])
    assert by_hand is not None and found == pytest.approx(tuple(by_hand[0]))
    speed = requests * tokens / (2 * step_ns.sum() / 1e9)
    assert found[0] < speed < found[1]
    warm = speed_interval(shares, step_ns, 2.0, warm_up=tokens + 5)
    counted = np.array([tokens - 5] + [tokens] * (requests - 2))
    times = np.array([own[1, 5:].sum(), *own[2:].sum(axis=1)])
    by_hand = rate_intervals(counted, 2.0 * times[None])
    assert by_hand is not None and warm == pytest.approx(tuple(by_hand[0]))
    assert speed_interval(shares, step_ns, 1.0, warm_up=(requests - 2) * tokens) is None, "two requests tell nothing"


def test_it_is_said_or_it_is_said_why_not() -> None:
    assert interval_words((1.25, 2.0), 2) == "[1.25, 2.00]"
    assert "too few requests" in interval_words(None)
