"""A shape read from a configuration: transformers' own modules, parameter for parameter, for every known family."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.shapes.config import FAMILIES, load_config_shape, shape_of_config
from tracekit.errors import ShapeError

GEMMA = {
    "hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
    "num_global_key_value_heads": 2, "global_head_dim": 32, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24,
}  # fmt: skip
# What a family's default configuration leaves out.
GIVEN: dict[str, dict[str, Any]] = {
    "gemma4_text": GEMMA,
    "deepseek_v2": {"num_experts_per_tok": 6, "n_routed_experts": 64},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_counted_to_the_parameter(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with transformers' own modules")
    transformers: Any = pytest.importorskip("transformers", reason="compares with transformers' own modules")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if kind not in known:
        pytest.skip(f"the installed transformers has no {kind}")
    config = known[kind](**GIVEN.get(kind, {}))
    config.save_pretrained(tmp_path)  # the file as transformers writes it
    shape = load_config_shape(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    sizes |= {key: value.numel() for key, value in model.named_buffers() if key.endswith("e_score_correction_bias")}
    assert shape.total_params == sum(sizes.values())
    experts = sum(size for key, size in sizes.items() if ".experts." in key)
    assert experts == len(shape.moe_layers) * shape.experts * shape.expert_params


def test_a_multimodal_file_and_what_a_hub_file_leaves_unsaid() -> None:
    inner = GEMMA | {"model_type": "gemma4_text", "vocab_size": 100, "intermediate_size": 48, "sliding_window": 8}
    shape = shape_of_config({"model_type": "gemma4", "text_config": inner}, "x")
    assert (
        shape.tied_embeddings
        and shape.windowed is not None
        and shape.windowed.layers == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    )
    assert shape.key_value_heads(0) == (4, 16) and shape.key_value_heads(5) == (2, 32)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"model_type": "llama"}', "is none whose sizes are known"),
        ('{"model_type": "mixtrall"}', "did you mean 'mixtral'"),
        ('{"model_type": 3}', "is none whose sizes"),
        ('{"model_type": "mixtral"}', "lacks num_hidden_layers or n_layers or num_layers"),
        ('{"model_type": "mixtral", "num_hidden_layers": 100000}', "100000 layers are more than"),
        ('{"model_type": "mixtral", "num_hidden_layers": 2, "num_attention_heads": "8"}', "is no whole number from 1"),
        ('{"model_type": "mixtral", "num_hidden_layers": 2, "num_attention_heads": 1e99}', "is no whole number from 1"),
        ('{"model_type": "mixtral", "num_hidden_layers": 2, "num_attention_heads": true}', "is no whole number from 1"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ShapeError, match=says) as caught:
        load_config_shape(tmp_path / "config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1100


@pytest.mark.parametrize(
    "change", [{"layer_types": ["x"]}, {"mlp_layer_types": 3}, {"mlp_only_layers": [-1]}, {"top_k": 0}]
)
def test_lists_of_layers_are_checked(change: dict[str, object]) -> None:
    config: dict[str, object] = {
        "model_type": "qwen3_moe", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 9,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    }  # fmt: skip
    assert shape_of_config(config, "x").total_params > 0
    if "top_k" in change:
        change = {"num_experts_per_tok": 5}
    with pytest.raises(ShapeError):
        shape_of_config(json.loads(json.dumps(config | change)), "x")
