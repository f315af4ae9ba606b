"""The engine with everything resident against the same model without offloading, tokens per second."""

from functools import partial
from typing import TYPE_CHECKING

from engine.plan.plan import plan_from_dict
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.research.benchmarks.alternating import Row, medians

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 48
PROMPT = "The methods of this class return the number of items that were read, or"


def load(name: str, implementation: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A reference model in float32 on the given experts implementation, and its tokenizer."""
    from tracekit.recorder.models import load_model

    model, tokenizer = load_model(CHECKPOINTS / name, "float32", "cpu")
    model.set_experts_implementation(implementation)
    return model, tokenizer


def decode(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", new: int = NEW_TOKENS, *, stop: bool = False
) -> None:
    """Continue the prompt greedily by `new` tokens, or until the model says that it is finished if it may `stop`."""
    from tracekit.recorder.generation import Decoding
    from tracekit.recorder.prompts import Prompt, encode_prompts
    from tracekit.recorder.recorder import stop_tokens

    prompts = encode_prompts([Prompt(id="prompt", prompt=PROMPT)], tokenizer)
    for _ in Decoding(model, prompts, max_new_tokens=new, stop=stop_tokens(model) if stop else ()).passes():
        pass


def rows() -> list[Row]:
    """Both reference models, against transformers' eager and batched experts, on one thread."""
    import torch

    from engine.runtime import offload, offloaded

    torch.set_num_threads(1)
    found = []
    for name in NAMES:
        served, tokenizer = load(name, "eager")
        offload(served, plan_from_dict({"cache": {"capacity": "100%/layer"}}))
        with offloaded(served):
            for implementation in ("eager", "batched_mm"):
                plain, _ = load(name, implementation)
                decode_ours, decode_peer = (partial(decode, model, tokenizer) for model in (served, plain))
                ours, peer = medians(decode_ours, decode_peer, repeats=7, uncounted=1)
                what = f"{name}, all resident, tokens/s, against {implementation}"
                found.append(Row.of_rates(what, NEW_TOKENS / ours, NEW_TOKENS / peer, ">= 0.9x"))
    return found
