"""Table 2 from the project's simulator: the same two terms fitted, everything else as `engine.replay.replay` models it.

The profile is the shipped one of each GPU (memory, arithmetic) with link rate and overhead per layer replaced by fitted
values and every other overhead set to zero. Beyond the two-term model it knows that experts take time to compute, that
resident ones are computed while missing ones are copied, and how guesses and copies fall from token to token.
"""

from dataclasses import dataclass

import msgspec

from engine.hardware import HardwareProfile, load_hardware
from engine.hardware.roofline import SECOND
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.replay import replay
from experiments.research.paper.published import EXPERT_FORMAT, LAYERS, SHAPE, STAGING, Bits, Machine, Row
from tracekit.errors import StudyError
from tracekit.trace import Trace

_CLOSE = 1e-7  # relative error of a fitted row
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Simulated:
    """A fitted machine. `link` in bytes per second, `overhead` in seconds per layer."""

    machine: Machine
    link: float
    overhead: float

    def profile(self) -> HardwareProfile:
        """The hardware profile to replay with."""
        shipped = load_hardware(self.machine.name)
        link = msgspec.structs.replace(shipped.link, host_to_device_bytes_per_s=round(self.link), latency_ns=0)
        overhead = msgspec.structs.replace(
            shipped.overhead, per_layer_ns=round(self.overhead * SECOND), per_step_ns=0, gate_readback_ns=0
        )
        engine = msgspec.structs.replace(shipped.engine, overhead=overhead)
        return msgspec.structs.replace(shipped, link=link, engine=engine)

    def tokens_per_second(self, trace: Trace, bits: Bits, row: Row, guesses: int = 2) -> float:
        """Decode speed of one cell of Table 2; `guesses` matters to the full row only."""
        plan = plan_of(self.machine, bits, row, guesses)
        time = replay(trace, plan, self.profile(), model_shape=SHAPE, bounds=False).time
        if time is None or time.tokens_per_second is None:
            raise StudyError(f"{trace.path} has no decode steps: no tokens per second")
        return time.tokens_per_second


def plan_of(machine: Machine, bits: Bits, row: Row, guesses: int = 2) -> Plan:
    """The plan of one cell. Raises StudyError for the naive row: loading whole layers is no cache policy."""
    if row == "naive":
        raise StudyError("naive offloading loads whole layers, which no plan says: the two-term model predicts it")
    prefetch: dict[str, object] = {"staging": STAGING}
    if row == "full":
        prefetch |= {"predictor": "gate", "distance": 1, "count": guesses}
    return plan_from_dict(
        {
            "cache": {"capacity": "0/layer" if row == "no-cache" else f"{machine.cache}/layer"},
            "eviction": {"policy": "lru"},
            "prefetch": prefetch,
            "weights": {"experts": EXPERT_FORMAT[bits], "attention": "hqq-4bit"},
        }
    )


def fit_simulated(trace: Trace, machine: Machine, rows: dict[tuple[Bits, Row], float]) -> Simulated:
    """The link and overhead at which the simulator gives both `rows` (tokens per second), by Newton's method.

    Times are nearly linear in the inverse rate and in the overhead, so a few rounds do. Raises StudyError when they
    do not, which is when no machine has such rows.
    """
    if len(rows) != 2:
        raise StudyError("two terms are fitted to exactly two rows")
    wanted = [1 / speed for speed in rows.values()]

    def times(inverse: float, overhead: float) -> list[float]:
        fitted = Simulated(machine, 1 / inverse, overhead)
        return [1 / fitted.tokens_per_second(trace, bits, row) for bits, row in rows]

    inverse, overhead = 1 / (0.7 * machine.raw_link), 0.2 * min(wanted) / LAYERS
    for _ in range(_ROUNDS):
        now = times(inverse, overhead)
        error = [want - have for want, have in zip(wanted, now, strict=True)]
        if max(abs(e) / want for e, want in zip(error, wanted, strict=True)) < _CLOSE:
            return Simulated(machine, 1 / inverse, overhead)
        step = 0.01 * inverse
        slope = [(then - have) / step for then, have in zip(times(inverse + step, overhead), now, strict=True)]
        if slope[0] == slope[1]:
            break
        change = (error[1] - error[0]) / (slope[1] - slope[0])
        inverse += change
        # Overhead adds to every row alike, once per layer.
        overhead += (error[0] - slope[0] * change) / LAYERS
        if inverse <= 0 or overhead < 0:
            break
    raise StudyError(f"no link rate and overhead of {machine.title} give these two rows")
