"""The host's time for a visit of one token and for each copy that it asks for, in microseconds.

What computes is left out: experts give their rows back, and the time of adding up as many experts is taken off. Copies
go over `CudaLink` on streams and events that do nothing, so that what is left is ours and torch's: the calls of a real
device come on top. Slabs are small; copying one takes no time that counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from engine.plan.plan import plan_from_dict
from experiments.research.benchmarks.alternating import Row

if TYPE_CHECKING:
    from torch import Tensor

    from engine.runtime import OffloadState

LAYERS, HIDDEN = 4, 32
SHAPES = {"8 experts, top-2": (8, 2), "128 experts, top-8": (128, 8)}
VISITS, REPEATS = 400, 15
VISIT_US, COPY_US = 40.0, 10.0
GATE: dict[str, str | int] = {"predictor": "gate", "count": 2, "staging": 4}


def rows() -> list[Row]:
    """For each shape a visit with everything resident, a demanded copy, and a prefetched one."""
    import torch

    torch.set_num_threads(1)
    found = []
    for name, (experts, top_k) in SHAPES.items():
        with no_device():
            visit, _ = per_visit(experts, top_k, "100%/layer", {})
            missing, copies = per_visit(experts, top_k, "50%/layer", {})
            ahead, more = per_visit(experts, top_k, "50%/layer", {"prefetch": GATE})
        demanded = (missing - visit) / copies
        found += [
            _row(f"host time of a visit, {name}, all resident", visit, VISIT_US),
            _row(f"of each copy on demand, {name}, {copies:.1f} a visit", demanded, COPY_US),
            _row(f"of each copy with prefetching, {name}, {more:.1f} a visit", (ahead - visit) / more, COPY_US),
        ]
    return found


def _row(what: str, us: float, goal: float) -> Row:
    return Row(what, f"{us:.1f} us", f"{goal:g} us", us / goal, "<= 1x")


def per_visit(experts: int, top_k: int, capacity: str, tables: dict[str, dict[str, str | int]]) -> tuple[float, float]:
    """Microseconds of a visit, the least of several runs, and how many copies it asks for on average."""
    import torch

    state, visits = served(experts, top_k, capacity, tables)
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 1, experts)).astype(np.float32))
    # Each visit's least, since other programs share the processor. The routing repeats, hence so do the decisions.
    least = np.full(VISITS, np.inf)
    asked = 0
    for repeat in range(REPEATS + 1):
        before = sum(state.bytes_loaded.values())
        for number, (hidden, index, weights) in enumerate(visits):
            layer = number % LAYERS
            if state._looks_ahead(layer):
                state._lookahead[layer] = logits[number % len(logits)]
            start = perf_counter_ns()
            state.visit(layer, hidden, index, weights)
            if repeat:
                least[number] = min(least[number], perf_counter_ns() - start)
        asked = sum(state.bytes_loaded.values()) - before
    slab = state.store.slab_bytes
    state.close()
    return float((least - adding_up(visits, experts)).mean()) / 1e3, asked / slab / VISITS


def served(
    experts: int, top_k: int, capacity: str, tables: dict[str, dict[str, str | int]]
) -> "tuple[OffloadState, list[tuple[Tensor, Tensor, Tensor]]]":
    """A small model's state whose experts compute nothing, on the link of a device; and what its visits are given."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from engine.runtime import offload, offloaded
    from engine.runtime.links.cuda_link import CudaLink
    from engine.runtime.loader import Loader

    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 64, "moe_intermediate_size": 16,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "num_experts": experts, "num_experts_per_tok": top_k,
    }  # fmt: skip
    model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    model = model.to(torch.bfloat16).eval()
    state = offloaded(offload(model, plan_from_dict({"cache": {"capacity": capacity}, **tables})))
    state.link.close()
    state.link = CudaLink(torch.device("cpu"))
    state._loader = Loader(state.store, state.pool, state.link)
    state._forward = [lambda weights, rows: rows] * LAYERS
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, experts + 1) ** 0.8
    chosen = [rng.choice(experts, top_k, replace=False, p=popularity / popularity.sum()) for _ in range(VISITS)]
    hidden, weights = torch.zeros(1, HIDDEN, dtype=torch.bfloat16), torch.full((1, top_k), 1 / top_k)
    return state, [(hidden, torch.from_numpy(ids[None]), weights) for ids in chosen]


def adding_up(visits: "list[tuple[Tensor, Tensor, Tensor]]", experts: int) -> np.ndarray:
    """Nanoseconds [visits] that adding up the experts of each takes, nothing computed and nothing decided."""
    import torch

    from engine.runtime.experts.eager import compute
    from engine.runtime.visit_routing import read_back, sort_by_expert

    device = torch.device("cpu")
    routed = [sort_by_expert(read_back(index, None, None)[0], experts, device) for _, index, _ in visits]
    least = np.full(VISITS, np.inf)
    with torch.no_grad():
        for _ in range(REPEATS):
            for number, ((hidden, _, weights), routing) in enumerate(zip(visits, routed, strict=True)):
                start = perf_counter_ns()
                compute(routing.demand, lambda expert, rows: rows, hidden, weights, routing)
                least[number] = min(least[number], perf_counter_ns() - start)
    return least


class _Nothing:
    """A stream or an event of a device on which everything is done at once."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextmanager
def no_device() -> Iterator[None]:
    """Streams and events that do nothing in place of torch's."""
    import torch

    from engine.runtime.links import cuda_link

    one = _Nothing()
    always: Callable[..., object] = lambda *_: one  # noqa: E731
    with (
        patch.multiple(cuda_link, Stream=_Nothing, Event=_Nothing),
        patch.multiple(torch.cuda, current_stream=always, stream=lambda _: nullcontext()),
        patch.object(torch.Tensor, "record_stream", always),
    ):
        yield
