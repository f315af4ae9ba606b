"""The frontier of speed against quality: what each plan loses by measurement, and how fast it is on the machine."""

from collections.abc import Sequence

import altair as alt

from experiments.report.charts import PALETTE, Chart, finish
from experiments.report.content import PolicyRow
from experiments.report.front import front
from experiments.report.html_tables import number, percent, policy_rows, rate, row_labels

MOST_POINTS = 1000
AS_STORED = "as stored"


def loss_of(row: PolicyRow) -> float:
    """What a row loses of quality, as a share."""
    return row.loss or 0.0


def fastest(rows: Sequence[PolicyRow]) -> list[PolicyRow]:
    """The fastest row of each weight format, by loss."""
    found: dict[str, PolicyRow] = {}
    for row in sorted(rows, key=lambda row: -(row.tokens_per_second or 0)):
        found.setdefault(row.weights, row)
    return sorted(found.values(), key=lambda row: row.loss or 0.0)


def frontier(rows: Sequence[PolicyRow], most_loss: float | None = None) -> Chart:
    """Tokens per second against loss of quality, with both intervals at the fastest plan of each format; the line of
    those that are beaten by none, and where `most_loss` ends."""
    best, leading = front(rows, loss_of), fastest(rows)
    others = sorted((row for row in rows if row not in leading), key=lambda row: -(row.tokens_per_second or 0))
    formats = [row.weights or AS_STORED for row in leading]
    hues = [PALETTE[place % len(PALETTE)] for place in range(len(formats))]
    legend = alt.Legend(orient="top", title=None, labelLimit=320, columns=3, symbolOpacity=1, symbolStrokeWidth=1.5)
    colour = alt.Color("format:N", sort=None, legend=legend).scale(domain=formats, range=hues)
    lost, shown = "loss of quality", "decode tokens per second"
    share, ticks = alt.Axis(format=".3~%", tickCount=6, grid=False), alt.Axis(tickCount=5)
    x = alt.X("loss:Q", title=lost, axis=share).scale(padding=12)
    y = alt.Y("rate:Q", title=shown, axis=ticks).scale(zero=False, padding=12)
    told = [
        alt.Tooltip("label:N", title="plan"),
        alt.Tooltip("loss:Q", title="loss of quality", format=".2%"),
        alt.Tooltip("rate:Q", title="tokens/s", format=".3~g"),
    ]

    def drawn(chosen: Sequence[PolicyRow]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=_values(chosen)))

    line = drawn(best).mark_line(
        interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 4], style="muted", aria=False
    )
    layers = [line.encode(x=x, y=y)]
    if others:
        dots = drawn(others[:MOST_POINTS]).mark_point(filled=True, size=18, opacity=0.35)
        layers.append(dots.encode(x=x, y=y, color=colour, tooltip=told))
    lead = drawn(leading)
    across = lead.transform_filter("isValid(datum.loss_low)").mark_rule(strokeWidth=1.5)
    upright = lead.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    layers += [
        across.encode(x=alt.X("loss_low:Q", title=lost, axis=share), x2="loss_high:Q", y=y, color=colour),
        upright.encode(x=x, y=alt.Y("low:Q", title=shown, axis=ticks), y2="high:Q", color=colour),
        lead.mark_point(filled=True, size=80).encode(x=x, y=y, color=colour, tooltip=told),
    ]
    sentence = "Each point is one plan: what its weights cost in quality, and its tokens per second; large points are "
    sentence += "the fastest of their format, with the intervals of both figures. Along the dashed line no plan that "
    sentence += "loses as little is faster."
    if most_loss is not None:
        end = alt.Chart(alt.InlineData(values=[{"loss": most_loss}])).mark_rule(strokeWidth=2, style="bound")
        layers.append(end.encode(x=x))
        sentence += f" What is right of the upright line loses more than the {100 * most_loss:.3g} % allowed."
    return finish(alt.layer(*layers), 320, sentence)


def frontier_table(rows: Sequence[PolicyRow]) -> str:
    """The fastest plan of each format."""

    def cells(row: PolicyRow) -> list[str]:
        ends = [number(row.loss_low, percent), number(row.loss_high, percent)]
        return [number(row.loss, percent), *ends, number(row.tokens_per_second, rate)]

    columns = ["Plan", "Loss of quality", "from", "to", "Tokens/s"]
    return policy_rows(columns, fastest(rows), cells, label="Speed against quality")


def _values(chosen: Sequence[PolicyRow]) -> list[dict[str, object]]:
    return [
        {
            "label": label,
            "format": row.weights or AS_STORED,
            "loss": row.loss,
            "rate": row.tokens_per_second,
            **({} if row.loss_low is None else {"loss_low": row.loss_low, "loss_high": row.loss_high}),
            **({} if row.low is None else {"low": row.low, "high": row.high}),
        }
        for label, row in zip(row_labels(chosen), chosen, strict=True)
    ]
