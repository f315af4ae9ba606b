"""What fails, is dropped or ends while copies run: nothing is overwritten, given back or lost under them."""

import gc
import subprocess
import sys
from typing import Any

import pytest

from tests.engine.runtime.cuda.models import SIZE, eager, expected, says, served, started
from tests.engine.runtime.models import plan_of, same
from tests.engine.runtime.test_loader import KeyStore
from tracekit.errors import HardwareError, ModelError

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
from engine.runtime import offload  # noqa: E402  # needs torch
from engine.runtime.links.cuda_link import CudaLink  # noqa: E402
from engine.runtime.pool import SlotPool  # noqa: E402
from engine.runtime.storage.slab_files import read_index  # noqa: E402
from tests.helpers.emulated_cuda.device import SCHEDULES, EmulatedCuda  # noqa: E402

DEVICE = torch.device("cuda", 0)


class Part:
    """A slab in a file, full of one number; None is a part that cannot be read."""

    def __init__(self, device: EmulatedCuda, value: int | None) -> None:
        self.device, self.value = device, value

    def numel(self) -> int:
        return SIZE

    def read_into(self, target: Any) -> None:
        self.device.reads_file(target)
        if self.value is None:
            raise OSError("bad sector")
        target.fill_(self.value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_read_that_fails_leaves_the_buffer_of_a_running_copy_alone(schedule: str) -> None:
    with EmulatedCuda(schedule) as device:
        link = CudaLink(DEVICE)
        targets = [torch.empty(SIZE, dtype=torch.uint8, device=DEVICE) for _ in range(4)]
        tickets = [
            started(link, Part(device, value), target) for value, target in zip((1, None, 2, 3), targets, strict=True)
        ]
        with pytest.raises(ModelError, match="bad sector"):
            link.wait(tickets[1])
        for value, ticket, target in zip((1, 2, 3), tickets[:1] + tickets[2:], targets[:1] + targets[2:], strict=True):
            link.wait(ticket)
            assert target.tolist() == [value] * SIZE
        link.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_dropped_while_a_copy_runs(schedule: str) -> None:
    """Its memory is unlocked after the copy has landed, whoever collects the garbage."""
    with EmulatedCuda(schedule) as device:
        model, state = served(plan_of("2/layer"))
        says(model)
        assert device.memories.registrations == 1
        started(state.link, state.store.slab(0), state.pool.slab(0, state.store.slab_bytes))  # type: ignore[arg-type]
        thread = state.link._thread  # type: ignore[attr-defined]
        del model, state
        gc.collect()
        assert device.memories.registrations == 0
        assert not thread.is_alive()


LEAVING = """
import time, torch
from engine.runtime.links.thread_link import ThreadLink
link = ThreadLink()
source = torch.zeros(64 << 20, dtype=torch.uint8)
target = torch.empty_like(source)
tickets = [link.copy(source, target, demand=True) for _ in range(400)]
while not tickets[0].arrived:
    time.sleep(0.001)
"""


def test_leaving_the_interpreter_while_copies_run() -> None:
    """A thread within a copy that comes back to an interpreter that is gone takes the process down: 134."""
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


class PinnedKeys(KeyStore):
    """Slabs that are copied without the host."""

    def slab(self, key: int, size: int | None = None) -> Any:
        return torch.empty(1, dtype=torch.uint8, pin_memory=True).fill_(key)


def test_memory_that_cannot_be_locked() -> None:
    """The model has its experts still, and the next launch does not report what was reported."""
    model = eager()
    with EmulatedCuda() as device:
        device.cudart.refuses = True
        with pytest.raises(HardwareError, match=r"cannot be pinned \(CUDA error 2\)"):
            offload(model, plan_of("2/layer"), device="cuda")
        assert torch.ones(2, device=DEVICE).tolist() == [1, 1]
    assert same(says(model.to("cpu")), expected())


def test_copies_leave_before_the_lane_waits_for_its_rows() -> None:
    with EmulatedCuda() as device:
        model, state = served(plan_of("2/layer", miss={"where": "host"}))
        with state:
            seen: list[str] = []
            lane: Any = state.lane
            copies, submit = state.link.copies, lane.submit
            state.link.copies = lambda asked: seen.append("copy") or copies(asked)  # type: ignore[func-returns-value,method-assign]
            lane.submit = lambda *args: seen.append("rows") or submit(*args)
            cache_visit = state.cache.visit
            state.cache.visit = lambda *args: seen.append("visit") or cache_visit(*args)  # type: ignore[func-returns-value,method-assign,assignment]
            before = len(device.waits)
            says(model)
        visits = " ".join(seen).split("visit")[1:]
        assert any("copy" in visit and "rows" in visit for visit in visits)
        assert not any("rows copy" in visit for visit in visits)
        handed = [what for what in device.waits[before:] if what == "copy to the host"]
        assert len(handed) <= 2 * len(visits) + 4, "rows of all experts of a visit come in one copy"


def test_the_device_that_quantised_is_named_in_the_index(tmp_path: Any) -> None:
    pytest.importorskip("hqq")
    plan = plan_of("2/layer", weights={"experts": "hqq-4bit-g16"})
    with EmulatedCuda():
        served(plan, host="disk", slabs=tmp_path / "there")[1].close()
        assert read_index(tmp_path / "there").quantised_on == "emulated"
    offload(eager(), plan, host="disk", slabs=tmp_path / "here")
    offload(eager(), plan_of("2/layer"), host="disk", slabs=tmp_path / "plain")
    assert read_index(tmp_path / "here").quantised_on == "cpu"
    assert read_index(tmp_path / "plain").quantised_on is None


def test_slots_begin_on_boundaries_of_512_bytes() -> None:
    pool = SlotPool(3, 700, torch.device("cpu"))
    assert [pool.slab(slot, 1).storage_offset() for slot in range(3)] == [0, 1024, 2048]
    assert pool.bytes == 3 * 1024
