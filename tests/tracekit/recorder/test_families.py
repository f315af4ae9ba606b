"""Every family of the installed transformers, held to what docs/families.md says of it."""

import pytest
import torch
import transformers

from tests.tracekit.recorder.exactness import DOCUMENT, Numbers, documented, row
from tests.tracekit.recorder.families import build, packages
from tracekit.recorder.encoding import continues
from tracekit.recorder.models import load_model
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import Prompt
from tracekit.recorder.recorder import record
from tracekit.trace import Trace

REWRITE = "run: python -m tests.tracekit.recorder.exactness"
PROMPTS = [[5, 6, 7, 8], [9, 10, 3]]
SEVERAL = ("mixtral", "deepseek_v3", "llama4", "dbrx", "jetmoe", "longcat_flash", "switch_transformers", "nllb_moe")


@pytest.fixture(scope="module")
def found():
    transformers.utils.logging.set_verbosity_error()
    return packages()


def test_the_document_lists_the_families_there_are(found):
    if transformers.__version__ not in DOCUMENT.read_text():
        pytest.skip(f"the document is of another transformers than {transformers.__version__}")
    assert sorted(documented()) == sorted(found), REWRITE


def test_at_least_forty_families_record_exactly():
    assert sum(line.count("|") > 3 for line in documented().values()) >= 40


@pytest.mark.parametrize("package", sorted(documented()))
def test_a_family_records_exactly(package, found):
    if package not in found:
        pytest.skip(f"transformers {transformers.__version__} has no {package}")
    assert row(package, found[package])[1] == documented()[package], REWRITE


def prompts_of(lists):
    return [Prompt(id=str(number), prompt=" ".join(map(str, tokens))) for number, tokens in enumerate(lists)]


def recorded(model, path, prompts=None, tokenizer=None, **options):
    """The trace of a model's recording."""
    path = record(model, tokenizer or Numbers(), prompts or prompts_of(PROMPTS), path, RecordOptions(**options))
    return Trace.open(path)


def tokens_of(model, watched, tmp_path):
    """What a model writes to each prompt, singly, in its ordinary loop; with `watched`, while it is recorded."""
    if not watched:
        batches = [continues(model)(model, [prompt], max_new_tokens=5, stop=()) for prompt in PROMPTS]
        for batch in batches:
            list(batch.passes())
        return [batch.generated[0][:-1] for batch in batches]
    trace = recorded(model, tmp_path / "t.trace", max_new_tokens=5, logits=True)
    decoded = trace.phase == 1
    return [trace.token_id[decoded & (trace.request == request)].tolist() for request in range(len(PROMPTS))]


@pytest.mark.parametrize("package", SEVERAL)
def test_recording_changes_no_token_and_no_logit(package, found, tmp_path):
    model = build(package, found[package])
    model.config.eos_token_id = model.generation_config.eos_token_id = -1
    plain = tokens_of(model, False, tmp_path)
    assert tokens_of(model, True, tmp_path) == plain
    assert tokens_of(model, False, tmp_path) == plain
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("package", ["switch_transformers", "jetmoe", "llama4"])
def test_options_hold_for_families_off_the_seam(package, found, tmp_path):
    """Batches, sampling by seed, token limits and --score do what they do for any other."""
    model = build(package, found[package])
    sampled = {"max_new_tokens": 4, "do_sample": True, "temperature": 2.0}
    one = recorded(model, tmp_path / "a", **sampled, seed=1)
    two = recorded(model, tmp_path / "b", **sampled, seed=1, batch_size=2)
    for request in range(2):
        rows = [trace.request == request for trace in (one, two)]
        assert one.token_id[rows[0]].tolist() == two.token_id[rows[1]].tolist()
        assert (one.experts[rows[0]] == two.experts[rows[1]]).all()
    assert recorded(model, tmp_path / "c", **sampled, seed=2).token_id.tolist() != one.token_id.tolist()
    scored = recorded(model, tmp_path / "d", score=True, batch_size=2)
    assert scored.tokens == sum(map(len, PROMPTS))
    assert (scored.phase == 0).all()


def test_an_encoder_and_its_decoder_are_recorded_as_they_run(found, tmp_path):
    model = build("switch_transformers", found["switch_transformers"])
    trace = recorded(model, tmp_path / "t", prompts_of([[5, 6, 7]]), max_new_tokens=3)
    assert trace.step.tolist() == [0, 0, 0, 1, 2, 3][: trace.tokens]
    assert trace.position.tolist() == list(range(trace.tokens))
    assert trace.phase.tolist() == [0, 0, 0, 0, 1, 1][: trace.tokens]
    used = trace.experts[:, :, 0] != 65535
    assert used[:3, :3].any() and not used[:3, 3:].any()
    assert used[3:, 3:].all() and not used[3:, :3].any()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("package", ["switch_transformers", "nllb_moe", "llama4", "qwen3_vl_moe", "dbrx"])
def test_a_saved_model_is_loaded_as_what_generates_text(package, found, tokenizer, tmp_path):
    saved = build(package, found[package])
    saved.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded, words = load_model(tmp_path / "model", "float32", "cpu")
    assert type(loaded) is type(saved)
    prompts = [Prompt(id="a", prompt="w3 w4 w5")]
    one = recorded(saved, tmp_path / "a", prompts, words, max_new_tokens=3)
    two = recorded(loaded, tmp_path / "b", prompts, words, max_new_tokens=3)
    assert (one.experts == two.experts).all()


@pytest.mark.parametrize("package", ["olmoe", "deepseek_v3", "zaya", "switch_transformers", "nllb_moe"])
def test_weights_that_rest_elsewhere_record_the_same(package, found, tmp_path):
    """A model whose weights accelerate brings to the device layer by layer, as device_map does with part of them."""
    accelerate = pytest.importorskip("accelerate")
    model = build(package, found[package])
    options = {"max_new_tokens": 4, "batch_size": 2, "logits": True}
    one = recorded(model, tmp_path / "resident", **options)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    two = recorded(model, tmp_path / "offloaded", **options)
    assert one.manifest.score_function == two.manifest.score_function
    for column in ("token_id", "experts", "weights", "logits"):
        assert (getattr(one, column) == getattr(two, column)).all(), column
