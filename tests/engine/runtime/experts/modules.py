"""Modules of experts in every layout that transformers has, and what they compute in double precision."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.runtime.experts.eager import eager_experts, expert_forward  # noqa: E402  # needs torch

LAYOUTS = {
    # gate over up; interleaved, transposed, biases, clamped; without a gate; transposed; clamped, transposed, biases
    "MixtralExperts": ("mixtral", "MixtralConfig"),
    "GptOssExperts": ("gpt_oss", "GptOssConfig"),
    "NemotronHExperts": ("nemotron_h", "NemotronHConfig"),
    "AriaExperts": ("aria", "AriaTextConfig"),
    "OpenAIPrivacyFilterExperts": ("openai_privacy_filter", "OpenAIPrivacyFilterConfig"),
}
EXPERTS = 5


def experts_of(name: str, dtype: str = "float32", hidden: int = 96, inner: int = 40) -> Any:
    """A random module of EXPERTS experts; neither width is a multiple of what a program computes."""
    package, config = LAYOUTS[name]
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "moe_intermediate_size": inner}
    counts = {"num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "num_experts": EXPERTS}
    settings = getattr(transformers, config)(**sizes, **counts, moe_num_experts=EXPERTS)
    module = getattr(import_module(f"transformers.models.{package}.modeling_{package}"), name)(settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module.to(getattr(torch, dtype))


def chosen(tokens: int, k: int, dtype: str = "float32", hidden: int = 96) -> tuple[Any, Any, Any]:
    """Hidden states [tokens, hidden], top-k ids and weights [tokens, k]."""
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.randn(tokens, hidden, generator=generator).to(getattr(torch, dtype))
    weights, ids = torch.rand(tokens, EXPERTS, generator=generator).topk(k)
    return rows, ids, weights.to(rows.dtype)


def in_double(module: Any, rows: Any, ids: Any, weights: Any, stored: Mapping[str, Any] | None = None) -> Any:
    """What the experts compute in double precision, written plainly; `stored` in place of the module's parameters."""
    tensors = {name: value.double() for name, value in (stored or dict(module.named_parameters())).items()}
    forward = expert_forward(module)
    total = torch.zeros_like(rows, dtype=torch.float64)
    with torch.no_grad():
        for token in range(len(rows)):
            for expert, weight in zip(ids[token].tolist(), weights[token].double(), strict=True):
                one = {name: value[expert] for name, value in tensors.items()}
                total[token] += weight * forward(one, rows[token : token + 1].double())[0]
    return total


def error(found: Any, wanted: Any) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


__all__ = ["EXPERTS", "LAYOUTS", "chosen", "eager_experts", "error", "experts_of", "in_double"]
