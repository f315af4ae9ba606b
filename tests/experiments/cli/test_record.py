"""`tracekit record` as a user runs it: the words on stderr, the exit code, the JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from tests.helpers.command_line import assert_one_line  # noqa: E402
from tracekit.trace import Trace  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a tiny random Mixtral and a tokenizer of w2 to w31."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.MixtralForCausalLM(config).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(32)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "w2 w3 w4"}\n{"id": "b", "prompt": "w5"}\n')
    return path


def test_records_and_says_so_in_json(model, prompts, tmp_path, call):
    output = tmp_path / "t.trace"
    options = ["--device=cpu", "--max-new-tokens=3", "--batch-size=2", "--logits", "--lookahead=1,2", "--lookahead=1"]
    code, out, err = call("record", model, "--prompts", prompts, "--output", output, *options, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    trace = Trace.open(output, verify=True)
    assert (said["trace"], said["model"]) == (str(output), "tiny")
    assert (said["requests"], said["tokens"], said["steps"]) == (2, 4 + 2 * 2, 3)
    assert (trace.manifest.requests, trace.tokens, trace.manifest.steps) == (2, 4 + 2 * 2, 3)
    assert trace.logits.shape == (8, 3, 4)
    assert trace.lookahead(1).shape == (8, 2, 4)
    assert trace.lookahead(2).shape == (8, 1, 4)


def test_scores_and_prints_a_table(model, prompts, tmp_path, call):
    output = tmp_path / "t.trace"
    code, out, _ = call("record", model, "--prompts", prompts, "--output", output, "--score")
    assert code == 0 and "requests" in out
    assert Trace.open(output).tokens == 4


def test_the_offloading_engine_is_recorded_as_the_model_itself(model, prompts, tmp_path, call):
    plan = tmp_path / "plan.toml"
    plan.write_text('cache.capacity = "2/layer"\nprefetch.predictor = "gate"\n')
    arguments = ["record", model, "--prompts", prompts, *["--max-new-tokens", "4", "--device", "cpu", "--logits"]]
    assert call(*arguments, "--output", tmp_path / "whole")[0] == 0
    assert call(*arguments, "--output", tmp_path / "parts", "--plan", plan)[0] == 0
    whole, parts = Trace.open(tmp_path / "whole"), Trace.open(tmp_path / "parts")
    assert (whole.experts == parts.experts).all() and (whole.token_id == parts.token_id).all()
    assert (whole.logits == parts.logits).all() and (whole.weights == parts.weights).all()
    plan.write_text('cache.capacity = "2/layer"\nmiss.where = "auto"\n')
    answer = call(*arguments, "--output", tmp_path / "no", "--plan", plan)
    assert_one_line(*answer, "does not depend on who computes")
    assert not (tmp_path / "no").exists()


def test_sampling_is_asked_for_by_its_settings(model, prompts, tmp_path, call):
    arguments = ["record", model, "--prompts", prompts, "--max-new-tokens", "2"]
    assert call(*arguments, "--output", tmp_path / "a", "--temperature", "2", "--seed", "4")[0] == 0
    assert call(*arguments, "--output", tmp_path / "b")[0] == 0
    sampled, greedy = Trace.open(tmp_path / "a").manifest, Trace.open(tmp_path / "b").manifest
    assert (sampled.sampling["do_sample"], sampled.sampling["temperature"], sampled.seed) == (True, 2.0, 4)
    assert (greedy.sampling["do_sample"], greedy.seed) == (False, None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "absent/model/here"}, "no model at absent/model/here"),
        ({"--prompts": "absent.jsonl"}, "no prompts at absent.jsonl"),
        ({"--output": "{tmp}"}, "exists: choose another name"),
        ({"--output": "{tmp}/no/such/t.trace"}, "is no directory that can be written to"),
        ({"--lookahead": "3"}, "the model has 3 MoE layers"),
        ({"--lookahead": "one"}, "--lookahead takes distances"),
        ({"--lookahead": "0"}, "at least 1"),
        ({"--dtype": "float33"}, "unknown dtype"),
        ({"--device": "tpu-ish"}, "unknown device"),
        ({"--max-new-tokens": "0"}, "max_new_tokens must be at least 1"),
        ({"--max-new-tokens": "1000"}, "exceeds the model's 64 positions"),
        ({"--temperature": "0"}, "temperature must be above 0"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(model, prompts, tmp_path, call, changes, why):
    output = tmp_path / "t.trace"
    settings = {"model": str(model), "--prompts": str(prompts), "--output": str(output), "--device": "cpu"}
    settings |= {"--max-new-tokens": "3"}
    settings |= {name: value.replace("{tmp}", str(tmp_path)) for name, value in changes.items()}
    assert_one_line(*call("record", settings.pop("model"), *(part for pair in settings.items() for part in pair)), why)
    assert not output.exists()


def test_help_needs_no_torch():
    code = (
        "import sys, experiments.cli.record\n"
        "assert not {'torch', 'transformers', 'polars'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
