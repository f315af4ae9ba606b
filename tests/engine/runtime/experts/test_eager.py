"""One expert at a time, in any order, equals each family's own loop: how it adds up is found by trying."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from engine.runtime.experts.eager import accumulation, compute, eager_experts, expert_forward  # noqa: E402  # needs torch
from engine.runtime.visit_routing import Routing, TokenRouting, sort_by_expert  # noqa: E402
from tracekit.errors import ModelError  # noqa: E402


def experts_of(package: str, name: str, config: Any, dtype: Any) -> Any:
    module = getattr(import_module(f"transformers.models.{package}.modeling_{package}"), name)(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.to(dtype)


@pytest.mark.parametrize(
    ("package", "name", "dtype", "expected"),
    [
        ("mixtral", "MixtralExperts", "bfloat16", "hidden"),
        ("gpt_oss", "GptOssExperts", "bfloat16", "hidden"),
        ("nemotron_h", "NemotronHExperts", "bfloat16", "weights"),
        ("nemotron_h", "NemotronHExperts", "float32", "hidden"),
    ],
)
def test_how_a_family_adds_up_is_found(package: str, name: str, dtype: str, expected: str) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 16, "moe_intermediate_size": 16}
    counts = {"num_local_experts": 8, "n_routed_experts": 8, "num_experts": 8}
    config = getattr(transformers, name.removesuffix("Experts") + "Config")(**settings, **counts)
    module = experts_of(package, name, config, getattr(torch, dtype))
    assert accumulation(module) == expected
    hidden = torch.randn(6, 32).to(getattr(torch, dtype))
    weights, ids = torch.rand(6, 8).topk(3)
    ids[2, 1] = ids[2, 0]  # a gate that picks an expert twice for a token has it counted twice
    routing = sort_by_expert(ids.numpy().astype("uint16"), 8, hidden.device)
    stacked = dict(module.named_parameters())

    forward = expert_forward(module)

    def one(expert: int, rows: Any) -> Any:
        return forward({name: stacked[name][expert] for name in stacked}, rows)

    for order in (routing.demand, routing.demand[::-1]):
        with torch.no_grad():
            given = compute(order, one, hidden, weights, routing, expected)
            assert torch.equal(given, eager_experts(module, hidden, ids, weights))


def test_a_family_that_rounds_elsewhere_is_refused_in_that_precision() -> None:
    name = "OpenAIPrivacyFilter"
    config = getattr(transformers, f"{name}Config")(hidden_size=32, intermediate_size=16, num_local_experts=8)
    module = experts_of("openai_privacy_filter", f"{name}Experts", config, torch.bfloat16)
    with pytest.raises(ModelError, match=f"{name}Experts computes its experts in a way of its own"):
        accumulation(module)
    assert accumulation(module.float()) == "hidden"


def test_choices_are_sorted_as_the_eager_loop_visits_them() -> None:
    ids = torch.tensor([[4, 1], [9, 4], [1, 4]]).numpy().astype("uint16")  # of 9 experts: 9 does not count
    routing = sort_by_expert(ids, 9, torch.device("cpu"))
    assert routing.demand == [4, 1]
    assert routing.recency == [1, 4]
    assert routing.span == {1: slice(0, 2), 4: slice(2, 5)}
    # Expert 1: token 2's choice 0, then token 0's choice 1. Expert 4: token 0's choice 0, then 1's and 2's choice 1.
    assert routing.token.tolist() == [2, 0, 0, 1, 2]
    assert routing.choice.tolist() == [4, 1, 0, 3, 5]


@pytest.mark.parametrize("tokens", [1, 2])
def test_nothing_chosen_is_nothing_demanded(tokens: int) -> None:
    routing = sort_by_expert(np.array([[8, 9]] * tokens, np.uint16), 8, torch.device("cpu"))
    assert routing.demand == routing.recency == []
    hidden, weights = torch.ones(tokens, 4), torch.ones(tokens, 2)
    assert not compute([], lambda expert, rows: rows, hidden, weights, routing).any()


def test_one_token_is_sorted_only_if_it_chose_an_expert_twice() -> None:
    alone = sort_by_expert(np.array([[5, 9, 2]], np.uint16), 9, torch.device("cpu"))
    assert isinstance(alone, TokenRouting)
    assert (alone.demand, alone.recency, alone.place) == ([5, 2], [5, 2], {5: 0, 2: 2})
    twice = sort_by_expert(np.array([[5, 2, 5]], np.uint16), 9, torch.device("cpu"))
    assert isinstance(twice, Routing)
    assert (twice.demand, twice.recency, twice.choice.tolist()) == ([5, 2], [2, 5], [1, 0, 2])
