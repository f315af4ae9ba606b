"""No family and no weight format makes the host wait more than once a visit and once a step, or mixes devices.

What a family's own code waits for, in attention, routers and caches, is found with experts that compute nothing.
"""

from collections import Counter
from typing import Any

import pytest

from engine.plan.plan import Plan
from tests.engine.runtime.models import plan_of
from tests.helpers.thorough import THOROUGH

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.experts.eager import register, serve_experts  # noqa: E402
from tests.engine.runtime.test_families import READERS, fresh  # noqa: E402
from tests.helpers.emulated_cuda.device import LATE, EmulatedCuda  # noqa: E402
from tests.tracekit.recorder.exactness import documented  # noqa: E402
from tracekit.recorder.encoding import continues  # noqa: E402
from tracekit.recorder.seam import moe_layers, seam_names, text_decoder  # noqa: E402

PROMPT = [5, 6, 7, 8, 20, 9]
READ, STEP = "copy to the host", "the computing stream"


def waits_of_steps(device: EmulatedCuda, model: Any) -> list[Counter[str]]:
    """What the host waits for in each forward pass: a prompt and two tokens."""
    found: list[Counter[str]] = []
    begun: list[int] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: begun.append(len(device.waits))),
        model.register_forward_hook(lambda *_: found.append(Counter(device.waits[begun[-1] :]))),
    ]
    if type(model).__name__ in READERS:
        with torch.inference_mode():
            model(input_ids=torch.tensor([PROMPT]).to("cuda:0"))
    else:
        list(continues(model)(model, [PROMPT], max_new_tokens=2, stop=()).passes())
    for hook in hooks:
        hook.remove()
    return found


def own_waits(package: str, types: list[str]) -> list[Counter[str]]:
    """What the family itself waits for."""
    model = fresh(package, types)
    model.set_attn_implementation("eager")
    register()
    for layer in moe_layers(model):
        serve_experts(layer.experts, lambda hidden, index, weights: torch.zeros_like(hidden))
    with EmulatedCuda(LATE, strict=False) as device:
        return waits_of_steps(device, model.to("cuda:0"))


def check(package: str, types: list[str], plan: Plan, own: list[Counter[str]]) -> None:
    model = fresh(package, types)
    model.set_attn_implementation("eager")
    with EmulatedCuda(LATE) as device:
        offload(model, plan, device="cuda")
        with offloaded(model) as state:
            ours = Counter({READ: len(state.layers), STEP: 1})
            assert waits_of_steps(device, model) == [step + ours for step in own]


@pytest.mark.parametrize("package", sorted(documented())[:: 3 if THOROUGH == 1 else 1])
def test_a_family(package: str, found: dict[str, list[str]]) -> None:
    if package not in found:
        pytest.skip(f"transformers {transformers.__version__} has no {package}")
    try:
        model = fresh(package, found[package])
    except LookupError as error:
        pytest.skip(f"{package}: {error}")
    if not seam_names(text_decoder(model)[1]):
        pytest.skip(f"{package} computes its experts without the seam")
    prefetch = {"predictor": "gate", "staging": 3} if len(moe_layers(model)) > 1 else {"predictor": "none"}
    check(package, found[package], plan_of("50%/layer", prefetch=prefetch), own_waits(package, found[package]))
