"""Ranking lookahead logits: which experts a later layer's gate would pick for the tokens of one visit."""

import numpy as np
from numba import njit


def rank_lookahead(logits: np.ndarray, starts: np.ndarray, top_k: int, count: int) -> np.ndarray:
    """Ranked experts of each visit, best first.

    An expert's rank is the number of the visit's tokens that have it among their `top_k` largest logits; ties go to
    the larger logit, then to the smaller id. Comparisons only, so every executor ranks alike to the last bit.

    Args:
        logits: [tokens, experts] f16 (as traces store them); NaN counts as minus infinity.
        starts: [visits + 1] i64 rows of `logits`.

    Returns:
        i32 [visits, count] expert ids, padded with -1 after the last expert that any token picked.
    """
    ranked = np.full((len(starts) - 1, count), -1, np.int32)
    if logits.shape[1] > 0:
        _rank(logits.astype(np.float32), starts, min(top_k, logits.shape[1]), ranked)
    return ranked


def rank_scores(scores: np.ndarray, starts: np.ndarray, picks: int, count: int, least: float) -> np.ndarray:
    """As `rank_lookahead`, of a learned predictor's scores f64 [tokens, experts]: whole numbers, NaN for none.

    Each token picks the `picks` experts of the largest scores, none below `least`.
    """
    ranked = np.full((len(starts) - 1, count), -1, np.int32)
    if scores.shape[1] > 0:
        _rank(np.where(scores >= least, scores, np.nan), starts, min(picks, scores.shape[1]), ranked)
    return ranked


@njit(cache=True, nogil=True)
def _rank(logits: np.ndarray, starts: np.ndarray, top_k: int, ranked: np.ndarray) -> None:
    experts = logits.shape[1]
    votes = np.zeros(experts, np.int64)
    best = np.empty(experts, logits.dtype)
    picked = np.zeros(experts, np.bool_)
    for visit in range(len(starts) - 1):
        votes[:] = 0
        best[:] = -np.inf
        for row in range(starts[visit], starts[visit + 1]):
            picked[:] = False
            for _ in range(top_k):
                chosen = -1
                for expert in range(experts):
                    if picked[expert] or np.isnan(logits[row, expert]):
                        continue
                    if chosen < 0 or logits[row, expert] > logits[row, chosen]:
                        chosen = expert
                if chosen < 0:
                    break
                picked[chosen] = True
                votes[chosen] += 1
                best[chosen] = max(best[chosen], logits[row, chosen])
        for place in range(ranked.shape[1]):
            chosen = -1
            for expert in range(experts):
                if votes[expert] == 0:
                    continue
                if (
                    chosen < 0
                    or votes[expert] > votes[chosen]
                    or (votes[expert] == votes[chosen] and best[expert] > best[chosen])
                ):
                    chosen = expert
            if chosen < 0:
                break
            ranked[visit, place] = chosen
            votes[chosen] = 0
