"""The two reference architectures: the same small transformer with few wide or many narrow experts."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from experiments.demo.reference_models import NAMES
from experiments.research.reference_model.tokenizer import CONTEXT, END_OF_TEXT_ID, PADDING_ID, VOCABULARY

BALANCE_COEFFICIENT = 0.01  # Switch Transformer, arXiv 2101.03961, section 2.2


def configuration(name: str, *, layers: int = 8, hidden: int = 128) -> PreTrainedConfig:
    """The configuration of a reference model; `layers` and `hidden` shrink it for tests.

    Raises ValueError for a name that is not in `NAMES`.
    """
    common: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "router_aux_loss_coef": BALANCE_COEFFICIENT,
        "bos_token_id": None,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PADDING_ID,
    }
    if name == "mixtral-mini":
        sizes = {"intermediate_size": 112, "num_local_experts": 8, "num_experts_per_tok": 2}
        return MixtralConfig.from_dict(common | sizes)
    if name == "qwen3-moe-mini":
        qwen = {
            "intermediate_size": 112,  # of a dense layer; there is none
            "moe_intermediate_size": 28,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        return Qwen3MoeConfig.from_dict(common | qwen)
    raise ValueError(f"unknown reference model {name!r}; known: {', '.join(NAMES)}")


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A new fp32 model; `seed` determines every weight, and the global torch seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, experts_implementation="grouped_mm"
        )
        return model
