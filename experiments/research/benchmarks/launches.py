"""Kernels and copies that one token's step gives to the device, per layer: grouped kernels against eager experts.

Counted on the emulated device of the tests (`tests/helpers/emulated_cuda`), attention included: what the engine asks of
a device does not depend on sizes, so models are tiny. Run from the repository, where the tests are.
"""

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING

from engine.plan.plan import plan_from_dict
from experiments.research.benchmarks.alternating import Row
from tracekit.errors import TracekitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = {"Mixtral top-2 of 8": (8, 2), "top-8 of 128": (128, 8)}
FORMATS = {"16 bits": None, "HQQ, 4 bits": "hqq-4bit-g16"}
LAYERS = 2
PROMPT = [3, 14, 15, 9]
TARGET = "6, 10 a visit"


def rows() -> list[Row]:
    """Everything resident, and all but one expert of a token."""
    import torch

    torch.set_num_threads(1)
    device = emulated()
    found = []
    for shape, (experts, top_k) in SHAPES.items():
        for word, weights in FORMATS.items():
            for capacity, what in ((f"{experts}/layer", "all resident"), (f"{top_k - 1}/layer", "with a miss")):
                eager, grouped = (
                    launches(device, experts, top_k, capacity, weights, kernels) for kernels in ("eager", "grouped")
                )
                name = f"{shape}, {word}, {what}: launches per layer (of them in the visit)"
                ours, peer = (f"{step:.0f} ({visit:.0f})" for step, visit in (grouped, eager))
                found.append(Row(name, ours, peer, grouped[1] / eager[1], TARGET))
    return found


def emulated() -> ModuleType:
    """The emulated device. TracekitError where there are no tests, or no Triton, whose interpreter it needs."""
    from engine.runtime.experts.launching import has_triton

    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel's module is read
    if not has_triton():
        raise TracekitError('launches are counted with Triton\'s interpreter: pip install "moe-tracekit[kernels]"')
    try:
        return importlib.import_module("tests.helpers.emulated_cuda.device")
    except ImportError as error:
        raise TracekitError(f"launches are counted on the tests' device: run from the repository ({error})") from None


def launches(
    device: ModuleType, experts: int, top_k: int, capacity: str, weights: str | None, kernels: str
) -> tuple[float, float]:
    """Launches per layer of a decode step, and those in its visits: of the token's third time."""
    import torch

    from engine.runtime.offload import offload
    from engine.runtime.offload_state import offloaded

    tables: dict[str, object] = {"cache": {"capacity": capacity}, "compute": {"kernels": kernels}}
    if weights is not None:
        tables["weights"] = {"experts": weights}
    with device.EmulatedCuda() as gpu:
        model = offload(tiny(experts, top_k), plan_from_dict(tables), device="cuda", random_experts=0)
        with offloaded(model) as state, torch.inference_mode():
            visits: list[int] = []
            for layer in state.layers:
                layer.router.register_forward_hook(lambda *_: visits.append(len(gpu.launches)))
                layer.experts.register_forward_hook(lambda *_: visits.append(len(gpu.launches)))
            ids = torch.tensor([PROMPT]).to("cuda:0")
            past = model(input_ids=ids, use_cache=True).past_key_values
            for _ in range(2):
                past = model(input_ids=ids[:, :1], past_key_values=past, use_cache=True).past_key_values
            before = len(gpu.launches)
            visits.clear()
            model(input_ids=ids[:, :1], past_key_values=past, use_cache=True)
            inside = sum(end - begin for begin, end in zip(visits[::2], visits[1::2], strict=True))
            return (len(gpu.launches) - before) / LAYERS, inside / LAYERS


def tiny(experts: int, top_k: int) -> "PreTrainedModel":
    """A model of two layers whose attention is written in plain operations."""
    import torch
    from transformers import MixtralConfig

    from engine.runtime.storage.random_weights import random_model

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
    )
    model = random_model(config, torch.bfloat16, 0)
    model.set_attn_implementation("eager")
    return model
