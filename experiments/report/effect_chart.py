"""What each policy gains on the baseline at each cache size: a chart with intervals, and its numbers."""

from collections.abc import Sequence
from html import escape

import altair as alt

from experiments.report.causes import NEUTRAL
from experiments.report.charts import Chart, Look, dimmed, finish, shown
from experiments.report.effect import Effect
from experiments.report.html_tables import NONE, table

MOST_LINES = 12
"""Policies drawn: those that gain most; all are in the table."""
MOST_ROWS = 200


def effects(rows: Sequence[Effect], baseline: str, look: dict[str, Look]) -> Chart:
    """Effects against cache size, a mark with its interval for each policy; 0 is the baseline.

    Bounds are in the table alone: beside what is left to win, what is won would hardly show.
    """
    rows = [row for row in rows if not row.is_bound] or rows
    best = sorted({row.label for row in rows}, key=lambda label: -max(r.effect for r in rows if r.label == label))
    drawn = [label for label in dict.fromkeys(row.label for row in rows) if label in best[:MOST_LINES]]
    chosen = [row for row in rows if row.label in drawn]
    unit = "points of hit ratio" if rows[0].points else "%"
    values = [
        {
            "policy": row.policy,
            "label": row.label,
            "cache": row.cache,
            "effect": 100 * row.effect,
            "said": row.outcome,
            "span": NONE if row.low is None or row.high is None else f"{100 * row.low:+.2f} to {100 * row.high:+.2f}",
            **({} if row.low is None or row.high is None else {"low": 100 * row.low, "high": 100 * row.high}),
        }
        for row in chosen
    ]
    names = list(dict.fromkeys(row.policy for row in chosen))
    looks = [look.get(name, Look(NEUTRAL, "circle", ())) for name in names]
    caches = list(dict.fromkeys(row.cache for row in chosen))
    base = dimmed(shown(values)).encode(
        x=alt.X("cache:N", sort=caches, title="cache", axis=alt.Axis(labelAngle=-35 if len(caches) > 6 else 0)),
        xOffset=alt.XOffset("label:N", sort=drawn),
        color=alt.Color("policy:N", legend=None, sort=None).scale(domain=names, range=[one.colour for one in looks]),
    )
    axis, title = alt.Axis(tickCount=6), f"better than {baseline}, {unit}"
    y = alt.Y("effect:Q", title=title, axis=axis)
    spans = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, aria=False)
    dots = base.mark_point(filled=True, size=56).encode(
        y=y,
        shape=alt.Shape("policy:N", legend=None, sort=None).scale(domain=names, range=[one.shape for one in looks]),
        tooltip=[
            alt.Tooltip("label:N", title="policy"),
            alt.Tooltip("cache:N", title="cache"),
            alt.Tooltip("effect:Q", title=f"effect, {unit}", format="+.2f"),
            alt.Tooltip("span:N", title="interval"),
            alt.Tooltip("said:N", title="verdict"),
        ],
    )
    zero = alt.Chart(alt.InlineData(values=[{"effect": 0}])).mark_rule(strokeDash=[5, 4], style="muted", aria=False)
    sentence = f"How much better than {baseline} each policy is at each cache size; the line through a mark is the "
    sentence += "interval that its requests leave open. Where it crosses zero no difference is shown; among many "
    sentence += (
        "comparisons it has to stay clear of zero. What is left to win, by policies that know the future, is among "
    )
    sentence += "the numbers."
    if len(drawn) < len(best):
        sentence += f" The {len(drawn)} that gain most of {len(best)} are drawn."
    layers = alt.layer(zero.encode(y=y), spans.encode(y=alt.Y("low:Q", title=title, axis=axis), y2="high:Q"), dots)
    return finish(layers, 340, sentence, highlight=True)


def effect_table(rows: Sequence[Effect], baseline: str) -> str:
    """Every effect, with its interval and its verdict."""
    cells = [
        [
            f"{escape(row.cache)}: {escape(row.label)}",
            f"{100 * row.effect:+.2f}",
            NONE if row.low is None or row.high is None else f"[{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
            f"{row.effective:.1f} of {row.requests}",
            escape(row.outcome),
        ]
        for row in rows[:MOST_ROWS]
    ]
    unit = "points" if rows[0].points else "%"
    columns = ["Cache: policy", f"Better than {baseline}, {unit}", "Interval", "Requests that tell", "Verdict"]
    label = f"Effects against {baseline}"
    return table(columns, cells, label=label, policies=[row.policy for row in rows[:MOST_ROWS]])
