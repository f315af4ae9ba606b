"""The rewriting of one visit's choices, token by token: interpreted or compiled, as `policies.decide` is."""

import math

import numpy as np

from policies.routing.base import RoutingPolicy
from tracekit.rows import UNUSED

SCORES = {"softmax": 1, "sigmoid": 2}
"""Score functions of gates, as numbers."""

FINE, UNKNOWN, REPEATED, NO_NUMBER = 0, 1, 2, 3
"""What a policy may leave behind: a choice; an expert that there is not; one that stands there twice; a weight that is
no finite number."""


def rewrite_visit(
    policy: RoutingPolicy,
    layer: int,
    score: int,
    looks: bool,
    ids: np.ndarray,
    weights: np.ndarray,
    logits: np.ndarray,
    scores: np.ndarray,
    present: np.ndarray,
) -> int:
    """Let `policy` rewrite the choices of a visit's tokens, in order; returns FINE or the first fault.

    `looks`: it may see what is there. ids i64 and weights f64 [tokens, k]; logits f64 [tokens, experts or 0]; scores
    f64 [experts or 0] is scratch; present u8 [experts]: 1 for what is there, and 2 is written for what a token was
    given beside it.
    """
    for token in range(len(ids)):
        row = ids[token]
        first = -1
        for i in range(len(row)):
            if row[i] != UNUSED:
                first = i
                break
        if first < 0:
            continue  # padding
        if len(scores) > 0:
            find_scores(row, weights[token], logits[token], scores, score)
        policy.rewrite(layer, row, weights[token], logits[token], scores, present)
        for i in range(len(row)):
            expert = row[i]
            if expert == UNUSED:
                continue
            if expert < 0 or expert >= len(present):
                return UNKNOWN
            if not math.isfinite(weights[token, i]):
                return NO_NUMBER
            for j in range(i):
                if row[j] == expert:
                    return REPEATED
            if looks and present[expert] == 0:
                present[expert] = 2
    return FINE


def find_scores(ids: np.ndarray, weights: np.ndarray, logits: np.ndarray, scores: np.ndarray, score: int) -> None:
    """What each expert would weigh: its score, times what makes the scores of those chosen add up to their weights.

    Of those chosen it is their weight, to the bit.
    """
    highest = -np.inf
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            highest = max(highest, logits[ids[i]])
    total = 0.0
    whole = 0.0
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            total += weights[i]
            whole += score_of(logits[ids[i]], highest, score)
    factor = total / whole if whole > 0.0 else 0.0
    for expert in range(len(scores)):
        scores[expert] = factor * score_of(logits[expert], highest, score)
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            scores[ids[i]] = weights[i]


def score_of(logit: float, highest: float, score: int) -> float:
    """softmax up to a factor (1), or sigmoid (2), of a logit."""
    if score == 1:
        return math.exp(min(logit - highest, 700.0))
    return 1.0 / (1.0 + math.exp(min(-logit, 700.0)))
