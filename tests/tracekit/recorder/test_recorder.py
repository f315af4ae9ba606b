import numpy as np
import pytest

from tracekit.errors import ModelError, TraceError
from tracekit.recorder.generation import Decoding
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import Prompt
from tracekit.recorder.recorder import record
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

TEXTS = ["w3 w7 w1", "w5", "w18 w19 w20 w21 w22 w23 w24", "w38 w40 w59 w31", "w2 w2"]
PROMPTS = [Prompt(id=f"p{number}", prompt=text) for number, text in enumerate(TEXTS)]
LENGTHS = [len(text.split()) for text in TEXTS]


def read(path):
    """Everything a trace holds, as comparable arrays."""
    trace = Trace.open(path, verify=True)
    names = ("step", "request", "position", "phase", "token_id", "experts", "weights", "logits")
    arrays = {name: getattr(trace, name) for name in names}
    arrays["lookahead"] = trace.lookahead(1)
    return trace, arrays


def assert_same(one, other):
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def rows_of(arrays, request):
    """The rows of one request, less what says where it stood in the whole."""
    rows = arrays["request"] == request
    return {
        name: array[rows] for name, array in arrays.items() if name not in ("step", "request") and array is not None
    }


def test_a_trace_holds_what_was_fed(build, family, tokenizer, tmp_path):
    model = build(family)
    options = RecordOptions(max_new_tokens=4, batch_size=2, logits=True, lookahead=(1,))
    path = record(model, tokenizer, PROMPTS, tmp_path / "t.trace", options)
    trace, arrays = read(path)
    manifest = trace.manifest
    assert manifest.complete
    assert (manifest.requests, manifest.tokens) == (5, len(arrays["step"]))
    for request, text in enumerate(TEXTS):
        rows = rows_of(arrays, request)
        length = LENGTHS[request]
        fed = rows["token_id"].tolist()
        assert fed[:length] == [int(word[1:]) + 2 for word in text.split()]
        assert rows["position"].tolist() == list(range(len(fed)))
        assert rows["phase"].tolist() == [PREFILL] * length + [DECODE] * (len(fed) - length)
        decoding = Decoding(model, [fed[:length]], max_new_tokens=4, stop={1})
        list(decoding.passes())
        assert fed[length:] == decoding.generated[0][:-1]
    # Batches follow each other: a prefill step of all requests, then a step per token of those left.
    assert np.all(np.diff(arrays["step"]) >= 0)
    assert manifest.steps == arrays["step"][-1] + 1
    for step in range(manifest.steps):
        rows = arrays["step"] == step
        requests, phases = arrays["request"][rows], arrays["phase"][rows]
        assert len(set(phases.tolist())) == 1
        assert len(set((requests // 2).tolist())) == 1
        assert np.all(np.diff(requests) >= 0)
        if phases[0] == DECODE:
            assert len(set(requests.tolist())) == len(requests)


def test_padding_and_company_change_nothing(build, family, tokenizer, tmp_path):
    model = build(family)
    batched = RecordOptions(max_new_tokens=5, batch_size=5, logits=True, lookahead=(1,))
    alone = RecordOptions(max_new_tokens=5, batch_size=1, logits=True, lookahead=(1,))
    _, together = read(record(model, tokenizer, PROMPTS, tmp_path / "batched.trace", batched))
    _, apart = read(record(model, tokenizer, PROMPTS, tmp_path / "alone.trace", alone))
    for request in range(5):
        one, other = rows_of(together, request), rows_of(apart, request)
        for name in one:
            if one[name].dtype == np.float16:
                np.testing.assert_allclose(one[name], other[name], rtol=5e-3, atol=5e-3, err_msg=name)
            else:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_scoring_routes_the_text_and_nothing_else(build, tokenizer, tmp_path):
    model = build("qwen3_moe")
    _, whole = read(record(model, tokenizer, PROMPTS, tmp_path / "a.trace", RecordOptions(score=True, batch_size=1)))
    trace, chunked = read(
        record(model, tokenizer, PROMPTS, tmp_path / "b.trace", RecordOptions(score=True, batch_size=3, chunk=2))
    )
    assert trace.manifest.tokens == sum(LENGTHS)
    assert (chunked["phase"] == PREFILL).all()
    assert trace.manifest.steps == 4 + 2  # seven tokens in twos, then four in twos
    for request in range(5):
        one, other = rows_of(whole, request), rows_of(chunked, request)
        np.testing.assert_array_equal(one["experts"], other["experts"])
        np.testing.assert_array_equal(one["token_id"], other["token_id"])


def test_manifest_describes_the_recording(build, tokenizer, tmp_path):
    model = build("deepseek_v3")
    model.config._name_or_path = "/somewhere/on/a/disk/tiny-v3"
    options = RecordOptions(max_new_tokens=2, batch_size=2, do_sample=True, temperature=0.7, top_p=0.9, seed=5)
    manifest = Trace.open(record(model, tokenizer, PROMPTS, tmp_path / "t.trace", options)).manifest
    assert manifest.source == "record"
    assert (manifest.model.id, manifest.model.family, manifest.model.dtype) == (
        "tiny-v3",
        "deepseek_v3",
        "float32",
    )
    assert len(manifest.model.config_sha256) == len(manifest.prompts_sha256) == 64
    assert (manifest.moe_layers, manifest.model_layers) == ([1, 2], 3)
    assert (manifest.experts_per_layer, manifest.top_k, manifest.score_function) == ([8, 8], 3, "sigmoid")
    assert manifest.expert_bytes == [4 * params for params in manifest.expert_params] == [4 * 3 * 16 * 32] * 2
    assert set(manifest.versions) == {"moe-tracekit", "torch", "transformers", "tokenizers"}
    assert manifest.seed == 5
    assert manifest.sampling == {
        "score": False,
        "batch_size": 2,
        "max_new_tokens": 2,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def test_a_cached_snapshot_keeps_its_name_and_revision(build, tokenizer, tmp_path):
    model = build("mixtral")
    model.config._name_or_path = "/h/hub/models--some--name/snapshots/0123abcd"
    info = Trace.open(record(model, tokenizer, PROMPTS[:1], tmp_path / "t", RecordOptions(score=True))).manifest.model
    assert (info.id, info.revision) == ("some/name", "0123abcd")


def test_the_same_recording_gives_the_same_bytes(build, tokenizer, tmp_path):
    options = RecordOptions(max_new_tokens=6, batch_size=2, do_sample=True, temperature=2.0, seed=3)
    paths = [record(build("olmoe"), tokenizer, PROMPTS, tmp_path / name, options) for name in ("a", "b")]
    contents = [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]
    assert contents[0] == contents[1]


def test_sampled_text_does_not_depend_on_the_batches(build, tokenizer, tmp_path):
    model = build("qwen3_moe")
    same_text = [Prompt(id=str(number), prompt="w4 w9") for number in range(4)]
    read_tokens = []
    for size in (1, 3):
        options = RecordOptions(max_new_tokens=8, batch_size=size, do_sample=True, temperature=2.0, seed=1)
        _, arrays = read(record(model, tokenizer, same_text, tmp_path / f"{size}.trace", options))
        read_tokens.append([rows_of(arrays, request)["token_id"].tolist() for request in range(4)])
    assert read_tokens[0] == read_tokens[1]
    assert len({tuple(tokens) for tokens in read_tokens[0]}) == 4  # each request draws for itself


class StopError(Exception):
    pass


def stop_after(passes):
    """A progress callback that fails after so many passes."""
    seen = []

    def progress(done, total):
        seen.append(done)
        if len(seen) == passes:
            raise StopError

    return progress


@pytest.mark.parametrize("shard_rows", [1, 20])
@pytest.mark.parametrize("passes", [1, 4, 7, 9])
def test_resuming_gives_the_uninterrupted_trace(build, tokenizer, tmp_path, shard_rows, passes):
    model = build("mixtral")
    settings = {
        "max_new_tokens": 4,
        "batch_size": 2,
        "logits": True,
        "lookahead": (1,),
        "shard_rows": shard_rows,
    }
    whole = record(model, tokenizer, PROMPTS, tmp_path / "whole.trace", RecordOptions(**settings))
    cut = tmp_path / "cut.trace"
    with pytest.raises(StopError):
        record(model, tokenizer, PROMPTS, cut, RecordOptions(**settings), stop_after(passes))
    assert not Trace.open(cut).manifest.complete
    finished = Trace.open(cut).manifest.requests
    seen = []
    record(
        model,
        tokenizer,
        PROMPTS,
        cut,
        RecordOptions(**settings, resume=True),
        lambda done, total: seen.append((done, total)),
    )
    assert_same(read(whole)[1], read(cut)[1])
    assert Trace.open(whole).digest == Trace.open(cut).digest
    # Finished requests were skipped, and count as done.
    assert seen[0][0] > 4 * finished
    assert seen[-1] == (20, 20)


@pytest.mark.parametrize(
    ("changed", "prompts"),
    [({"max_new_tokens": 5}, PROMPTS), ({"batch_size": 2}, PROMPTS), ({}, PROMPTS[1:])],
    ids=["tokens", "batches", "prompts"],
)
def test_resume_refuses_another_recording(build, tokenizer, tmp_path, changed, prompts):
    model, path = build("mixtral"), tmp_path / "t.trace"
    options = {"max_new_tokens": 4, "shard_rows": 1}
    with pytest.raises(StopError):
        record(model, tokenizer, PROMPTS, path, RecordOptions(**options), stop_after(6))
    with pytest.raises(TraceError, match="exists"):
        record(model, tokenizer, PROMPTS, path, RecordOptions(**options))
    with pytest.raises(TraceError, match="cannot resume"):
        record(model, tokenizer, prompts, path, RecordOptions(**(options | changed), resume=True))


def test_unfit_prompts_are_refused_before_anything_is_written(build, tokenizer, tmp_path):
    model, path = build("mixtral"), tmp_path / "t.trace"
    with pytest.raises(ModelError, match="'p2' has 7 tokens; with 60 new ones it exceeds the model's 64 positions"):
        record(model, tokenizer, PROMPTS, path, RecordOptions(max_new_tokens=60))
    with pytest.raises(ModelError, match="no prompts"):
        record(model, tokenizer, [], path)
    model.resize_token_embeddings(40)
    with pytest.raises(ModelError, match="'p3' has token 61, but the model knows 40"):
        record(model, tokenizer, PROMPTS, path, RecordOptions(max_new_tokens=4))
    assert not path.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"lookahead": (0,)},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ModelError, match=next(iter(wrong))):
        RecordOptions(**wrong)


def test_training_mode_is_put_back(build, tokenizer, tmp_path):
    model = build("mixtral").train()
    record(model, tokenizer, PROMPTS[:1], tmp_path / "t.trace", RecordOptions(max_new_tokens=2))
    assert model.training
