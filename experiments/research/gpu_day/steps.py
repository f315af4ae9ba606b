"""What is done in each part, in order of what would be missed most."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from experiments.research.gpu_day import agreement, correctness, speed
from experiments.research.gpu_day.runner import Found, Step
from experiments.research.gpu_day.settings import settings

PARTS = (1, 2, 3)
TESTS_S = 240.0


def steps_of(part: int, device_name: str, output: Path, scratch: Path, *, tiny: bool) -> list[Step]:
    """The steps of a part. `output` keeps results, `scratch` configurations and traces."""
    device, models = torch.device(device_name), settings(scratch, tiny=tiny)

    def step(name: str, limit_s: float, run: Callable[..., Found], *given: object) -> Step:
        return Step(name, limit_s, partial(run, *given, tiny=tiny))

    mixtral, quantised = models[0], models[1]
    if part == 1:
        return [
            step("tests marked gpu", TESTS_S, partial(correctness.gpu_tests, TESTS_S - 10)),
            step("delays and poisoned slots", 60, correctness.races, device),
            step("leaving with copies in flight", 60, correctness.exits, device),
            step("copies and read-back", 60, correctness.copies, device),
            step("calibration", 120, correctness.calibrated, device, output),
            step("locking host memory", 60, correctness.pinning, device),
        ]
    if part == 2:
        few = models[:1] if tiny else models
        return [
            *(step(f"resident: {one.name}", 60, speed.resident, one, device) for one in few),
            *(step(f"link bound: {one.name}", 75, speed.against_link, one, device) for one in few),
            step(f"ablation: {quantised.name}", 75, speed.ablation, quantised, device),
            step(f"ablation: {mixtral.name}", 75, speed.ablation, mixtral, device),
            step(f"accelerate: {mixtral.name}", 60, speed.accelerate_offload, mixtral, device),
            *(step(f"profile: {one.name}", 60, speed.profiled, one, device) for one in few),
            # Loading these takes longer than all else; the smallest first.
            *(
                step(f"full depth: {one.name}", 150, speed.full_depth, one, device)
                for one in reversed(few[:1] + few[3:])
            ),
            *(step(f"full depth: {one.name}", 100, speed.full_depth, one, device) for one in few[1:3]),
        ]
    return [
        *(
            step(f"held out: {one.name}", 120, agreement.held_out, one, device, output)
            for one in models[:1] + models[3:]
        ),
        step(f"held out: {quantised.name}", 120, agreement.held_out, quantised, device, output),
        *(step(f"allocated: {one.name}", 45, agreement.allocated, one, device) for one in models),
        step("power", 30, agreement.watts, device),
        step(f"kernels: {mixtral.name}", 60, agreement.both_kernels, mixtral, device),
        step(f"kernels: {quantised.name}", 60, agreement.both_kernels, quantised, device),
    ]
