"""What a recording says about its model: the manifest, from a loaded model."""

import hashlib
import json
import re
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from tracekit.manifest import Manifest, ModelInfo
from tracekit.recorder.layers import model_depth
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.seam import MoeLayer
from tracekit.version import own_version

_LIBRARIES = (torch, transformers, tokenizers)
_CACHED = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[0-9a-f]+)[/\\]*$")


def describe(
    model: PreTrainedModel, layers: list[MoeLayer], options: RecordOptions, prompts_sha256: str, *, notes: list[str]
) -> Manifest:
    """The manifest of a recording about to be made of `model`, whose MoE layers are `layers`."""
    config = model.config
    identifier, revision = identity(model)
    scores = {layer.score_function for layer in layers}
    return Manifest(
        source="record",
        model=ModelInfo(
            id=identifier,
            revision=revision,
            config_sha256=config_digest(config.to_dict()),
            family=str(config.model_type),
            dtype=str(model.dtype).removeprefix("torch."),
        ),
        moe_layers=[layer.model_layer for layer in layers],
        model_layers=model_depth(model),
        experts_per_layer=[layer.num_experts for layer in layers],
        top_k=max(layer.top_k for layer in layers),
        expert_params=[layer.expert_params for layer in layers],
        expert_bytes=[layer.expert_bytes for layer in layers],
        score_function=scores.pop() if len(scores) == 1 else "unknown",
        versions={"moe-tracekit": own_version()} | {name.__name__: str(name.__version__) for name in _LIBRARIES},
        prompts_sha256=prompts_sha256,
        sampling=options.sampling(),
        seed=options.seed if options.do_sample and not options.score else None,
        notes=notes,
    )


def identity(model: nn.Module) -> tuple[str, str | None]:
    """(id, revision) of a model: its hub name and commit, or the name of the directory it was loaded from."""
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    revision = getattr(config, "_commit_hash", None)
    cached = _CACHED.search(name)
    if cached:
        return cached["id"].replace("--", "/"), cached["revision"]
    if not name:
        return type(model).__name__, revision
    # A path says where something lay on one machine; only its last part is the model's name.
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return (Path(name).name or name) if is_path else name, revision


def config_digest(config: dict[str, object]) -> str:
    """sha256 of a configuration as sorted JSON, less what says how it was loaded rather than what it is."""
    loaded = ("transformers_version", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in loaded}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
