"""The emulated device speaks up when any one call is missing that orders the work of streams and threads."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.runtime.cuda.models import expected, says, served
from tests.engine.runtime.models import plan_of, same

torch = pytest.importorskip("torch")
from engine.runtime import offload_state  # noqa: E402  # needs torch
from engine.runtime.links import cuda_link, queued_link  # noqa: E402
from engine.runtime.links.cuda_link import CudaLink  # noqa: E402
from engine.runtime.links.queued_link import Progress, Ticket  # noqa: E402
from engine.runtime.storage import host_store  # noqa: E402
from tests.helpers.emulated_cuda.device import EARLY, LATE, EmulatedCuda  # noqa: E402
from tests.helpers.emulated_cuda.mutants import Mutant, mutants  # noqa: E402

MODULES = (cuda_link, queued_link, host_store, offload_state)
DOCUMENT = Path(__file__).parents[4] / "docs" / "engine.md"
SIZE = 64
PLAN = plan_of("1/layer", prefetch={"predictor": "gate", "count": 2, "staging": 2})
DEVICE = torch.device("cuda", 0)


def started(link: CudaLink, source: Any, target: Any) -> None:
    """Have a copy put on the link's stream; nobody waits until it has landed."""
    ticket: Ticket = link.copy(source, target, demand=True)
    queue = link._queue
    with queue.changed:
        queue.changed.wait_for(lambda: ticket.progress is Progress.DONE, 10)


def computing(device: EmulatedCuda, folder: Path) -> bool:
    model, state = served(PLAN)
    with state:
        return same(says(model), expected())


def disk(device: EmulatedCuda, folder: Path) -> bool:
    model, state = served(PLAN, host="disk", slabs=folder / "slabs")
    with state:
        return same(says(model), expected())


def target_dropped(device: EmulatedCuda, folder: Path) -> bool:
    """Device memory goes back to the allocator while a copy into it runs."""
    link = CudaLink(DEVICE)
    started(link, torch.zeros(SIZE, dtype=torch.uint8, pin_memory=True), torch.empty(SIZE, dtype=torch.uint8, device=DEVICE))
    gc.collect()
    link.close()
    return True


def store_dropped(device: EmulatedCuda, folder: Path) -> bool:
    """Host memory is given back while a copy from it runs."""
    model, state = served(PLAN)
    link = CudaLink(DEVICE)
    started(link, state.store.slab(0), state.pool.slab(0, state.store.slab_bytes))
    state.store.close()
    state.close()
    link.close()
    return True


def source_used_again(device: EmulatedCuda, folder: Path) -> bool:
    """A closed link copies no more: what it copied from is the caller's again."""
    link = CudaLink(DEVICE)
    source = torch.ones(SIZE, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(SIZE, dtype=torch.uint8, device=DEVICE)
    started(link, source, target)
    link.close()
    source.fill_(0)
    return bool((target == 1).all())


EXERCISES: tuple[Callable[[EmulatedCuda, Path], bool], ...] = (
    computing,
    disk,
    target_dropped,
    store_dropped,
    source_used_again,
)


def complaints(exercise: Callable[[EmulatedCuda, Path], bool], schedule: str, folder: Path) -> set[str]:
    """How a wrong order shows: in a race, in the bits, or in both."""
    with EmulatedCuda(schedule, strict=False) as device:
        right = exercise(device, folder)
        gc.collect()
    return {*(("race",) if device.races else ()), *(() if right else ("bits",))}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.__name__)
@pytest.mark.parametrize("schedule", [EARLY, LATE])
def test_with_every_call_there_is_nothing_to_say(schedule: str, exercise: Any, tmp_path: Path) -> None:
    assert complaints(exercise, schedule, tmp_path) == set()


def row(mutant: Mutant, folder: Path) -> str:
    """A line of the table: what was taken out, and what spoke up under which exercise."""
    cells = []
    for number, exercise in enumerate(EXERCISES):
        found: set[str] = set()
        for schedule in (EARLY, LATE):
            place = folder / f"{number}-{schedule}"
            place.mkdir()
            with mutant.alive():
                found |= complaints(exercise, schedule, place)
        cells.append(", ".join(sorted(found)) or "-")
    return f"| `{mutant}` | {' | '.join(cells)} |"


def test_without_one_call_it_speaks_up_as_the_document_says(tmp_path: Path) -> None:
    """The table in docs/engine.md is what this test finds; a line without a word is explained there."""
    made = []
    for number, mutant in enumerate(one for module in MODULES for one in mutants(module)):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(row(mutant, folder))
    titles = " | ".join(exercise.__name__.replace("_", " ") for exercise in EXERCISES)
    table = "\n".join([f"| taken out | {titles} |", "|---|" + "---|" * len(EXERCISES), *made])
    assert table in DOCUMENT.read_text(), f"docs/engine.md has another table than this one:\n{table}"
