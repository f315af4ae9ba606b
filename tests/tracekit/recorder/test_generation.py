"""The decoding loop against transformers' own generate, and batches against single requests."""

import numpy as np
import pytest
import torch

from tracekit.errors import ModelError
from tracekit.recorder.generation import Decoding, Scoring
from tracekit.recorder.sampling import Sampler
from tracekit.rows import DECODE, PREFILL

PROMPTS = [[5, 9, 3], [7], [20, 21, 22, 23, 24, 25, 26], [40, 2, 61, 33]]


def generate(model, prompt, count, stop):
    """The new tokens that transformers gives, greedily."""
    ids = torch.tensor([prompt])
    stop_ids = list(stop) or None
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=stop_ids,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def run(model, prompts, **settings):
    batch = Decoding(model, prompts, **settings)
    return batch, list(batch.passes())


def test_greedy_decoding_equals_generate_singly_and_in_batches(build, family):
    model = build(family)
    free = [generate(model, prompt, 12, ()) for prompt in PROMPTS]
    # Stopping at a token that some of them meet midway makes requests leave the batch at different times.
    stop = {free[0][4], free[2][7]}
    expected = [generate(model, prompt, 12, stop) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in expected}) > 1
    batch, _ = run(model, PROMPTS, max_new_tokens=12, stop=stop)
    assert batch.generated == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        single, _ = run(model, [prompt], max_new_tokens=12, stop=stop)
        assert single.generated == [tokens]


def test_rows_of_the_passes(build):
    model = build("mixtral")
    batch, passes = run(model, PROMPTS[:2], max_new_tokens=3)
    prefill, *decodes = passes
    assert prefill.phase == PREFILL
    assert prefill.request.tolist() == [0, 0, 0, 1]
    assert prefill.position.tolist() == [0, 1, 2, 0]
    assert prefill.token_id.tolist() == [5, 9, 3, 7]
    assert prefill.rows.tolist() == [0, 1, 2, 5]  # the second prompt is padded on the left by two
    assert len(decodes) == 2  # the last new token is never fed
    for number, decode in enumerate(decodes):
        assert decode.phase == DECODE
        assert decode.request.tolist() == [0, 1]
        assert decode.position.tolist() == [3 + number, 1 + number]
        assert decode.token_id.tolist() == [batch.generated[0][number], batch.generated[1][number]]
        assert decode.rows.tolist() == [0, 1]


def test_scoring_routes_each_token_once_in_chunks(build):
    passes = list(Scoring(build("mixtral"), PROMPTS, chunk=3).passes())
    assert [forward.request.tolist() for forward in passes] == [
        [0, 0, 0, 1, 2, 2, 2, 3, 3, 3],
        [2, 2, 2, 3],
        [2],
    ]
    assert [forward.position.tolist() for forward in passes] == [
        [0, 1, 2, 0, 0, 1, 2, 0, 1, 2],
        [3, 4, 5, 3],
        [6],
    ]
    for forward in passes:
        assert forward.phase == PREFILL
        for request, position, token in zip(forward.request, forward.position, forward.token_id, strict=True):
            assert PROMPTS[request][position] == token


def test_sampling_follows_the_nucleus():
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2]))
    sampler = Sampler(1.0, 0.65, np.random.default_rng(0))
    counts = np.bincount([sampler.draw(logits) for _ in range(2000)], minlength=4)
    # 0.4 alone is below 0.65, 0.4 + 0.3 reaches it: tokens 1 and 2 stay, 4 to 3.
    assert counts[0] == counts[3] == 0
    assert abs(counts[1] / 2000 - 4 / 7) < 0.04


def test_temperature_sharpens():
    logits = np.log(np.array([0.4, 0.6]))
    sampler = Sampler(0.25, 1.0, np.random.default_rng(0))
    share = np.mean([sampler.draw(logits) for _ in range(2000)])
    assert abs(share - 0.6**4 / (0.6**4 + 0.4**4)) < 0.04


def test_sampling_does_not_depend_on_the_batch(build):
    model = build("qwen3_moe")

    def samplers(requests):
        return [Sampler(1.5, 0.9, np.random.default_rng([7, request])) for request in requests]

    batch, _ = run(model, PROMPTS, max_new_tokens=8, samplers=samplers(range(4)))
    for request, prompt in enumerate(PROMPTS):
        single, _ = run(model, [prompt], max_new_tokens=8, samplers=samplers([request]))
        assert single.generated[0] == batch.generated[request]


def test_damaged_weights_are_noticed(build):
    model = build("mixtral")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        run(model, PROMPTS, max_new_tokens=2)


def test_a_failing_kernel_is_reported_in_one_line(build):
    model = build("mixtral")
    model.lm_head.weight.data = model.lm_head.weight.data[:, :5]
    with pytest.raises(ModelError, match="MixtralForCausalLM failed in a forward pass"):
        run(model, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_nothing_to_feed_is_refused(build, prompts):
    with pytest.raises(ModelError, match="at least one"):
        Decoding(build("mixtral"), prompts, max_new_tokens=1)
