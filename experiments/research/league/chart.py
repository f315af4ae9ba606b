"""The league as a picture: of every predicted row, how far the simulator is off, a line for each source."""

from collections.abc import Sequence

import altair as alt

from experiments.research.league.entries import Source
from experiments.research.paper.charts import GREY, VERMILION, Chart

BLUE = "#0072B2"
WITHIN = 0.05
SHORT = {
    "batched-h100": "Mixtral, batched, H100",
    "table2": "Mixtral, four GPUs (Table 2)",
    "lru-sweep": "Qwen3-30B-A3B, slots on a card",
    "phone": "Qwen3-30B-A3B, phone",
}
"""Names of sources as the picture has room for them."""


def errors(sources: Sequence[Source]) -> Chart:
    """Errors of predicted rows: filled where nothing is known to be missing, hollow where the page says what is."""
    rows = [
        {
            "source": SHORT.get(source.name, source.title),
            "error": entry.error,
            "what": "something is missing" if entry.missing else "all that is needed is stated",
        }
        for source in sources
        for entry in source.entries
        if entry.kind == "predicted" and entry.error is not None
    ]
    names = [SHORT.get(source.name, source.title) for source in sources if source.errors()]
    kinds = ["all that is needed is stated", "something is missing"]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "error:Q",
            title="predicted over published, less one",
            axis=alt.Axis(format="+.0%", tickCount=8),
            scale=alt.Scale(domain=[-0.8, 0.8]),
        ),
        y=alt.Y("source:N", title=None, sort=names, axis=alt.Axis(labelLimit=300, grid=True)),
        color=alt.Color(
            "what:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=[BLUE, VERMILION]),
            legend=alt.Legend(orient="top"),
        ),
        shape=alt.Shape(
            "what:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=["circle", "diamond"]),
            legend=alt.Legend(orient="top"),
        ),
    )  # fmt: skip
    band = alt.Chart(alt.InlineData(values=[{"low": -WITHIN, "high": WITHIN}])).mark_rect(color=GREY, opacity=0.2)
    band = band.encode(x="low:Q", x2="high:Q")
    dots = base.mark_point(size=90, strokeWidth=2, opacity=1)
    title = alt.Title("Predicted, not fitted", subtitle=f"grey: within {100 * WITHIN:g} %")
    return alt.layer(band, dots).properties(width=460, height=44 * len(names), title=title)
