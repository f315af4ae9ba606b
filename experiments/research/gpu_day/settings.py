"""The models of the day: real shapes, random weights, routing drawn and forced; as deep as host memory is given."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from engine.plan.plan import Plan, plan_from_dict
from engine.plan.weights import WeightFormat
from engine.runtime.forced_routing import ForcedRouting, forced_steps
from engine.runtime.memory import host_bytes
from engine.runtime.offload import offload
from engine.runtime.offload_state import OffloadState, offloaded
from engine.runtime.storage.random_weights import SCALE, random_model
from engine.runtime.storage.slab_layout import expert_parameters
from tracekit.manifest import Manifest, ModelInfo
from tracekit.recorder.models import load_config
from tracekit.recorder.seam import moe_layers
from tracekit.synthetic import Recipe, synthesize
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

EXPERTS_BYTES = 8 << 30
"""Experts of a setting on the host: what most steps of the day load anew. Layers are as they are, but fewer."""
OF_FREE = 0.75
"""Of the memory that is free, what the deepest setting's experts and slots may take."""
RECALL = 0.8  # how likely the drawn lookahead names an expert that is chosen
SEED = 0

Tables = dict[str, dict[str, Any]]

SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # family's configuration, as published, and what it is in CI
    "mixtral-8x7b": (
        "MixtralConfig",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
        },
        {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        {
            "hidden_size": 2048,
            "head_dim": 128,
            "moe_intermediate_size": 768,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
        },
        {"hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 16, "num_experts_per_tok": 4},
    ),
    "deepseek-v2-lite": (
        "DeepseekV2Config",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "vocab_size": 102400,
        },
        {"hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64, "n_routed_experts": 16},
    ),
}
TINY = {"num_hidden_layers": 4, "vocab_size": 512}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
INNER = ("moe_intermediate_size", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Setting:
    """A model's shape and the format of its experts (None: 16 bits), in a folder of its own."""

    shape: str
    weights: str | None
    tiny: bool
    folder: Path
    experts_bytes: int = EXPERTS_BYTES

    @property
    def name(self) -> str:
        return f"{self.shape} {self.weights or 'bf16'}"

    @property
    def config(self) -> dict[str, Any]:
        """What the configuration says, with as many layers as `experts_bytes` hold."""
        _, real, small = SHAPES[self.shape]
        given = {**real, **(small | TINY if self.tiny else {})}
        experts = next(given[key] for key in EXPERTS if key in given)
        params = 3 * given["hidden_size"] * next(given[key] for key in INNER if key in given)
        bits = 16.0 if self.weights is None else WeightFormat.parse(self.weights).bits_per_parameter
        most = self.experts_bytes // round(experts * params * bits / 8)
        dense = given.get("first_k_dense_replace", 0)
        return given | {"num_hidden_layers": min(given["num_hidden_layers"], dense + max(2, most))}

    @property
    def depth(self) -> str:
        """How many of the model's layers there are."""
        real = TINY["num_hidden_layers"] if self.tiny else SHAPES[self.shape][1]["num_hidden_layers"]
        return f"{self.config['num_hidden_layers']} of {real}"

    @property
    def _label(self) -> str:
        return f"{self.name.replace(' ', '-')}-{self.config['num_hidden_layers']}"

    def deepest(self, device: torch.device, share: float) -> "Setting":
        """With as many layers as host and device hold, a share of the experts in slots."""
        room = int(OF_FREE * host_bytes())
        if device.type == "cuda":
            room = min(room, int(OF_FREE * torch.cuda.mem_get_info(device)[0] / share))
        return replace(self, experts_bytes=room)

    @property
    def path(self) -> Path:
        """A directory with the configuration and nothing else."""
        found = self.folder / self._label
        if not (found / "config.json").exists():
            found.mkdir(parents=True, exist_ok=True)
            kind = getattr(transformers, SHAPES[self.shape][0])
            kind(**self.config, architectures=None, dtype="bfloat16").save_pretrained(found)
            told = json.loads((found / "config.json").read_text())
            (found / "config.json").write_text(json.dumps(told | {"dtype": "bfloat16"}))
        return found

    def empty(self) -> PreTrainedModel:
        """The model, what is no expert at random, its experts without storage."""
        return random_model(load_config(self.path), torch.bfloat16, SEED)

    def plain(self, device: torch.device) -> PreTrainedModel:
        """The un-offloaded model on the device, in 16 bits."""
        model = self.empty()
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))  # type: ignore[no-untyped-call]
        for layer in moe_layers(model):
            for name, parameter in expert_parameters(layer.experts).items():
                filled = torch.empty(parameter.shape, dtype=parameter.dtype, device=device).normal_(0, SCALE)
                setattr(layer.experts, name, nn.Parameter(filled, requires_grad=False))
        return model

    def plan(self, tables: Tables) -> Plan:
        """The plan of these tables, and of this format."""
        return plan_from_dict(tables | ({"weights": {"experts": self.weights}} if self.weights else {}))

    @contextmanager
    def offloaded(self, tables: Tables, device: torch.device) -> Iterator[tuple[PreTrainedModel, OffloadState]]:
        """The offloaded model and its state."""
        model = offload(self.empty(), self.plan(tables), device=device, random_experts=SEED)
        with offloaded(model) as state:
            yield model, state

    def routing(self, tokens: int) -> Trace:
        """A trace that such a model might have made: drawn choices, with a lookahead that is often right."""
        path = self.folder / f"{self._label}-{tokens}.trace"
        if path.exists():
            return Trace.open(path)
        layers = moe_layers(self.empty())
        experts, top_k = layers[0].num_experts, layers[0].top_k
        recipe = Recipe(tokens=tokens, layers=len(layers), experts=experts, top_k=top_k, zipf=0.4, persistence=0.3)
        drawn = synthesize(path.with_suffix(".drawn"), recipe)
        chosen = np.asarray(drawn.experts[:])  # [tokens, layers, k]
        rng = np.random.default_rng(SEED)
        ahead = rng.normal(size=(tokens, len(layers), experts))
        named = np.where(rng.random(chosen.shape) < RECALL, 8.0, 0.0)
        np.put_along_axis(ahead, chosen.astype(np.int64), named, axis=2)
        manifest = Manifest(
            source="synthetic",
            model=ModelInfo(id=f"synthetic/{self.shape}", family="synthetic"),
            moe_layers=list(range(len(layers))),
            model_layers=len(layers),
            experts_per_layer=[experts] * len(layers),
            top_k=top_k,
            notes=[f"drawn: {recipe}, lookahead right with probability {RECALL}"],
        )
        with TraceWriter(path, manifest) as writer:
            at, phase = np.arange(tokens), drawn.phase[:]
            writer.append(step=at, request=0, position=at, phase=phase, experts=chosen, lookahead={1: ahead[:, 1:]})
        return Trace.open(path)

    def run_forced(self, model: PreTrainedModel, state: OffloadState, tokens: int) -> None:
        """Run a drawn trace through the offloaded model."""
        layers, distance = len(state.layers), state.lookahead_distance
        forced = ForcedRouting(self.routing(tokens), layers, state.spec.experts, state.top_k, distance)
        for _ in forced_steps(model, forced, tokens, SEED):
            pass


def settings(folder: Path, *, tiny: bool) -> list[Setting]:
    """The day's models; in CI one, in two formats."""
    make = partial(Setting, tiny=tiny, folder=folder)
    if tiny:
        return [make("mixtral-8x7b", None), make("mixtral-8x7b", "hqq-4bit")]
    mixtral = [make("mixtral-8x7b", word) for word in (None, "hqq-4bit", "hqq-2bit")]
    return [*mixtral, make("qwen3-30b-a3b", None), make("deepseek-v2-lite", None)]
