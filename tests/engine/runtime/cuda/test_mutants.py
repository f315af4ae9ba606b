"""The emulated device speaks up when any one call is missing that orders the work of streams and threads."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runtime.cuda.models import SIZE, expected, on_stream, pinned, says, served, started
from tests.engine.runtime.models import plan_of, same

torch = pytest.importorskip("torch")
from engine.runtime import offload_state  # noqa: E402  # needs torch
from engine.runtime.links import cuda_link, queued_link  # noqa: E402
from engine.runtime.links.cuda_link import CudaLink  # noqa: E402
from engine.runtime.links.queued_link import Progress  # noqa: E402
from engine.runtime.storage import host_store  # noqa: E402
from tests.helpers.emulated_cuda.device import SCHEDULES, EmulatedCuda  # noqa: E402
from tests.helpers.emulated_cuda.mutants import Mutant, mutants  # noqa: E402

MODULES = (cuda_link, queued_link, host_store, offload_state)
DOCUMENT = Path(__file__).parents[4] / "docs" / "engine.md"
PLAN = plan_of("1/layer", prefetch={"predictor": "gate", "count": 2, "staging": 2})
DEVICE = torch.device("cuda", 0)


def computing(device: EmulatedCuda, folder: Path) -> bool:
    model, state = served(PLAN)
    with state:
        return same(says(model, 1), expected(new_tokens=1))


def disk(device: EmulatedCuda, folder: Path) -> bool:
    model, state = served(PLAN, host="disk", slabs=folder / "slabs")
    with state:
        return same(says(model, 1), expected(new_tokens=1))


def target_dropped(device: EmulatedCuda, folder: Path) -> bool:
    """Device memory goes back to the allocator while a copy into it runs."""
    link = CudaLink(DEVICE)
    started(link, pinned(0), torch.empty(SIZE, dtype=torch.uint8, device=DEVICE))
    gc.collect()
    link.close()
    return True


def store_dropped(device: EmulatedCuda, folder: Path) -> bool:
    """Host memory is given back while a copy from it runs."""
    state = served(PLAN)[1]
    link = CudaLink(DEVICE)
    started(link, state.store.slab(0), state.pool.slab(0, state.store.slab_bytes))
    state.store.close()
    state.close()
    link.close()
    return True


def source_used_again(device: EmulatedCuda, folder: Path) -> bool:
    """A closed link copies no more: what it copied from is the caller's again."""
    link = CudaLink(DEVICE)
    source = pinned(1)
    target = torch.empty(SIZE, dtype=torch.uint8, device=DEVICE)
    started(link, source, target)
    link.close()
    source.fill_(0)
    return bool((target == 1).all())


class Unread:
    """A slab that is read when it is said to be: zeros."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def numel(self) -> int:
        return SIZE

    def read_into(self, target: Any) -> None:
        assert self.go.wait(10)
        target.fill_(0)


def waited_for_while_read(device: EmulatedCuda, folder: Path) -> bool:
    """Whoever asks waits for a slab that is still being read."""
    link, slab = CudaLink(DEVICE), Unread()
    target = torch.ones(SIZE, dtype=torch.uint8, device=DEVICE)
    ticket = link.copy(slab, target, demand=True)
    threading.Timer(0.05, slab.go.set).start()
    try:
        link.wait(ticket)
        return target.tolist() == [0] * SIZE
    finally:
        link.close()


def place_changes_hands(device: EmulatedCuda, folder: Path) -> bool:
    """While the thread is about to hand over a prefetch, it is given up and its place is another expert's."""
    link, late = CudaLink(DEVICE), Unread()
    target = torch.empty(SIZE, dtype=torch.uint8, device=DEVICE)
    given_up = link.copy(late, target, demand=False)
    with link._queue.changed:
        assert link._queue.changed.wait_for(lambda: given_up.progress is Progress.STARTED, 10)
    assert link.cancel(given_up) == 0
    wanted = link.copy(pinned(1), target, demand=True)
    late.go.set()
    on_stream(link, given_up)
    link.wait(wanted)
    found = target.tolist()
    link.close()
    return found == [1] * SIZE


Exercise = Callable[[EmulatedCuda, Path], bool]
"""(device, an empty folder) -> whether the bits are right"""
EXERCISES: dict[str, Exercise] = {
    "a target is dropped while it is copied to": target_dropped,
    "a link is closed and its source used again": source_used_again,
    "a slab is waited for while it is read": waited_for_while_read,
    "a model computes, experts in memory": computing,
    "a model computes, experts on disk": disk,
    "experts are given back while one is copied": store_dropped,
    "a place changes hands while the thread reads for it": place_changes_hands,
}


def wrong(exercise: Exercise, schedule: str, folder: Path) -> bool:
    """Whether a race was seen, or the bits were others."""
    with EmulatedCuda(schedule, strict=False) as device:
        right = exercise(device, folder)
        gc.collect()
    return bool(device.races) or not right


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=[one.__name__ for one in EXERCISES.values()])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_every_call_there_is_nothing_to_say(schedule: str, exercise: Exercise, tmp_path: Path) -> None:
    assert not wrong(exercise, schedule, tmp_path)


def first_to_speak(mutant: Mutant, folder: Path) -> str:
    """The exercise under which the mutant is found out."""
    for number, (name, exercise) in enumerate(EXERCISES.items()):
        for schedule in SCHEDULES:
            place = folder / f"{number}-{schedule}"
            place.mkdir(parents=True)
            with mutant.alive():
                try:
                    found = wrong(exercise, schedule, place)
                except AssertionError:  # of the engine's own, that it has been deceived
                    found = True
            if found:
                return name
    return "nothing"


def test_without_one_call_it_speaks_up_as_the_document_says(tmp_path: Path) -> None:
    """The table in docs/engine.md is what this test finds; what nothing finds is explained there."""
    found = [one for module in MODULES for one in mutants(module)]
    rows = [f"| `{one}` | {first_to_speak(one, tmp_path / str(number))} |" for number, one in enumerate(found)]
    table = "\n".join(["| taken out | speaks up when |", "|---|---|", *rows])
    assert table in DOCUMENT.read_text(), f"docs/engine.md has another table than this one:\n{table}"
