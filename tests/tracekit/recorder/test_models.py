import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from tracekit.errors import ModelError
from tracekit.recorder.layers import routed_layers
from tracekit.recorder.models import load_model


@pytest.fixture
def saved(build, tokenizer, tmp_path):
    """A saved tiny Mixtral, in two shards."""
    folder = tmp_path / "tiny"
    build("mixtral").save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def edit(file, **changes):
    """Change a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(why, *args, **kwargs):
    with pytest.raises(ModelError, match=why) as caught:
        load_model(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_loads_what_was_saved(saved, build, tokenizer):
    model, loaded = load_model(saved, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    for name, tensor in build("mixtral").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert loaded("w3 w4")["input_ids"] == [5, 6]
    assert load_model(saved, "bf16", "cpu")[0].dtype == torch.bfloat16


def test_experts_of_uneven_width_can_be_run(tokenizer, tmp_path):
    """Rows of 12 bfloat16 are 24 bytes, which torch's grouped matrix product refuses."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, device="cpu")
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()


def test_training_settings_stay_out_of_forward_passes(saved):
    """With router logits asked for, transformers computes an auxiliary loss, which fails over padded prompts."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"output_router_logits": True}))
    model, _ = load_model(saved, device="cpu")
    tokens, mask = torch.tensor([[0, 3, 4], [5, 6, 7]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    generated = model.generate(tokens, attention_mask=mask, max_new_tokens=2, do_sample=False)
    assert generated.shape == (2, 5)


def test_unknown_names(saved, tmp_path):
    refused("no model at .*absent: the directory does not exist", tmp_path / "absent")
    refused("neither a directory nor in the local model cache, and nothing is downloaded", "nobody/nothing-here")
    refused("neither a directory nor", "no such model!")
    refused("is a file", saved / "config.json")
    refused("directory or a hub name", "")
    refused("directory or a hub name", "a\0b")
    refused("unknown dtype 'float23'.*did you mean 'float32'", saved, "float23")
    refused("unknown device 'cpux'", saved, device="cpux")
    refused("'meta' is not supported", saved, device="meta")
    refused("'cuda:99' is not there", saved, device="cuda:99")


def test_not_a_model(tmp_path):
    refused("has no config.json", tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    refused("is not JSON", tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    refused("is not JSON", tmp_path)
    (tmp_path / "config.json").write_text("[]")
    refused("does not hold a JSON object", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    refused("cannot be loaded", tmp_path)


def test_remote_code_is_not_run(saved):
    code = {"AutoConfig": "mystery.Config", "AutoModelForCausalLM": "mystery.Model"}
    edit(saved / "config.json", model_type="mystery", auto_map=code)
    (saved / "mystery.py").write_text("raise SystemExit('remote code ran')")
    refused("cannot be loaded", saved)


@pytest.mark.parametrize("layers", [10**9, 0, "many"])
def test_absurd_configurations_do_not_hang(saved, layers):
    edit(saved / "config.json", num_hidden_layers=layers)
    refused("num_hidden_layers", saved)


def test_a_dense_model_is_refused_before_its_weights_are_read(tmp_path, tokenizer):
    config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not even weights")
    refused("is a llama model without experts", tmp_path)


def test_damaged_weights(saved):
    shard = sorted(saved.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for content in (whole[:-100], b"", whole[:4], b"\xff" * 8 + whole[8:], whole + b"x"):
        shard.write_bytes(content)
        refused(f"{shard.name} is truncated or damaged", saved)
    shard.unlink()
    refused(f"{shard.name} is missing", saved)


def test_shards_without_their_index(saved):
    (saved / "model.safetensors.index.json").unlink()
    refused("holds [0-9]+ shards .model-00001-of-.* but no model.safetensors.index.json, which says", saved)


def test_more_experts_per_token_than_there_are(saved):
    edit(saved / "config.json", num_experts_per_tok=99)
    model, _ = load_model(saved, device="cpu")
    with pytest.raises(ModelError, match=r"= 99 asks each token for more experts than the [0-9]+ there are"):
        routed_layers(model)


def test_missing_tensors_are_not_made_up(saved):
    index = saved / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={name: file for name, file in files.items() if file == min(files.values())})
    refused("lacks [0-9]+ of the model's weights", saved)


def test_an_index_cannot_point_elsewhere(saved):
    index = saved / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=files | {"lm_head.weight": "../../elsewhere.safetensors"})
    refused("outside the model's directory", saved)


def test_weights_of_another_shape(saved):
    edit(saved / "config.json", intermediate_size=40)
    refused("but its config.json makes it", saved)


def test_pickled_weights_are_not_read(saved):
    for file in [*saved.glob("*.safetensors"), saved / "model.safetensors.index.json"]:
        file.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused("only safetensors weights are read", saved)


def test_no_tokenizer(saved):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).unlink()
    refused("no tokenizer", saved)


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, tracekit.recorder, tracekit.recorder.options, tracekit.recorder.prompts\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
