"""The rows of a chart of speed against a cost that no other row betters."""

from collections.abc import Callable, Sequence

from experiments.report.content import PolicyRow


def front(rows: Sequence[PolicyRow], cost: Callable[[PolicyRow], float]) -> list[PolicyRow]:
    """The rows that no other beats at the same cost or less, by cost."""
    kept: list[PolicyRow] = []
    for row in sorted(rows, key=lambda row: (cost(row), -(row.tokens_per_second or 0))):
        if not kept or (row.tokens_per_second or 0) > (kept[-1].tokens_per_second or 0):
            kept.append(row)
    return kept
