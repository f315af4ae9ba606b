"""How good a fitted predictor is on requests that it has not seen: recall and precision at m, calibration."""

import time

import numpy as np

from engine.decisions.foresight import Scores
from experiments.fit.counted import NAMES, Counted
from policies.learned.arithmetic import UNIT
from policies.learned.artefact import Artefact
from policies.learned.session import Session
from policies.learned.verdict import steps_until
from policies.ranking import rank_scores
from tracekit.demand import step_starts
from tracekit.rows import DECODE
from tracekit.trace import Trace

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
BINS = 10
STEPS = 512
VISITS = 400
Found = dict[str, float | dict[str, float]]
"""Figures by name; those at m by m, as text."""


def judge_predictor(artefact: Artefact, trace: Trace, counted: Counted | None = None) -> Found:
    """What the artefact is worth on `trace`; everything is of decode tokens, the layers ahead taken together.

    For prefetching: `recall` and `precision` at m, by m; `calibration`, the mean difference between believed and true
    probability over BINS equal bins of belief, each weighing as many experts as it holds; and, with what was `counted`
    where the predictor was fitted, `recall_popular` and `recall_markov` on the same rows. For eviction: mean absolute
    error of log2 of the steps until the next use of what was demanded, and of always saying the same.
    """
    return _judge_eviction(artefact, trace) if artefact.card.own_layer else _judge_prefetch(artefact, trace, counted)


def _judge_prefetch(artefact: Artefact, trace: Trace, counted: Counted | None) -> Found:
    card = artefact.card
    counts = [m for m in COUNTS if m <= card.num_experts]
    hits, chosen, suggested = np.zeros(len(counts), np.int64), 0, np.zeros(len(counts), np.int64)
    held, believed, true = np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS)
    simple = {} if counted is None else {name: np.zeros(len(counts), np.int64) for name in NAMES}
    starts = step_starts(trace.step)
    scores = Scores(trace, artefact)
    for first in range(0, len(starts) - 1, STEPS):
        last = min(first + STEPS, len(starts) - 1)
        found, _ = scores.piece(first, last)
        rows = slice(int(starts[first]), int(starts[last]))
        decode = trace.phase[rows] == DECODE
        experts = trace.experts_of(rows.start, rows.stop)[decode]
        for layer, given in enumerate(found):
            target = layer + card.distance
            wide = card.experts_per_layer[target]
            given = given[decode][:, :wide]
            real = ~np.isnan(given).any(axis=1)
            given, came = given[real], np.zeros((int(real.sum()), wide + 1), np.bool_)
            np.put_along_axis(came, np.minimum(experts[real, target], wide).astype(np.int64), True, axis=1)
            came = came[:, :wide]
            chosen += int(came.sum())
            for place, m in enumerate(counts):
                right, made = _right(given, came, min(m, wide))
                hits[place] += right
                suggested[place] += made
            guesses = {} if counted is None else counted.scores(layer, experts[real, layer], wide)
            for name, guess in guesses.items():
                simple[name] += [_right(guess, came, min(m, wide))[0] for m in counts]
            belief = 1 / (1 + np.exp(-given / UNIT))
            bins = np.minimum((belief * BINS).astype(np.int64), BINS - 1).ravel()
            held += np.bincount(bins, minlength=BINS)
            believed += np.bincount(bins, belief.ravel(), minlength=BINS)
            true += np.bincount(bins, came.ravel(), minlength=BINS)
    return {
        "distance": card.distance,
        "lookups": chosen,
        "recall": dict(zip(map(str, counts), (hits / max(chosen, 1)).tolist(), strict=True)),
        "precision": dict(zip(map(str, counts), (hits / np.maximum(suggested, 1)).tolist(), strict=True)),
        "calibration": float(np.abs(believed - true).sum() / max(held.sum(), 1)),
        **{
            f"recall_{name}": dict(zip(map(str, counts), (right / max(chosen, 1)).tolist(), strict=True))
            for name, right in simple.items()
        },
    }


def _right(scores: np.ndarray, came: np.ndarray, best: int) -> tuple[int, int]:
    """Of the `best` experts by scores [rows, experts], how many came, and how many there are."""
    ranked = rank_scores(scores, np.arange(len(scores) + 1), best, best, -np.inf)
    return int(np.take_along_axis(came, ranked.clip(0), axis=1)[ranked >= 0].sum()), int((ranked >= 0).sum())


def _judge_eviction(artefact: Artefact, trace: Trace) -> Found:
    from experiments.fit.examples import FAR, steps_until_next

    starts = step_starts(trace.step)
    until = np.log2(np.minimum(steps_until_next(trace, starts), FAR))
    scores = Scores(trace, artefact)
    errors, constant, lookups = 0.0, 0.0, 0
    for first in range(0, len(starts) - 1, STEPS):
        last = min(first + STEPS, len(starts) - 1)
        guessed = np.log2(np.minimum(steps_until(np.stack(scores.piece(first, last)[0], axis=1)), FAR))
        for step in range(first, last):
            if trace.phase[starts[step]] != DECODE:
                continue
            rows = trace.experts_of(int(starts[step]), int(starts[step + 1]))
            for layer in range(trace.layers):
                demanded = np.unique(rows[:, layer])
                demanded = demanded[demanded < trace.num_experts]
                truth = until[step, layer, demanded]
                errors += float(np.abs(guessed[step - first, layer, demanded] - truth).sum())
                constant += float(np.abs(np.log2(trace.num_experts / trace.top_k) - truth).sum())
                lookups += len(demanded)
    return {
        "lookups": lookups,
        "error_log2_steps": errors / max(lookups, 1),
        "error_of_the_mean_gap": constant / max(lookups, 1),
    }


def measure_visit(artefact: Artefact, trace: Trace) -> int:
    """Nanoseconds of one decode visit of a session on this machine: the median of some hundreds."""
    card, session = artefact.card, Session(artefact)
    rows = np.flatnonzero(trace.phase == DECODE)[:VISITS]
    rows = rows if len(rows) else np.arange(min(trace.tokens, VISITS))
    lookahead = trace.lookahead(card.distance) if "lookahead" in card.blocks else None
    times = []
    for row in rows.tolist():
        experts, weights = trace.experts_of(row, row + 1), trace.weights_of(row, row + 1)
        for layer in range(card.sources):
            ahead = None if lookahead is None else lookahead[row : row + 1, layer]
            own = None if weights is None else weights[:, layer]
            start = time.perf_counter_ns()
            scores = session.visit(layer, experts[:, layer], own, ahead, trace.token_id[row : row + 1])
            assert scores is not None, "a source layer has one ahead"
            if card.own_layer:
                steps_until(scores)
            else:
                rank_scores(scores, np.array([0, 1]), card.top_k, card.top_k, -np.inf)
            times.append(time.perf_counter_ns() - start)
        if len(times) > VISITS:
            break
    return int(np.median(times)) if times else 0
