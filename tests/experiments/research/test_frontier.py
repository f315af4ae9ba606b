"""Speed against loss: what is passed is what the model says, and a frontier is of what nothing beats."""

from pathlib import Path

import numpy as np
import pytest

from engine.plan.plan import Plan
from engine.plan.tables import RoutingPlan
from engine.replay.counts import counts_manifest
from engine.replay.memory import device_memory
from engine.replay.replay import replay
from engine.replay.setting import Setting as Timed
from engine.shapes import load_shape
from experiments.quality.measurement import Estimate
from experiments.quality.quality_key import looks_at_cache

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from experiments.demo.reference_models import CHECKPOINTS  # noqa: E402
from experiments.research.frontier.closed_loop import passed  # noqa: E402
from experiments.research.frontier.judged import Bound, Judged, judged, timed  # noqa: E402
from experiments.research.frontier.page import Setting, picture, tables, unbeaten  # noqa: E402
from experiments.research.frontier.ways import BASE, SHAPES, SLOTS, ways  # noqa: E402
from tracekit.recorder.models import load_model  # noqa: E402
from tracekit.recorder.prompts import Prompt  # noqa: E402

TEXTS = [
    Prompt(id="a", prompt="def read(path):\n    return open(path)"),
    Prompt(id="b", prompt="The list is sorted by"),
]
MODEL = "mixtral-mini"


def memory(model: str, plan: Plan) -> int:
    """Bytes of the slots of all copies at the sizes that experts are given."""
    shape = load_shape(SHAPES[model])
    return device_memory(Timed.of(counts_manifest(shape), plan, None, shape)).slots


@pytest.mark.parametrize("model", list(SLOTS))
def test_every_way_is_a_plan_and_tiers_take_no_more_than_what_they_replace(model: str) -> None:
    for slots in SLOTS[model]:
        found = ways(model, slots)
        kinds = [way.kind for way in found.values()]
        assert kinds.count("routing") == 16 and set(kinds) == {"format", "tiers", "routing", "both"}
        base = memory(model, found[BASE].plan)
        for way in found.values():
            if way.plan.precision is not None:
                assert base * (1 - 1 / slots) < memory(model, way.plan) <= base
        for name, way in found.items():
            assert looks_at_cache(way.plan) == (way.kind != "format" and not name.startswith("adaptive-k"))


def test_a_pass_is_what_the_model_says_and_its_routing_gives_its_loads(tmp_path: Path) -> None:
    said: list[torch.Tensor] = []
    plain = passed(CHECKPOINTS / MODEL, Plan("100%/layer"), TEXTS, tmp_path / "plain.trace", keep=said.extend)
    model, tokenizer = load_model(CHECKPOINTS / MODEL, "float32", "cpu")
    for number, text in enumerate(TEXTS):
        ids = torch.tensor(tokenizer(text.prompt)["input_ids"])[None]
        with torch.inference_mode():
            known = torch.log_softmax(model(ids).logits[0].double(), -1)
        own = -known[:-1].gather(-1, ids[0, 1:, None]).sum()
        assert plain.nats[number] == pytest.approx(float(own), rel=1e-5)
        torch.testing.assert_close(said[number], known, atol=1e-4, rtol=0)
    assert plain.trace.logits is not None and (np.diff(plain.trace.step) == 1).all()
    same = passed(CHECKPOINTS / MODEL, Plan("3/layer"), TEXTS, tmp_path / "same.trace", said)
    assert not same.divergence.any() and (same.trace.experts == plain.trace.experts).all()
    assert same.agreed.sum() == plain.trace.tokens - len(TEXTS)

    way = ways(MODEL, 3)["cache-prior 0.3"]
    altered = passed(CHECKPOINTS / MODEL, way.plan, TEXTS, tmp_path / "altered.trace", said)
    assert 0 < altered.altered < 1 and altered.dropped == 0 and altered.divergence.sum() > 0
    again = passed(CHECKPOINTS / MODEL, way.plan, TEXTS, tmp_path / "altered.trace", said)
    assert all((one == other).all() for one, other in zip(altered[1:4], again[1:4], strict=True))
    found = judged(MODEL, "cache-prior 0.3", way, (plain, same), altered)
    assert found.beyond == found.loss, "beside a plan that loses nothing"
    counted = replay(
        altered.trace, way.plan.replace(routing=RoutingPlan()), model_shape="mixtral-8x7b", reshape="sizes"
    )
    assert found.loads == counted.misses / altered.trace.tokens and found.hits == pytest.approx(counted.hit_ratio)
    speed = replay(
        altered.trace, way.plan.replace(routing=RoutingPlan()), "rtx4090", model_shape="mixtral-8x7b", reshape="sizes"
    ).time
    assert speed is not None and found.speed[1] == pytest.approx(speed.tokens_per_second)
    assert len(timed(MODEL, way.plan, altered.trace)[1]) == 3


def way(name: str, loss: float, speed: float, kind: str = "routing") -> Judged:
    of = Estimate(loss, loss - 0.001, loss + 0.001)
    return Judged(name, kind, of, of, loss, loss, 1 - loss, 0.5, 2.0, 2.1, 0.1, 0.0, [speed] * 3, 1 << 30)


def test_what_is_slower_and_loses_more_is_beaten() -> None:
    some = [way(BASE, 0.0, 5.0, "format"), way("b", 0.01, 4.0), way("c", 0.02, 6.0, "tiers"), way("d", 0.02, 5.5)]
    assert [one.name for one in unbeaten(some, 1)] == [BASE, "c"]
    setting = Setting("a-model", 3, Bound(0.6, 1.5, [6.5] * 3, [9.0] * 3), some)
    text = tables([setting])
    assert f"**{BASE}**" in text and "**c**" in text and "**b**" not in text and "6.00 (+20%)" in text
    assert "+5.0%" in text  # first order against closed loop
    assert picture([setting]).startswith(b"\x89PNG")
