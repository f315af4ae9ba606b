"""What `offload` does to a model, what it refuses, and how it fails."""

import gc
import threading
import time
import weakref
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from engine.runtime import EmulatedLink, offload, offloaded
from engine.runtime.links.queued_link import QueuedLink, Ticket
from policies.events import LOAD
from tests.engine.runtime.models import CONFIGS, NEW_TOKENS, SMALL, Answer, MakeModel, Reference, answer, plan_of, same
from tracekit.errors import CapacityError, HardwareError, ModelError, PlanError, PolicyError

torch = pytest.importorskip("torch")
offloading = import_module("engine.runtime.offload")  # the package's attribute of that name is the function
transformers = pytest.importorskip("transformers")


def test_the_model_keeps_no_second_copy_of_its_experts(make_model: MakeModel) -> None:
    model = make_model("gpt_oss")
    experts = [module for name, module in model.named_modules() if name.endswith("mlp.experts")]
    originals = [weakref.ref(parameter) for module in experts for parameter in module.parameters()]
    values = {name: p.detach().clone() for name, p in experts[1].named_parameters()}
    others = {name: p.detach().clone() for name, p in model.named_parameters() if ".experts." not in name}
    assert offload(model, plan_of()) is model
    gc.collect()
    assert [ref for ref in originals if ref() is not None] == []
    with offloaded(model) as state:
        for expert in range(8):
            for name, stored in state.store.views(1 * 8 + expert).items():
                assert torch.equal(stored, values[name][expert])
                assert stored.data_ptr() % 64 == state.store.slab(8 + expert).data_ptr() % 64 == 0
        assert state.store.bytes == 3 * 8 * state.store.slab_bytes
        assert state.pool.slots == 3 * 2 + 4
        kept = {name: p for name, p in model.named_parameters() if ".experts." not in name}
        assert all(torch.equal(kept[name], value) for name, value in others.items())


def test_log_timings_and_bytes_tell_one_story(make_model: MakeModel) -> None:
    model = offload(make_model("mixtral"), plan_of("8/layer"))
    with offloaded(model) as state:
        answer(model)
        times, steps = state.timings, NEW_TOKENS + 1
        assert times.step_tokens.tolist() == [10] + [1] * NEW_TOKENS
        assert times.visit_layer.tolist() == [0, 1, 2] * steps
        assert times.visit_step.tolist() == np.repeat(np.arange(steps), 3).tolist()
        assert (times.step_start <= times.visit_start[::3]).all()
        assert (times.visit_end[2::3] <= times.step_end).all()
        assert (times.visit_start[1:] >= times.visit_end[:-1]).all()
        assert ((times.visit_waited >= 0) & (times.visit_waited <= times.visit_end - times.visit_start)).all()
        loads = int((state.log.kind == LOAD).sum())
        assert state.bytes_loaded == {"load": loads * state.store.slab_bytes, "bypass": 0, "admit": 0, "prefetch": 0}
        assert times.visit_start.dtype == np.int64


