"""What fails while a model runs is an error where it is called, at once; and `reset` makes the model usable again."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from engine.runtime import offload, offloaded
from engine.runtime.links.queued_link import QueuedLink, Ticket
from tests.engine.runtime.models import MakeModel, Reference, answer, plan_of, same
from tracekit.errors import ModelError

torch = pytest.importorskip("torch")
offloading = import_module("engine.runtime.offload")  # the package's attribute of that name is the function

PATIENCE_S = 5.0


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A test that hangs is ended by SIGALRM, whose default would end pytest: so it raises instead."""

    def bark(*_: object) -> None:
        raise TimeoutError("the engine hangs")

    before = signal.signal(signal.SIGALRM, bark)
    # A shell has what it starts in the background ignore SIGINT, pytest and all.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, before)


class Stuck(QueuedLink):
    """A link whose copies wait until they are let go, for at most `timeout_s`."""

    def __init__(self, *_: object) -> None:
        self.go = threading.Event()
        self.go.set()
        super().__init__(self.move, timeout_s=1.0)

    def move(self, ticket: Ticket) -> None:
        self.go.wait(30)
        ticket.target.copy_(ticket.source)  # type: ignore[arg-type]

    def close(self) -> None:
        self.go.set()
        super().close()


@pytest.mark.parametrize("prefetch", ["none", "gate"])
def test_an_interrupt_while_a_copy_runs(
    prefetch: str, make_model: MakeModel, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "ThreadLink", Stuck)
    model = offload(make_model(), plan_of(prefetch={"predictor": prefetch}))
    with offloaded(model) as state:
        link: Any = state.link
        link.timeout_s = 30.0
        link.go.clear()
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            answer(model)
        assert time.monotonic() - start < PATIENCE_S
        link.go.set()
        with pytest.raises(ModelError, match=r"cannot run: a visit failed \(KeyboardInterrupt"):
            answer(model)
        state.reset()
        assert same(answer(model), reference())


def test_a_copy_that_never_ends(make_model: MakeModel, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "ThreadLink", Stuck)
    model = offload(make_model(), plan_of())
    with offloaded(model) as state:
        link: Any = state.link
        link.go.clear()
        start = time.monotonic()
        with pytest.raises(ModelError, match="copy of an expert hangs: no copy has finished for 1 s"):
            answer(model)
        assert time.monotonic() - start < PATIENCE_S
        link.go.set()
        state.reset()
        assert same(answer(model), reference())


@pytest.mark.parametrize("layer", [0, 2])
def test_memory_that_runs_out_within_an_expert(layer: int, make_model: MakeModel, reference: Reference) -> None:
    model = offload(make_model(), plan_of(prefetch={"predictor": "gate"}))
    with offloaded(model) as state:
        forward, calls = state._forward[layer], []

        def fail_once(weights: Any, rows: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("out of memory")
            return forward(weights, rows)

        state._forward[layer] = fail_once
        with pytest.raises(torch.OutOfMemoryError):
            answer(model)
        with pytest.raises(ModelError, match=r"cannot run: .*OutOfMemoryError.* call offloaded\(model\).reset\(\)"):
            answer(model)
        state.reset()
        assert same(answer(model), reference())


def test_closing_while_copies_wait(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued is given up, what runs is waited for, and the thread ends."""
    monkeypatch.setattr(offloading, "ThreadLink", Stuck)
    model = offload(make_model(), plan_of(prefetch={"predictor": "gate"}))
    state = offloaded(model)
    answer(model, new_tokens=2)
    link: Any = state.link
    link.go.clear()
    for key in range(3):
        link.copy(state.store.slab(key), state.pool.slab(key, state.store.slab_bytes), demand=False)
    start = time.monotonic()
    state.close()
    assert time.monotonic() - start < PATIENCE_S
    assert not link._thread.is_alive()
    with pytest.raises(ModelError, match="it has been closed"):
        answer(model)
