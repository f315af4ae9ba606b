"""Tiny random models of five families, and what they answer when they are not offloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from engine.plan.plan import Plan, plan_from_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,  # large enough that tokens choose different experts and logits differ
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 12, "num_experts_per_tok": 4},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 8, "num_experts_per_tok": 3}),
    "gpt_oss": (
        "GptOssConfig",
        {"head_dim": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
}
FAMILIES = sorted(CONFIGS)
NEW_TOKENS = 20
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]


@dataclass(frozen=True)
class Answer:
    """Logits of each forward pass and the tokens generated."""

    logits: list[Any]  # [1, tokens or 1, vocabulary] each
    tokens: list[int]


MakeModel = Callable[..., Any]
"""(family, dtype) -> a model, with the attributes of its family"""
Reference = Callable[..., Answer]
"""(family, dtype) -> what that model answers when it is not offloaded"""


def plan_of(capacity: str = "2/layer", **tables: Any) -> Plan:
    """A plan of this capacity and these tables."""
    return plan_from_dict({"cache": {"capacity": capacity}, **tables})


def answer(model: Any, prompt: list[int] = PROMPT, new_tokens: int = NEW_TOKENS) -> Answer:
    """Greedy decoding by hand: the whole of prefill's logits, then a token at a time."""
    device = next(p.device for p in model.parameters() if p.numel())
    ids = torch.tensor([prompt], device=device)
    past, logits, tokens = None, [], []
    with torch.inference_mode():
        for _ in range(new_tokens + 1):
            output = model(input_ids=ids, past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits.append(output.logits)
            ids = output.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    return Answer(logits, tokens)


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers agree in every bit."""
    return one.tokens == other.tokens and all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))


@cache
def original(family: str, dtype: str) -> Any:
    name, settings = CONFIGS[family]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**(SMALL | settings))
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):  # biases start at zero, where a forgotten one would not be noticed
                parameter.normal_(std=0.2)
    return model.to(getattr(torch, dtype)).eval()


@cache
def reference(family: str, dtype: str) -> Answer:
    return answer(original(family, dtype))