def test_a_failed_copy_raises_in_the_caller_and_reset_mends(
    make_model: MakeModel, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    class Failing(QueuedLink):
        def __init__(self, *_: object) -> None:
            super().__init__(self.fail_or_copy)

        @staticmethod
        def fail_or_copy(ticket: Ticket) -> None:
            if broken.is_set():
                raise OSError("cable unplugged")
            ticket.target.copy_(ticket.source)

    monkeypatch.setattr(offloading, "ThreadLink", Failing)
    model = offload(make_model(), plan_of())
    with offloaded(model) as state:
        broken.set()
        start = time.monotonic()
        with pytest.raises(ModelError, match="copy of an expert failed: cable unplugged"):
            answer(model)
        assert time.monotonic() - start < 1
        broken.clear()
        with pytest.raises(ModelError, match="cannot run: a visit failed"):  # the cache no longer knows the truth
            answer(model)
        state.reset()
        assert same(answer(model), reference())
        assert len(state.timings.step_start) == NEW_TOKENS + 1


def test_a_closed_model_says_so(make_model: MakeModel) -> None:
    model = offload(make_model(), plan_of())
    offloaded(model).close()
    offloaded(model).close()
    with pytest.raises(ModelError, match="it has been closed"):
        answer(model)


def test_a_forgotten_model_takes_its_thread_along(make_model: MakeModel) -> None:
    model = offload(make_model(), plan_of())
    answer(model, new_tokens=2)
    thread = offloaded(model).link._thread  # type: ignore[attr-defined]
    del model
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_dense_sibling_of_the_same_config_computes_its_own_experts(make_model: MakeModel) -> None:
    """transformers picks the experts function by config, and a config may be shared."""
    served, plain = make_model(), make_model()
    module = plain.model.layers[0].mlp.experts
    hidden, ids, weights = torch.randn(2, 32).bfloat16(), torch.tensor([[1, 2], [0, 5]]), torch.rand(2, 2).bfloat16()
    expected = module(hidden, ids, weights)
    with offloaded(offload(served, plan_of())):
        module.config = served.config
        assert torch.equal(module(hidden, ids, weights), expected)


@pytest.mark.parametrize(
    ("tables", "error", "message"),
    [
        ({"prefetch": {"predictor": "oracle"}}, PlanError, "'oracle' reads the future"),
        ({"eviction": {"policy": "belady"}}, PlanError, "'belady' reads the future"),
        ({"eviction": {"policy": "lruu"}}, PolicyError, "did you mean 'lru'"),
        ({"weights": {"attention": "fp16"}}, PlanError, "not loaded so"),
        ({"weights": {"experts": "fp32"}}, PlanError, "load it so"),
        ({"cache": {"capacity": "9/layer"}}, CapacityError, "only 8 experts"),
        ({"prefetch": {"predictor": "gate", "distance": 3}}, PlanError, "distance 3 is impossible"),
    ],
)
def test_impossible_plans_are_refused_and_leave_the_model_alone(
    tables: dict[str, Any], error: type[Exception], message: str, make_model: MakeModel, reference: Reference
) -> None:
    model = make_model()
    with pytest.raises(error, match=message):
        offload(model, plan_of(**tables))
    assert same(answer(model, new_tokens=2), Answer(reference().logits[:3], reference().tokens[:3]))


def test_what_cannot_be_offloaded_is_refused(make_model: MakeModel) -> None:
    model = offload(make_model(), plan_of())
    with offloaded(model), pytest.raises(ModelError, match="already offloaded"):
        offload(model, plan_of())
    with pytest.raises(ModelError, match="is not offloaded"):
        offloaded(make_model())
    with pytest.raises(ModelError, match="no experts on the transformers experts seam"):
        offload(transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SMALL)), plan_of())
    name, settings = CONFIGS["mixtral"]
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**(SMALL | settings)))
    with pytest.raises(ModelError, match="meta device"):
        offload(empty, plan_of())
    with pytest.raises(PlanError, match="not yet supported"):
        eight = make_model()
        eight.model.layers[1].mlp.experts.to(torch.float8_e4m3fn)
        offload(eight, plan_of())


def test_impossible_devices_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(HardwareError, match="unknown device 'gpu'"):
        offload(make_model(), plan_of(), device="gpu")
    with pytest.raises(HardwareError, match="not on meta"):
        offload(make_model(), plan_of(), device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(HardwareError, match="no CUDA device"):
            offload(make_model(), plan_of(), device="cuda")
    else:
        with pytest.raises(HardwareError, match="CPU only"):
            offload(make_model(), plan_of(), device="cuda", emulate_link=EmulatedLink(1e9))


def test_a_family_that_computes_otherwise_is_refused(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    kind = type(model.model.layers[0].mlp.experts)
    own = kind.forward.__wrapped__

    def forward(self: Any, *args: Any) -> Any:
        return own(self, *args) * 1.01

    forward.__wrapped__ = lambda self, *args: own(self, *args) * 1.01  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(ModelError, match="cannot equal bit for bit"):
        offload(model, plan_of())
