"""What visits grow with is told apart, from models that differ in it; and whole steps are met in the mean."""

import numpy as np
import pytest

pytest.importorskip("torch")
from engine.runtime.calibration.visits import Visits, fit_gaps, fit_visits  # needs torch

FIXED, SORTING, EXPERT, FURTHER, COPY, LOOK = 100_000.0, 60_000.0, 25_000.0, 2_000.0, 40_000.0, 70_000.0
GAP, AHEAD = 300_000.0, 30_000.0


def made(top_k: int, looks: bool, seed: int, noise: float = 0.0, steps: int = 40, layers: int = 8) -> Visits:
    """A model's visits of known costs; the first step is a prompt of 20 tokens. `noise`: lognormal, one-sided."""
    rng = np.random.default_rng(seed)
    step = np.repeat(np.arange(steps), layers)
    decode = step > 0
    experts = np.where(decode, top_k, rng.integers(top_k, 3 * top_k, len(step))).astype(float)
    further = np.where(decode, 0, 20 * top_k - experts)
    copies = rng.integers(0, top_k + 1, len(step)).astype(float)
    looked = looks & (np.tile(np.arange(layers), steps) < layers - 1)
    duration = FIXED + SORTING * ~decode + EXPERT * experts + FURTHER * further + COPY * copies + LOOK * looked
    gap = np.full(len(step), GAP) + AHEAD * looked
    more = noise * rng.lognormal(0, 1, (2, len(step)))
    duration, gap = duration + more[0], gap + more[1]
    outside = np.full(steps, 500_000.0)
    whole = np.bincount(step, duration + gap) + outside - gap[::layers] - AHEAD * looked[::layers]
    gap[::layers] = np.nan
    return Visits(
        duration, gap, experts, further, copies, looked, decode, step, 0.0, whole, outside, np.arange(steps) > 0
    )


def test_costs_of_experts_copies_and_looking_ahead_are_told_apart() -> None:
    """One model alone has as many experts at every decode visit: only another says what one takes."""
    found = fit_visits([made(2, False, 0), made(2, True, 1), made(4, False, 2), made(4, True, 3)])
    assert found.expert == pytest.approx(EXPERT, rel=0.01)
    assert found.pair == pytest.approx(FURTHER, rel=0.01)
    assert found.copy == pytest.approx(COPY, rel=0.01)
    assert found.lookahead == pytest.approx(LOOK, rel=0.01)
    gap, ahead = fit_gaps([made(2, False, 0), made(4, True, 3)])
    assert (gap, ahead) == (pytest.approx(GAP), pytest.approx(AHEAD))


def test_what_medians_lose_of_whole_steps_is_given_back() -> None:
    """Times have a long tail above: medians of parts are below the mean, and totals would come out too short."""
    visits = [made(top_k, looks, 7 * top_k + looks, noise=60_000.0) for top_k in (2, 4) for looks in (False, True)]
    work = fit_visits(visits)
    gap, ahead = fit_gaps(visits)
    base = float(np.median(np.concatenate([(one.duration - one.explained(work))[one.decode] for one in visits])))
    rest = float(np.mean([one.step_rest(gap) for one in visits]))
    lost = [one.beyond(work, gap + base, rest, ahead) for one in visits]
    assert min(lost) > 10_000
    again = [one.beyond(work, gap + base + float(np.mean(lost)), rest, ahead) for one in visits]
    assert sum(again) == pytest.approx(0, abs=1)
