import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from tracekit.errors import ModelError
from tracekit.recorder.gate import find_gate
from tracekit.recorder.layers import model_depth
from tracekit.recorder.seam import moe_layers, router_logits, seam_names, text_decoder

# family: (experts, top-k, parameters of one expert with biases, score function, model layers)
EXPECTED = {
    "mixtral": (4, 2, 3 * 48 * 32, "softmax", [0, 1, 2]),
    "qwen3_moe": (8, 3, 3 * 16 * 32, "softmax", [0, 1, 2]),
    "olmoe": (8, 2, 3 * 48 * 32, "softmax", [0, 1, 2]),
    "deepseek_v3": (8, 3, 3 * 16 * 32, "sigmoid", [1, 2]),
    "gpt_oss": (4, 2, 3 * 48 * 32 + 2 * 48 + 32, "softmax", [0, 1, 2]),
}


def test_finds_the_moe_layers_of_every_family(build, family):
    experts, top_k, params, score, places = EXPECTED[family]
    model = build(family)
    layers = moe_layers(model)
    assert [layer.index for layer in layers] == list(range(len(places)))
    assert [layer.model_layer for layer in layers] == places
    assert model_depth(model) == 3
    for layer in layers:
        assert (layer.num_experts, layer.top_k, layer.score_function) == (experts, top_k, score)
        assert (layer.expert_params, layer.expert_bytes) == (params, params * 4)
        assert model.get_submodule(layer.name) is layer.experts
        assert layer.router.weight.shape == (experts, 32)


def test_bytes_and_logits_follow_the_dtype(build, family):
    layer = moe_layers(build(family, torch.bfloat16))[0]
    assert layer.expert_bytes == EXPECTED[family][2] * 2
    # DeepSeek computes its gate in float32 whatever the model's dtype; the others in the dtype.
    assert layer.gate.form == ("linear-fp32" if family == "deepseek_v3" else "linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_logits_are_bit_for_bit_the_routers_own(build, family, dtype):
    generator = torch.Generator().manual_seed(1)
    for layer in moe_layers(build(family, dtype)):
        for tokens in (1, 5, 33):
            hidden = torch.randn(tokens, 32, generator=generator).to(dtype)
            assert torch.equal(router_logits(layer, hidden), layer.router(hidden)[0])


def test_works_on_the_meta_device(build, family):
    experts, top_k, params, *_ = EXPECTED[family]
    config = build(family).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = moe_layers(model)
    assert len(seam_names(text_decoder(model)[1])) == len(layers)
    assert {(layer.num_experts, layer.top_k, layer.expert_params) for layer in layers} == {(experts, top_k, params)}
    assert {layer.gate.form for layer in layers} == {"output"}


def test_a_dense_model_is_refused_in_one_line():
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    assert seam_names(text_decoder(model)[1]) == []
    with pytest.raises(ModelError, match="no experts") as caught:
        moe_layers(model)
    assert "\n" not in str(caught.value)


class Router(nn.Module):
    """A router whose logits are `change(weight @ hidden)`."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 16, generator=torch.Generator().manual_seed(3)))
        self.change = change

    def forward(self, hidden):
        logits = self.change(functional.linear(hidden, self.weight))
        weights, indices = logits.softmax(-1).topk(2)
        return logits, weights, indices


def test_a_router_that_does_more_than_project_is_called():
    router = Router(lambda logits: 5 * torch.tanh(logits / 5))
    gate, score = find_gate(router, nn.Module(), 6, 16, torch.float32)
    hidden = torch.randn(7, 16)
    assert (gate.form, score) == ("output", "softmax")
    assert torch.equal(gate.logits(hidden), router(hidden)[0])


def test_probabilities_are_turned_into_logits():
    router = Router(lambda logits: logits.softmax(-1))
    gate, score = find_gate(router, nn.Module(), 6, 16, torch.float32)
    hidden = torch.randn(7, 16)
    assert gate.of_probabilities
    assert score == "softmax"
    torch.testing.assert_close(gate.logits(hidden).softmax(-1), router(hidden)[0])


class BiasedRouter(Router):
    def forward(self, hidden, expert_bias):
        logits = functional.linear(hidden, self.weight)
        scores = logits.sigmoid()
        indices = (scores + expert_bias).topk(2).indices
        return 2 * logits, 3 * scores.gather(-1, indices), indices


def test_a_selection_bias_kept_by_the_block_is_passed():
    block, router = nn.Module(), BiasedRouter()
    block.expert_bias = torch.arange(6.0)
    gate, _ = find_gate(router, block, 6, 16, torch.float32)
    hidden = torch.randn(7, 16)
    assert gate.form == "output"
    assert torch.equal(gate.logits(hidden), router(hidden, block.expert_bias)[0])


class TokenRouter(Router):
    def forward(self, hidden, input_ids):
        return super().forward(hidden)


def test_a_router_that_cannot_be_called_alone_is_taken_as_its_projection():
    router = TokenRouter()
    gate, score = find_gate(router, nn.Module(), 6, 16, torch.float32)
    hidden = torch.randn(7, 16)
    assert (gate.form, score) == ("linear", "unknown")
    assert torch.equal(gate.logits(hidden), functional.linear(hidden, router.weight))


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 5)

    def forward(self, hidden):
        return hidden[:, :2], torch.zeros(len(hidden), 2, dtype=torch.long)


def test_a_router_without_logits_says_so():
    gate, _ = find_gate(Opaque(), nn.Module(), 6, 16, torch.float32)
    with pytest.raises(ModelError, match="does not show its logits"):
        gate.logits(torch.randn(3, 16))
