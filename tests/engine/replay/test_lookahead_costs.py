"""Asking the gate of a later layer takes its time at each visit that has one, and only of plans that ask."""

import pytest
from msgspec.structs import replace

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.setting import Setting
from tests.helpers.traces import make_manifest

MANIFEST = make_manifest(3, [4, 4, 4], 2, tokens=1, expert_bytes=[1 << 20] * 3)
MACHINE = load_hardware("t4")
ASKING = MACHINE.with_engine(replace(MACHINE.engine, overhead=replace(MACHINE.overhead, per_lookahead_ns=7_000)))


@pytest.mark.parametrize(
    ("prefetch", "charged"),
    [
        ("gate", [7_000, 7_000, 0]),
        ({"predictor": "gate", "distance": 2}, [7_000, 0, 0]),
        ("none", [0, 0, 0]),
        ("previous-token", [0, 0, 0]),
    ],
)
def test_visits_that_ask_a_later_gate_take_its_time(prefetch: str | dict[str, object], charged: list[int]) -> None:
    plan = Plan("1/layer", prefetch=prefetch)
    asking, free = (Setting.of(MANIFEST, plan, machine).costs for machine in (ASKING, MACHINE))
    assert asking is not None and free is not None
    assert asking.predict_ns.tolist() == charged
    assert free.predict_ns.tolist() == [0, 0, 0], "no shipped profile states it"
