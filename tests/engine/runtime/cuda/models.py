"""The tiny models on an emulated CUDA device, and what they answer on the plain CPU."""

import copy
from functools import cache
from typing import Any

import pytest

from engine.plan.plan import Plan
from tests.engine.runtime import models
from tests.engine.runtime.models import Answer, answer

torch = pytest.importorskip("torch")
from engine.runtime import OffloadState, offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.links.cuda_link import CudaLink  # noqa: E402
from engine.runtime.links.queued_link import Progress, Ticket  # noqa: E402

NEW_TOKENS = 3
SIZE = 64


def eager(family: str = "mixtral", dtype: str = "bfloat16") -> Any:
    """A fresh model whose attention is written in plain operations: the fused one asks for a real device."""

    model = copy.deepcopy(models.original(family, dtype))
    model.set_attn_implementation("eager")
    return model


@cache
def expected(family: str = "mixtral", dtype: str = "bfloat16", new_tokens: int = NEW_TOKENS) -> Answer:
    """What the model answers on the CPU, not offloaded."""
    return answer(eager(family, dtype), new_tokens=new_tokens)


def served(plan: Plan, family: str = "mixtral", dtype: str = "bfloat16", **options: Any) -> tuple[Any, OffloadState]:
    """A model offloaded to the emulated device, and its state."""
    model = offload(eager(family, dtype), plan, device="cuda", **options)
    return model, offloaded(model)


def pinned(value: int) -> Any:
    """A slab in pinned memory, u8 [SIZE]."""
    return torch.empty(SIZE, dtype=torch.uint8, pin_memory=True).fill_(value)


def started(link: CudaLink, source: Any, target: Any) -> Ticket:
    """A copy that is on the link's stream; nobody waits until it has landed."""
    ticket = link.copy(source, target, demand=True)
    on_stream(link, ticket)
    return ticket


def on_stream(link: CudaLink, ticket: Ticket) -> None:
    """Wait until the link's thread is done with a ticket."""
    with link._queue.changed:
        assert link._queue.changed.wait_for(lambda: ticket.progress >= Progress.DONE, 10)


def says(model: Any, new_tokens: int = NEW_TOKENS) -> Answer:
    """What a model on the device answers, brought to the host."""
    found = answer(model, new_tokens=new_tokens)
    return Answer([logits.cpu() for logits in found.logits], found.tokens)
