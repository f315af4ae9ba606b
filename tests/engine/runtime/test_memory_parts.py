"""Device memory part by part: what a replay says of a plan, against what the engine holds and what torch allocates.

The reference models in the sixteen bits that a replay counts in, served through the engine on a CPU.
"""

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from engine.plan.plan import Plan
from engine.replay.counts import counts_manifest
from engine.replay.memory import DeviceMemory, device_memory
from engine.replay.setting import Setting
from engine.runtime import offload, offloaded
from engine.shapes.load import Load
from tests.helpers.thorough import THOROUGH

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from torch.profiler import ProfilerActivity, profile  # noqa: E402  # needs torch

from engine.runtime.storage.working_memory import PeakBytes, expansion_bytes  # noqa: E402
from engine.shapes.config import shape_of_config  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from tracekit.recorder.encoding import continues  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402

WITHIN = 0.03
LOADS = [(400, 20, 1), (100, 60, 4), (60, 200, 2)]


def allocated(profiled: Any) -> int:
    """The most that torch's own allocator had handed out within the profile, beyond what it had at the beginning."""
    left: list[Any] = list(profiled.profiler.kineto_results.experimental_event_tree())
    changes = []
    while left:
        event = left.pop()
        left += event.children
        if str(event.tag) == "_EventType.Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    total = most = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        total += size
        most = max(most, total)
    return most


def told(name: str, plan: Plan, load: Load) -> DeviceMemory:
    """What a replay says of the plan."""
    config = load_model(CHECKPOINTS / name, "bfloat16", "cpu")[0].config
    shape = shape_of_config(config.to_dict(), name)
    return device_memory(Setting.of(counts_manifest(shape), plan, None, shape, load=load))


def tensors() -> Iterator[Any]:
    """Every tensor that there is now."""
    return (found for found in gc.get_objects() if isinstance(found, torch.Tensor) and not found.is_meta)


@pytest.mark.parametrize(("prompt", "new", "batch"), LOADS if THOROUGH > 1 else LOADS[:2])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_what_the_engine_takes(name: str, prompt: int, new: int, batch: int) -> None:
    """Each within 3 %, and so their sum: weights and slots as they lie there, the cache as it is in the end, and
    activations as the rest of the most that torch's allocator handed out while the model answered."""
    plan = Plan("3/layer")
    said = told(name, plan, Load(prompt + new - 1, batch, prompt * batch, prompt))
    model, _ = load_model(CHECKPOINTS / name, "bfloat16", "cpu")
    model = offload(model, plan)
    with offloaded(model) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta}
        slot = state.pool.bytes // state.pool.slots
        prompts = [[5 + 7 * index % 200 for index in range(prompt)] for _ in range(batch)]
        generation = continues(model)(model, prompts, max_new_tokens=new, stop=())
        older = list(tensors())
        with (
            torch.inference_mode(),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
            PeakBytes(*older) as counted,
        ):
            list(generation.passes())
        cache = sum(tensor.nbytes for layer in generation.cache.layers for tensor in (layer.keys, layer.values))
        found = DeviceMemory(
            dense=sum(kept.values()),
            kv_cache=cache,
            activations=counted.peak - cache,
            slots=3 * len(state.layers) * slot,
            staging=plan.prefetch.staging * slot,
            expansion=0,
        )
    print(name, prompt, new, batch, said, found, counted.peak, allocated(profiled))
    for part, size in said._asdict().items():
        assert size == pytest.approx(getattr(found, part), rel=WITHIN), part
    assert said.total == pytest.approx(found.total, rel=WITHIN)
    assert counted.peak == pytest.approx(allocated(profiled), rel=WITHIN), "as torch's allocator has it"


@pytest.mark.parametrize("word", ["hqq-4bit-g16", "hqq-8bit-g16"])
@pytest.mark.parametrize("name", NAMES)
def test_an_expanded_expert_is_what_kernels_write(name: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a kernel writes each expanded matrix and nothing beside it, as a replay counts it."""
    monkeypatch.setattr("engine.runtime.experts.launching.has_triton", lambda: True)
    plan = Plan("3/layer", weights=word)
    model, _ = load_model(CHECKPOINTS / name, "bfloat16", "cpu")
    said = told(name, plan, Load(1, 1, 1, 1))
    with offloaded(offload(model, plan)) as state:
        found = max(expansion_bytes(layout, torch.device("cuda")) for layout in state.store.layouts)
    assert said.expansion == pytest.approx(found, rel=WITHIN)
