"""Recorded routing against a second computation of it from the hidden states that a plain hook sees."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tracekit.errors import ModelError
from tracekit.recorder.collector import RoutingCollector
from tracekit.recorder.seam import moe_layers


def gate_inputs(model, ids):
    """The hidden states [tokens, hidden] entering each gate, seen without any of our hooks."""
    seen = []
    handles = [
        layer.router.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, 32).clone()))
        for layer in moe_layers(model)
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return seen


def reference(family, router, hidden, top_k):
    """(logits, ids, weights) of one gate as its paper defines them, ids by falling selection score."""
    bias = router.bias if family == "gpt_oss" else None
    logits = functional.linear(hidden, router.weight, bias)
    if family == "deepseek_v3":  # arXiv 2412.19437, section 2.1.2: sigmoid affinities, biased choice, best group only
        scores = logits.sigmoid()
        biased = scores + router.e_score_correction_bias
        groups = biased.view(-1, 2, 4).topk(2).values.sum(-1)
        other = (torch.arange(8) // 4)[None] != groups.argmax(-1)[:, None]
        ids = biased.masked_fill(other, float("-inf")).argsort(-1, descending=True)[:, :top_k]
        weights = scores.gather(-1, ids)
        return logits, ids, weights / weights.sum(-1, keepdim=True) * router.routed_scaling_factor
    probabilities = logits.softmax(-1)
    ids = probabilities.argsort(-1, descending=True)[:, :top_k]
    weights = probabilities.gather(-1, ids)
    if family != "olmoe":  # OLMoE does not normalise over the chosen (norm_topk_prob false)
        weights = weights / weights.sum(-1, keepdim=True)
    return logits, ids, weights


def by_expert(ids, weights):
    order = np.argsort(ids, axis=-1)
    return np.take_along_axis(ids, order, -1), np.take_along_axis(weights, order, -1)


@pytest.fixture
def ids():
    return torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(5))


def test_ids_weights_logits_and_lookahead_equal_a_recomputation(build, family, ids):
    model = build(family)
    layers = moe_layers(model)
    hidden = gate_inputs(model, ids)
    distances = tuple(range(1, len(layers)))
    with torch.no_grad(), RoutingCollector(model, logits=True, lookahead=distances) as collector:
        model(ids)
    routing = collector.take()
    assert routing.experts.shape == (18, len(layers), layers[0].top_k)
    assert routing.experts.dtype == np.uint16
    for layer in layers:
        logits, chosen, weights = reference(family, layer.router, hidden[layer.index], layer.top_k)
        got = by_expert(routing.experts[:, layer.index], routing.weights[:, layer.index])
        expected = by_expert(chosen.numpy(), weights.detach().numpy())
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1], rtol=2e-3)
        np.testing.assert_array_equal(routing.logits[:, layer.index], logits.detach().half().numpy())
    for distance in distances:
        ahead = routing.lookahead[distance]
        assert ahead.shape == (18, len(layers) - distance, layers[0].num_experts)
        for index in range(len(layers) - distance):
            # Section 3.2 of arXiv 2312.17238: the later layer's gate on this layer's gate input.
            logits, *_ = reference(family, layers[index + distance].router, hidden[index], layers[0].top_k)
            np.testing.assert_array_equal(ahead[:, index], logits.detach().half().numpy())


def test_the_model_computes_the_same_with_and_without(build, family, ids):
    model = build(family)
    with torch.no_grad():
        plain = model(ids).logits
        with RoutingCollector(model, logits=True, lookahead=(1,)):
            watched = model(ids).logits
    assert torch.equal(plain, watched)


def test_passes_queue_up_and_hooks_go_away(build, ids):
    model = build("mixtral")
    with torch.no_grad(), RoutingCollector(model) as collector:
        model(ids)
        model(ids[:, :4])
    with torch.no_grad():
        model(ids)
    assert collector.waiting == 2
    first, second = collector.take(), collector.take()
    assert (len(first.experts), len(second.experts)) == (18, 8)
    assert first.logits is None
    assert first.lookahead == {}
    with pytest.raises(ModelError, match="no routing to take"):
        collector.take()


def test_take_selects_rows(build, ids):
    model = build("olmoe")
    with torch.no_grad(), RoutingCollector(model, logits=True, lookahead=(2,)) as collector:
        model(ids)
        model(ids)
    everything, some = collector.take(), collector.take(np.array([3, 7]))
    np.testing.assert_array_equal(some.experts, everything.experts[[3, 7]])
    np.testing.assert_array_equal(some.logits, everything.logits[[3, 7]])
    np.testing.assert_array_equal(some.lookahead[2], everything.lookahead[2][[3, 7]])


def test_layers_of_different_width_are_filled_up(build, ids):
    """A layer that chooses fewer experts than others leaves slots unused."""
    model = build("mixtral")
    layers = moe_layers(model)
    layers[1].router.top_k = 1
    with torch.no_grad(), RoutingCollector(model) as collector:
        model(ids)
    routing = collector.take()
    assert (routing.experts[:, 1, 1] == 65535).all()
    assert (routing.experts[:, [0, 2]] < 4).all()
    assert (routing.weights[:, 1, 1] == 0).all()


@pytest.mark.parametrize("distance", [0, 3, 99])
def test_an_impossible_lookahead_is_refused(build, distance):
    with pytest.raises(ModelError, match="1 to 2 can be asked for"):
        RoutingCollector(build("mixtral"), lookahead=(distance,))


def test_damaged_weights_are_noticed(build, ids):
    model = build("qwen3_moe")
    with torch.no_grad():
        moe_layers(model)[1].router.weight[2, 3] = float("nan")
        with RoutingCollector(model) as collector:
            model(ids)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts gave weights that are not finite"):
        collector.take()
