"""The front of speed against a cost."""

from experiments.report.content import PolicyRow
from experiments.report.front import front
from experiments.report.study_charts import bytes_of
from tests.helpers.reports import policy


def test_the_front_is_what_nothing_beats() -> None:
    def row(memory: float, speed: float) -> PolicyRow:
        return policy("p", device_bytes=memory, tokens_per_second=speed)

    rows = [row(3, 5), row(1, 2), row(2, 2), row(2, 3), row(3, 4), row(4, 5), row(1, 1)]
    assert [(r.device_bytes, r.tokens_per_second) for r in front(rows, bytes_of)] == [(1, 2), (2, 3), (3, 5)]
