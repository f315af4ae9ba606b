"""The engine with everything resident against the same model without offloading, tokens per second."""

from collections.abc import Callable
from functools import partial
from typing import Any

from engine.plan.plan import plan_from_dict
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.research.benchmarks.alternating import Row, medians

NEW_TOKENS = 48
PROMPT = "The methods of this class return the number of items that were read, or"


def load(name: str, implementation: str) -> tuple[Any, list[list[int]]]:
    """A reference model in float32 on the given experts implementation, and the prompt's tokens."""
    from tracekit.recorder.models import load_model
    from tracekit.recorder.prompts import Prompt, encode_prompts

    model, tokenizer = load_model(CHECKPOINTS / name, "float32", "cpu")
    model.set_experts_implementation(implementation)
    return model, encode_prompts([Prompt(id="prompt", prompt=PROMPT)], tokenizer)


def decode(model: Any, prompts: list[list[int]]) -> None:
    """Continue the prompts greedily."""
    from tracekit.recorder.generation import Decoding

    for _ in Decoding(model, prompts, max_new_tokens=NEW_TOKENS).passes():
        pass


def rows() -> list[Row]:
    """Both reference models, against transformers' eager and batched experts, on one thread."""
    import torch

    from engine.runtime import offload, offloaded

    torch.set_num_threads(1)
    found = []
    for name in NAMES:
        served, prompts = load(name, "eager")
        offload(served, plan_from_dict({"cache": {"capacity": "100%/layer"}}))
        with offloaded(served):
            for implementation in ("eager", "batched_mm"):
                plain, _ = load(name, implementation)
                ours, peer = compare(partial(decode, served, prompts), partial(decode, plain, prompts))
                found.append(
                    Row(
                        f"{name}, all resident, tokens/s, against {implementation}",
                        f"{NEW_TOKENS / ours:.0f}/s",
                        f"{NEW_TOKENS / peer:.0f}/s",
                        peer / ours,
                        ">= 0.9x",
                    )
                )
    return found


def compare(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """Medians of both, after one run of each that is not counted."""
    ours()
    peer()
    return medians(ours, peer, repeats=7)
