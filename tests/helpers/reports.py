"""Reports to test: rows of a table, names that are no markup, and what a chart draws."""

from dataclasses import replace
from typing import Any

from experiments.report.content import PolicyRow

HOSTILE = """</script><script>alert('x')</script><img src=x onerror="alert(1)">{{bundle}}&"""


def policy(name: str, **changes: Any) -> PolicyRow:
    row = PolicyRow(
        name=name,
        capacity="4/layer",
        prefetch="none",
        hit_ratio=0.3123,
        decode_hit_ratio=0.2917,
        hits_prefetched=0.0,
        tokens_per_second=2.06,
        bound_tokens_per_second=4.02,
        bytes_loaded_per_token=1.374e9,
    )
    return replace(row, **changes)


def values(drawn: Any) -> list[Any]:
    """The data of a chart or of one of its layers, wherever Vega-Lite keeps it."""
    return [row for rows in drawn["spec"]["datasets"].values() for row in rows]
