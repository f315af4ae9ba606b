"""Device memory part by part: what a replay says of a plan, against what the engine holds and what torch allocates.

The reference models, served by the engine on a CPU.
"""

import gc
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.replay.counts import counts_manifest
from engine.replay.memory import DeviceMemory, device_memory
from engine.replay.setting import Setting
from engine.runtime import offload, offloaded
from engine.shapes.load import Load, load_bytes
from tests.helpers.thorough import THOROUGH

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from torch.profiler import ProfilerActivity, profile  # noqa: E402  # needs torch

from engine.runtime.storage.working_memory import PeakBytes, expansion_bytes  # noqa: E402
from engine.shapes.config import shape_of_config  # noqa: E402
from experiments.demo.reference_models import CHECKPOINTS, NAMES  # noqa: E402
from tracekit.recorder.encoding import continues  # noqa: E402
from tracekit.recorder.models import load_config, load_model  # noqa: E402

WITHIN = 0.03
LOADS = [(400, 4, 1), (100, 8, 4), (200, 12, 2)]


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
    shape = shape_of_config(load_config(CHECKPOINTS / name).to_dict(), name)
    return device_memory(Setting.of(counts_manifest(shape), plan, None, shape, load=load))


def tensors() -> Iterator[Any]:
    """Every tensor that there is now."""
    return (found for found in gc.get_objects() if isinstance(found, torch.Tensor) and not found.is_meta)


class Served(NamedTuple):
    """An engine that answered: bytes of what stays, of its slots, of the cache in the end, and the most that anything
    beside weights and slots took, as we count tensors and as torch's allocator counts what it hands out."""

    dense: int
    slot: int
    layers: int
    cache: int
    peak: int
    allocated: int


def served(name: str, dtype: str, plan: Plan, prompt: int, new: int, batch: int) -> Served:
    model, _ = load_model(CHECKPOINTS / name, dtype, "cpu")
    model = offload(model, plan)
    with offloaded(model) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta}
        prompts = [[5 + 7 * index % 200 for index in range(prompt)] for _ in range(batch)]
        generation = continues(model)(model, prompts, max_new_tokens=new, stop=())
        with (
            torch.inference_mode(),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
            PeakBytes(*tensors()) as counted,
        ):
            list(generation.passes())
        kept_cache: Any = generation.cache
        cache = sum(tensor.nbytes for layer in kept_cache.layers for tensor in (layer.keys, layer.values))
        slot = state.pool.bytes // state.pool.slots
        return Served(sum(kept.values()), slot, len(state.layers), cache, counted.peak, allocated(profiled))


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_is_told_part_by_part(name: str) -> None:
    """Weights, slots, buffers and the cache of keys and values, in the sixteen bits that a replay counts in."""
    plan = Plan("3/layer", prefetch={"predictor": "gate", "staging": 6})
    said = told(name, plan, Load(43, 2, 80, 40))
    found = served(name, "bfloat16", plan, 40, 4, 2)
    slots, staging = 3 * found.layers * found.slot, 6 * found.slot
    assert said.kv_cache == found.cache, "to the byte"
    for part, size in (("dense", found.dense), ("slots", slots), ("staging", staging)):
        assert getattr(said, part) == pytest.approx(size, rel=WITHIN), part
    assert said.total == pytest.approx(found.dense + slots + staging + found.peak, rel=WITHIN)


@pytest.mark.parametrize(("prompt", "new", "batch"), LOADS if THOROUGH > 1 else LOADS[:1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_cache_and_activations_are_what_the_engine_takes(
    name: str, dtype: str, prompt: int, new: int, batch: int
) -> None:
    """Each by itself, where a prompt of some hundred tokens says how much that is. In single precision also their sum
    by torch's own allocator; in sixteen bits a CPU's kernels take room of their own beside, which a GPU's do not."""
    config = load_config(CHECKPOINTS / name)
    load = Load(prompt + new - 1, batch, prompt * batch, prompt)
    shape = shape_of_config(config.to_dict(), name)
    word, width = {"bfloat16": ("bf16", 2), "float32": ("fp32", 4)}[dtype]
    cache, activations = load_bytes(shape, load, WeightFormat.parse(word), width)
    found = served(name, dtype, Plan("3/layer"), prompt, new, batch)
    assert cache == found.cache, "to the byte"
    assert activations == pytest.approx(found.peak - found.cache, rel=WITHIN)
    if dtype == "float32":
        assert cache + activations == pytest.approx(found.allocated, rel=WITHIN)


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
