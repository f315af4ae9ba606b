import pytest, time

torch = pytest.importorskip("torch")
from engine.runtime import offload, offloaded
from tests.engine.runtime.models import *
from tests.helpers.emulated_cuda.device import SCHEDULES, EmulatedCuda


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_it(schedule, family, make_model, reference):
    with EmulatedCuda(schedule) as device:
        t = time.time()
        m = make_model(family)
        m.set_attn_implementation("eager")
        expected = answer(m.to("cuda:0"))
        print("plain", time.time() - t)
        t = time.time()
        m = make_model(family)
        m.set_attn_implementation("eager")
        model = offload(m, plan_of("2/layer", prefetch={"predictor": "gate", "staging": 2}), device="cuda")
        with offloaded(model) as state:
            n = len(device.waits)
            assert same(answer(model), expected)
            print("off", time.time() - t)
            print(device.waits[n : n + 30])
        print(
            "cpu same",
            [x.tolist() for x in reference(family).logits][1] == [x.cpu().tolist() for x in expected.logits][1],
            reference(family).tokens == expected.tokens,
        )
