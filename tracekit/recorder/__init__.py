"""Recording: run a transformers MoE model and write down what its gates chose. Needs torch and transformers.

    from tracekit.recorder import RecordOptions, load_model, read_prompts, record
    model, tokenizer = load_model("mistralai/Mixtral-8x7B-v0.1", dtype="bfloat16", device="cuda")
    record(model, tokenizer, read_prompts("prompts.jsonl"), "mixtral.trace", RecordOptions(max_new_tokens=64))

Names are resolved on first use: importing this package loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.recorder.collector import Routing, RoutingCollector
    from tracekit.recorder.generation import Decoding, Forward, Scoring
    from tracekit.recorder.models import load_model, load_tokenizer
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import Message, Prompt, read_prompts
    from tracekit.recorder.recorder import record
    from tracekit.recorder.seam import MoeLayer, moe_layers, router_logits

_HOME = {
    "Decoding": "generation",
    "Forward": "generation",
    "Message": "prompts",
    "MoeLayer": "seam",
    "Prompt": "prompts",
    "RecordOptions": "options",
    "Routing": "collector",
    "RoutingCollector": "collector",
    "Scoring": "generation",
    "load_model": "models",
    "load_tokenizer": "models",
    "moe_layers": "seam",
    "read_prompts": "prompts",
    "record": "recorder",
    "router_logits": "seam",
}

__all__ = [
    "Decoding",
    "Forward",
    "Message",
    "MoeLayer",
    "Prompt",
    "RecordOptions",
    "Routing",
    "RoutingCollector",
    "Scoring",
    "load_model",
    "load_tokenizer",
    "moe_layers",
    "read_prompts",
    "record",
    "router_logits",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the function `record` must win over a submodule of a like name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
