"""The tables and the picture: speed against loss, and which plans nothing beats in both."""

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from experiments.quality.measurement import loss_text
from experiments.research import markdown
from experiments.research.frontier.judged import MACHINES, Bound, Judged
from experiments.research.frontier.ways import BASE
from experiments.research.paper.charts import BLUE, GREEN, VERMILION, png

PURPLE = "#CC79A7"
KINDS = {"format": BLUE, "tiers": GREEN, "routing": VERMILION, "both": PURPLE}
DRAWN = MACHINES.index("rtx4090")
MOST_DRAWN = 0.12
"""Beyond this loss nothing is drawn; the tables have it."""


class Setting(NamedTuple):
    """What was found of a model with so many slots in each layer."""

    model: str
    slots: int
    bound: Bound
    ways: list[Judged]


def unbeaten(ways: Sequence[Judged], machine: int) -> list[Judged]:
    """Those that none is faster than without losing more, by loss."""
    found: list[Judged] = []
    for one in sorted(ways, key=lambda way: (way.loss.value, -way.speed[machine])):
        if not found or one.speed[machine] > found[-1].speed[machine]:
            found.append(one)
    return found


def tables(settings: Sequence[Setting]) -> str:
    """A table for each model and number of slots."""
    return "\n\n".join(_table(one) for one in settings)


def _table(found: Setting) -> str:
    base = next(one for one in found.ways if one.name == BASE)
    best = {id(one) for one in unbeaten(found.ways, DRAWN)}
    head = [
        "plan",
        "loss",
        f"beyond {BASE}",
        "perplexity",
        "KL",
        "agree",
        "altered",
        "hits",
        "loads",
        "first order",
        "GiB",
        *MACHINES,
    ]

    def row(one: Judged) -> list[str]:
        altered = "" if one.altered == 0 else f"{one.altered:.1%}"
        foreseen = "" if one.kind == "format" or not one.loads else f"{one.first / one.loads - 1:+.1%}"
        return [
            f"**{one.name}**" if id(one) in best else one.name,
            loss_text(one.loss),
            loss_text(one.beyond),
            f"{one.perplexity:+.1%}",
            f"{one.kl:.4f}",
            f"{one.agreed:.1%}",
            altered,
            f"{one.hits:.1%}",
            f"{one.loads:.2f}",
            foreseen,
            f"{one.bytes / 2**30:.1f}",
            *(f"{speed:.2f} ({speed / own - 1:+.0%})" for speed, own in zip(one.speed, base.speed, strict=True)),
        ]

    rows = [row(one) for one in found.ways]
    for name, speeds, counts in (
        ("Belady", found.bound.served, [f"{found.bound.hits:.1%}", f"{found.bound.loads:.2f}"]),
        ("bound on speed", found.bound.speed, ["", ""]),
    ):
        against = [f"{speed:.2f} ({speed / own - 1:+.0%})" for speed, own in zip(speeds, base.speed, strict=True)]
        rows.append([f"*{name}, {BASE}, gates' own choices*", *[""] * 6, *counts, "", "", *against])
    return f"{found.model}, {found.slots} slots of each layer\n\n" + markdown.table(head, rows)


def picture(settings: Sequence[Setting]) -> bytes:
    """Speed against loss on one machine, a panel for each model and number of slots, as PNG."""
    models = list(dict.fromkeys(one.model for one in settings))
    rows = [alt.hconcat(*(_panel(one) for one in settings if one.model == model)) for model in models]
    return png(alt.vconcat(*rows))


def _panel(found: Setting) -> alt.LayerChart | alt.FacetChart:
    ways = [one for one in found.ways if one.loss.value <= MOST_DRAWN]
    values = [
        {
            "loss": one.loss.value,
            "low": one.loss.value if one.loss.low is None else one.loss.low,
            "high": one.loss.value if one.loss.high is None else min(one.loss.high, MOST_DRAWN),
            "speed": one.speed[DRAWN],
            "kind": one.kind,
        }
        for one in ways
    ]
    line = [{"loss": one.loss.value, "speed": one.speed[DRAWN]} for one in unbeaten(ways, DRAWN)]
    x = alt.X(
        "loss:Q", title="loss, bits per byte", axis=alt.Axis(format=".0%", tickCount=5), scale=alt.Scale(nice=True)
    )
    y = alt.Y("speed:Q", title=f"tokens/s, {MACHINES[DRAWN]} (modelled)", scale=alt.Scale(zero=False))
    colours = alt.Scale(domain=list(KINDS), range=list(KINDS.values()))
    colour = alt.Color("kind:N", title=None, scale=colours, legend=alt.Legend(orient="bottom"))
    base = alt.Chart(alt.InlineData(values=values))
    clairvoyant = alt.Chart(alt.InlineData(values=[{"speed": found.bound.served[DRAWN]}]))
    return alt.layer(
        clairvoyant.mark_rule(strokeDash=[5, 4], color="#666").encode(y=y),
        alt.Chart(alt.InlineData(values=line)).mark_line(color="#b9bec3", strokeWidth=2).encode(x=x, y=y),
        base.mark_rule(opacity=0.35).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        base.mark_point(filled=True, size=60, opacity=0.9).encode(x=x, y=y, color=colour),
    ).properties(width=300, height=240, title=f"{found.model}, {found.slots} slots a layer")
