"""The tiny models on an emulated CUDA device, and what they answer on the plain CPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from engine.plan.plan import Plan
from tests.engine.runtime import models
from tests.engine.runtime.models import Answer, answer

torch = pytest.importorskip("torch")
from engine.runtime import OffloadState, offload, offloaded  # noqa: E402  # needs torch

NEW_TOKENS = 3
Answers = Callable[..., Answer]


def eager(family: str = "mixtral", dtype: str = "bfloat16") -> Any:
    """A fresh model whose attention is written in plain operations: the fused one asks for a real device."""
    import copy

    model = copy.deepcopy(models.original(family, dtype))
    model.set_attn_implementation("eager")
    return model


@cache
def expected(family: str = "mixtral", dtype: str = "bfloat16") -> Answer:
    """What the model answers on the CPU, not offloaded."""
    return answer(eager(family, dtype), new_tokens=NEW_TOKENS)


def served(plan: Plan, family: str = "mixtral", dtype: str = "bfloat16", **options: Any) -> tuple[Any, OffloadState]:
    """A model offloaded to the emulated device, and its state."""
    model = offload(eager(family, dtype), plan, device="cuda", **options)
    return model, offloaded(model)


def says(model: Any) -> Answer:
    """What a model on the device answers, brought to the host."""
    found = answer(model, new_tokens=NEW_TOKENS)
    return Answer([logits.cpu() for logits in found.logits], found.tokens)
