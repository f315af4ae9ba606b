"""Where computing misses on the host begins to beat copying them, as a picture."""

from collections.abc import Mapping, Sequence

import altair as alt

from experiments.research.hosts.sweep import ALONE, SWEPT, TOGETHER, Point
from experiments.research.paper.charts import BLUE, GREEN, GREY, VERMILION, Chart

PURPLE = "#CC79A7"
SHOWN: Mapping[str, int] = {"mixtral-mini": 4, "qwen3-moe-mini": 12}
"""Slots of a layer."""
NAMES = dict(
    zip(
        SWEPT,
        ("host, all admitted", "host, one of each layer a step", "host, two a step", "split, all admitted"),
        strict=True,
    )
)


def crossing(points: Sequence[Point]) -> Chart:
    """Speed against copying by what an expert takes on the host; dashed where the host's memory is shared."""
    titles = list(NAMES.values())
    panels = []
    for model, slots in SHOWN.items():
        rows = [
            {"plan": NAMES[one.plan], "memory": one.memory, "ratio": one.ratio, "effect": one.effect}
            for one in points
            if (one.model, one.slots) == (model, slots)
        ]
        lines = (
            alt.Chart(alt.InlineData(values=rows))
            .mark_line(point=True, strokeWidth=2)
            .encode(
                x=alt.X(
                    "ratio:Q",
                    title="an expert on the host, in copies",
                    scale=alt.Scale(type="log", base=2, domain=[0.25, 4]),
                    axis=alt.Axis(values=[0.25, 0.5, 1, 2, 4], format="~g"),
                ),
                y=alt.Y("effect:Q", title="speed against copies", axis=alt.Axis(format="+.0%")),
                color=alt.Color(
                    "plan:N",
                    title=None,
                    sort=titles,
                    scale=alt.Scale(domain=titles, range=[BLUE, VERMILION, GREEN, PURPLE]),
                    legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3),
                ),
                strokeDash=alt.StrokeDash(
                    "memory:N",
                    title=None,
                    scale=alt.Scale(domain=[ALONE, TOGETHER], range=[[1, 0], [5, 4]]),
                    legend=None,
                ),
            )
        )
        level = alt.Chart(alt.InlineData(values=[{"effect": 0}])).mark_rule(color=GREY).encode(y="effect:Q")
        title = alt.Title(f"{model}, {slots} slots a layer", subtitle="dashed: host memory shared")
        panels.append(alt.layer(level, lines).properties(width=300, height=280, title=title))
    return alt.hconcat(*panels)
