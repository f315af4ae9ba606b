"""This machine measured with models at hand, for `calibrate` and for commands that are given no machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.hardware import HardwareProfile, Host
from engine.plan.plan import Plan
from tracekit.errors import CapacityError, HardwareError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from engine.runtime.calibration.engine_costs import Workload

PROMPTS = (
    "Return a list of the names in the current scope, sorted by",
    "def read(self, size=-1):\n    if self.closed:\n        raise ValueError(",
    "The module defines the following functions and classes:",
)
MAX_NEW_TOKENS = 32
CAPACITIES = ("50%/layer", "25%/layer", "auto")
"""Some hits and some loads; less where that does not fit."""
STAGES = 8
"""`measured_machine` calls `advance` so often."""
ROUNDS, REPEATS = 3, 11
"""Of a machine that is measured in passing: half of what `calibrate` takes."""


@contextmanager
def workloads(
    directories: Sequence[Path], device: "torch.device", dtype: str, *, prefetch: Sequence[str]
) -> "Iterator[list[Workload]]":
    """Each model under each prefetcher, offloaded and with prompts to continue; given back in the end."""
    from engine.runtime.calibration.engine_costs import Workload
    from engine.runtime.offload_state import offloaded
    from tracekit.recorder.models import load_tokenizer
    from tracekit.recorder.prompts import Prompt, encode_prompts

    given = [Prompt(id=str(index), prompt=text) for index, text in enumerate(PROMPTS)]
    with ExitStack() as opened:
        found = []
        for where, name in product(directories, prefetch):
            model = _largest_that_fits(where, name, device, dtype)
            opened.enter_context(offloaded(model))
            found.append(Workload(model, encode_prompts(given, load_tokenizer(where)), MAX_NEW_TOKENS))
        yield found


def _largest_that_fits(where: Path, prefetch: str, device: "torch.device", dtype: str) -> "PreTrainedModel":
    from engine.runtime.offload import offload

    for capacity in CAPACITIES[:-1]:
        try:
            return offload(where, Plan(capacity, prefetch=prefetch), device=device, dtype=dtype)
        except CapacityError:
            continue
    return offload(where, Plan(CAPACITIES[-1], prefetch=prefetch), device=device, dtype=dtype)


def measured_machine(
    model: str,
    *,
    device: str = "auto",
    formats: Sequence[str] = (),
    disk: Path | None = None,
    memory: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> HardwareProfile:
    """This machine, measured with the model in that directory; its host's memory is what is free now.

    Args:
        formats: quantised formats whose expansion is measured too.
        disk: a directory whose disk is measured.
        memory: bytes of device memory to use; None: all of a GPU's, or what is free of the host's.

    Raises HardwareError where `model` is no directory, and what loading and measuring raise.
    """
    if not (Path(model) / "config.json").is_file():
        raise HardwareError(
            f"which machine? Name one with --hardware, or give a model's directory in place of {model!r}: this machine "
            "is then measured with it"
        )
    from engine.runtime.calibration.machine_profile import calibrate_machine
    from engine.runtime.memory import host_bytes, meminfo
    from tracekit.recorder.models import find_model, parse_device, parse_dtype

    place, total, free = parse_device(device), meminfo("MemTotal"), min(meminfo("MemAvailable"), host_bytes())
    word = "bfloat16" if place.type == "cuda" else "float32"
    with workloads([find_model(model)], place, word, prefetch=["gate"]) as running:
        profile = calibrate_machine(
            running,
            dtype=parse_dtype(word),  # type: ignore[arg-type]  # a word for one type
            formats=formats,
            disk=disk,
            rounds=ROUNDS,
            repeats=REPEATS,
            advance=advance,
        ).profile
    host = Host(memory_bytes=total, reserved_bytes=total - free, holds_dense=place.type == "cpu")
    room = profile.device.memory_bytes if memory is None else memory
    return replace(profile, host=host, device=replace(profile.device, memory_bytes=room))
