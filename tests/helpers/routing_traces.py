"""Traces with gates: logits, and the choices and weights that follow from them."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.traces import make_trace
from tracekit.trace import Trace

LAYERS, EXPERTS, TOP_K = 3, 12, 4


def logits_trace(path: Path, score: str = "softmax", tokens: int = 90, seed: int = 0, **manifest: Any) -> Trace:
    """Routing as a gate of this score function makes it, a prompt of ten tokens before each nine decode steps."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(tokens, LAYERS, EXPERTS)) + rng.normal(size=(LAYERS, EXPERTS))).astype(np.float16)
    experts = np.argsort(-logits.astype(np.float64), axis=2, kind="stable")[:, :, :TOP_K]
    chosen = np.take_along_axis(logits.astype(np.float64), experts, axis=2)
    scores = np.exp(chosen) if score == "softmax" else 1 / (1 + np.exp(-chosen))
    weights = (scores / scores.sum(axis=2, keepdims=True)).astype(np.float16)
    place = np.arange(tokens)
    request, position = place // 19, place % 19
    prefill = position < 10
    step = np.cumsum(np.where(prefill, position == 0, True)) - 1
    return make_trace(
        path,
        experts,
        num_experts=EXPERTS,
        step=step,
        request=request,
        position=position,
        phase=np.where(prefill, 0, 1),
        weights=weights,
        logits=logits,
        lookahead={1: rng.normal(size=(tokens, LAYERS - 1, EXPERTS)).astype(np.float16)},
        score_function=score,
        **manifest,
    )
