"""The charts, as Vega-Lite specifications. Colours of text, grid and ramps are the page's (light or dark).

Policies keep one colour and one mark throughout a report. A chart with the parameter `highlight` dims every
policy but the one named by it; the page sets it from the legend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from experiments.report import bars
from experiments.report.causes import NEUTRAL
from experiments.report.content import CurvePoint, HeatMap, PolicyRow, Validation
from experiments.report.html_tables import by_speed, percent, rate, row_labels
from experiments.report.labels import shared

# Okabe & Ito, "Color Universal Design" (2008), less black and yellow: each vanishes on one of the grounds.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ([6, 4], [2, 3], [10, 3, 2, 3])
NUMBERS = 96
"""Pixels for the numbers beside bars."""
MOST_POINTS = 2000
MARKED_POINTS = 240
DIMMED = 0.12


@dataclass(frozen=True, slots=True)
class Look:
    """How a policy is drawn everywhere."""

    colour: str
    shape: str
    dash: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A Vega-Lite specification, what it shows in a sentence, and its height in pixels."""

    spec: dict[str, object]
    sentence: str
    height: int
    renderer: str = "svg"


def looks(policies: dict[str, bool]) -> dict[str, Look]:
    """A look for each policy; bounds (True) are neutral and dashed.

    Colours alone tell six policies apart, colour and mark together thirty-six.
    """
    found: dict[str, Look] = {}
    hues = bounds = 0
    for name, is_bound in policies.items():
        if is_bound:
            found[name] = Look(NEUTRAL, "circle", tuple(DASHES[bounds % len(DASHES)]))
            bounds += 1
        else:
            shape = SHAPES[(hues + hues // len(PALETTE)) % len(SHAPES)]
            found[name] = Look(PALETTE[hues % len(PALETTE)], shape, ())
            hues += 1
    return found


def curves(points: Sequence[CurvePoint], look: dict[str, Look]) -> Chart:
    """Hit ratio against the share of experts held, a line per policy."""
    rows = [
        {"policy": p.policy, "cache": p.capacity, "held": p.share_held, "hit": p.hit_ratio}
        | ({} if p.low is None else {"low": p.low, "high": p.high})
        for p in points
    ]
    names = list(dict.fromkeys(point.policy for point in points))
    drawn = [look[name] for name in names]
    colour = alt.Color("policy:N", legend=None, sort=None).scale(domain=names, range=[one.colour for one in drawn])
    shape = alt.Shape("policy:N", legend=None, sort=None).scale(domain=names, range=[one.shape for one in drawn])
    dashes = [list(one.dash) or [1, 0] for one in drawn]
    dash = alt.StrokeDash("policy:N", legend=None, sort=None).scale(domain=names, range=dashes)
    ratio = alt.Axis(format=".3~%", tickCount=5)
    base = dimmed(shown(rows)).encode(
        x=alt.X("held:Q", title="share of experts held", axis=alt.Axis(format=".3~%", tickCount=6, grid=False)).scale(
            domain=[0, max(point.share_held for point in points)]
        ),
        y=alt.Y("hit:Q", title="hit ratio", axis=ratio).scale(domain=[0, 1]),
        color=colour,
    )
    tooltip = [
        alt.Tooltip("policy:N", title="policy"),
        alt.Tooltip("cache:N", title="cache"),
        alt.Tooltip("held:Q", title="experts held", format=".1%"),
        alt.Tooltip("hit:Q", title="hit ratio", format=".1%"),
    ]
    lines = base.mark_line(strokeWidth=2, aria=False).encode(strokeDash=dash)
    dots = base.mark_point(filled=True, size=44).encode(shape=shape, tooltip=tooltip)
    if len(points) > MARKED_POINTS:  # the marks would hide the lines; they stay, unseen, to carry the tooltips
        dots = dots.encode(opacity=alt.value(0))
    sentence = "Hit ratio of each policy against the share of all experts that the cache holds."
    if any(point.is_bound for point in points):
        sentence += " Dashed lines know the future; of these belady-bypass is a bound, belady must keep what it loads."
    if any(point.low is not None for point in points):
        spans = base.transform_filter("isValid(datum.low)").mark_area(aria=False, line=False, fillOpacity=0.16)
        spans = spans.encode(y=alt.Y("low:Q", title="hit ratio", axis=ratio), y2="high:Q")
        sentence += " The bands are the intervals that the requests leave open."
        return finish(alt.layer(spans, lines, dots), 340, sentence, highlight=True)
    return finish(alt.layer(lines, dots), 340, sentence, highlight=True)


def speeds(rows: Sequence[PolicyRow], look: dict[str, Look]) -> Chart:
    """Decode tokens per second, a bar per row, and each row's bound as a mark across it."""
    timed = by_speed(rows)
    chosen = timed[: bars.MOST]
    named = list(zip(row_labels([row for _, row in chosen]), (row for _, row in chosen), strict=True))
    values = [
        {
            "label": label,
            "policy": row.name,
            "rate": row.tokens_per_second,
            "bound": row.bound_tokens_per_second,
            **({} if row.low is None else {"low": row.low, "high": row.high}),
            "text": _of_bound(row),
            "colour": look[row.name].colour,
        }
        for label, row in named
    ]
    drawn = bars.Bars([label for label, _ in named])
    base = dimmed(drawn.base(values)).encode(
        tooltip=[
            alt.Tooltip("label:N", title="plan"),
            alt.Tooltip("rate:Q", title="tokens/s", format=".3~g"),
            alt.Tooltip("bound:Q", title="bound", format=".3~g"),
        ],
    )
    x = alt.X("rate:Q", title="decode tokens per second", axis=alt.Axis(tickCount=5)).scale(
        zero=True,
        range=[0, alt.ExprRef(f"width - {NUMBERS}")],  # right of the bars is room for the numbers
    )
    marks = base.mark_bar(height=bars.BAR, yOffset=drawn.offset, cornerRadiusEnd=2)
    marks = marks.encode(x=x, color=alt.Color("colour:N", scale=None))
    spans = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, yOffset=drawn.offset, style="bound")
    spans = spans.encode(x=alt.X("low:Q"), x2="high:Q")
    limits = base.transform_filter("isValid(datum.bound)").mark_tick(
        orient="vertical", thickness=2, size=18, yOffset=drawn.offset, style="bound"
    )
    limits = limits.encode(x=alt.X("bound:Q"))
    numbers = base.mark_text(align="right", yOffset=drawn.offset, fontSize=12, style="muted", aria=False)
    numbers = numbers.encode(x=alt.value(alt.ExprRef("width")), text="text:N")
    sentence = "Decode tokens per second, fastest first."
    if any(row.bound_tokens_per_second is not None for _, row in chosen):
        sentence += " The upright mark is each row's bound: what clairvoyant decisions would allow with that cache "
        sentence += "on that machine; at the right, how much of it is reached."
    if any(row.is_bound for _, row in chosen):
        sentence += " Grey bars know the future."
    layers = [marks, limits, drawn.names(base), numbers]
    if any(row.low is not None for _, row in chosen):
        layers.insert(1, spans)
        sentence += " The line through a bar's end is the interval that its requests leave open."
    sentence += alike([row for _, row in chosen])
    if len(chosen) < len(timed):
        sentence += f" The {len(chosen)} fastest of {len(timed)} are drawn."
    return finish(alt.layer(*layers), drawn.height, sentence, highlight=True)


def alike(rows: Sequence[PolicyRow]) -> str:
    """A sentence that says what all these rows have in common."""
    common = shared([row.parts for row in rows])
    return f" All: {common}." if common and len(rows) > 1 else ""


def heat(found: HeatMap) -> Chart:
    """Share of lookups, experts across and layers down, darkest (or brightest) where an expert is busiest."""
    layers, experts = found.shares.shape
    cells = [-1.0 if np.isnan(share) else float(f"{share:.4g}") for share in found.shares.ravel()]
    places = f"floor((datum.place - 1) / {experts})"
    step = max(1, -(-layers // 12))
    title = "share of the layer's lookups"
    # A square-root scale, for one hot expert would otherwise leave all others the same shade.
    shade = alt.Scale(type="sqrt", domainMin=0)
    legend = alt.Legend(orient="top", format=".2~%")
    chart = (
        # Bare numbers, numbered on arrival: a tenth of the size of a record for each cell.
        alt.Chart(alt.InlineData(values=cells))
        .transform_window(place="row_number()")
        .transform_filter("datum.data >= 0")
        .transform_calculate(
            share="datum.data",
            expert=f"(datum.place - 1) % {experts}",
            layer=f"{list(found.layer_numbers)}[{places}]",
            times=f"datum.data * {experts}",
        )
        # The hairline of the cell's own colour closes the seams between neighbours.
        .mark_rect(aria=False, strokeWidth=0.6)
        .encode(
            x=alt.X(
                "expert:O",
                title="expert",
                axis=alt.Axis(values=_ticks(experts), labelAngle=0, labelOverlap=True, ticks=False),
            ).scale(domain=list(range(experts)), padding=0),
            y=alt.Y(
                "layer:O",
                title="layer",
                axis=alt.Axis(values=list(found.layer_numbers[::step]), ticks=False),
            ).scale(domain=list(found.layer_numbers), padding=0),
            # A square-root scale, for one hot expert would otherwise leave all others the same shade.
            color=alt.Color("share:Q", title=title, scale=shade, legend=legend),
            stroke=alt.Stroke("share:Q", title=title, scale=shade, legend=legend),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("expert:O", title="expert"),
                alt.Tooltip("share:Q", title="share of lookups", format=".3~%"),
                alt.Tooltip("times:Q", title="times an even share", format=".2f"),
            ],
        )
    )
    peak = np.unravel_index(np.argmax(np.nan_to_num(found.shares)), found.shares.shape)
    busiest = percent(float(np.nan_to_num(found.shares)[peak]))
    sentence = (
        f"Each cell is one of {experts} experts in one of {layers} layers; its shade is the share of the "
        f"layer's lookups that went to it. An even share would be {percent(1 / experts)}; the busiest, "
        f"expert {peak[1]} of layer {found.layer_numbers[int(peak[0])]}, takes {busiest}."
    )
    height = min(max(10 * layers, 100), 520)
    # Thousands of cells: a canvas draws them without thousands of elements in the page.
    return finish(chart, height, sentence, renderer="canvas")


def steps(validation: Validation) -> Chart:
    """Simulated against measured time of each decode step; on the diagonal they agree."""
    count = len(validation.simulated_ms)
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
    simulated, measured = validation.simulated_ms, validation.measured_ms
    values = [{"step": int(i), "measured": measured[i], "simulated": simulated[i]} for i in kept]
    low = min(*simulated, *measured)
    high = max(*simulated, *measured)
    pad = 0.04 * (high - low) or 0.05 * high or 1.0
    domain = [max(0.0, low - pad), high + pad]
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    x = alt.X("measured:Q", title="measured, ms per decode step", axis=alt.Axis(tickCount=5), scale=scale)
    y = alt.Y("simulated:Q", title="simulated, ms", axis=alt.Axis(tickCount=5), scale=scale)
    dots = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=22, opacity=0.55, style="accent", aria=False)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("step:Q", title="decode step"),
                alt.Tooltip("measured:Q", title="measured, ms", format=".3~f"),
                alt.Tooltip("simulated:Q", title="simulated, ms", format=".3~f"),
            ],
        )
    )
    ends = [{"measured": end, "simulated": end} for end in domain]
    agreed = alt.Chart(alt.InlineData(values=ends)).mark_line(strokeDash=[5, 4], style="muted", aria=False)
    sentence = "Each point is one decode step; on the dashed line, simulation and measurement agree."
    if len(kept) < count:
        sentence += f" {len(kept):,} of {count:,} steps are drawn."
    return finish(alt.layer(agreed.encode(x=x, y=y), dots), 340, sentence)


def _of_bound(row: PolicyRow) -> str:
    share = "" if row.share_of_bound is None else f" \u00b7 {row.share_of_bound:.0%}"
    return rate(row.tokens_per_second or 0.0) + share


def _ticks(count: int) -> list[int]:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, count) if count / step <= 16)
    return list(range(0, count, step))


def shown(values: Sequence[Mapping[str, object]]) -> alt.Chart:
    """A chart of these rows, without the policies that the page's filter leaves out."""
    chart: alt.Chart = alt.Chart(alt.InlineData(values=values)).transform_filter("indexof(hidden, datum.policy) < 0")
    return chart


def dimmed(chart: alt.Chart, full: float = 1.0) -> alt.Chart:
    """The chart with all policies standing back but the highlighted one."""
    chosen = "highlight === '' || datum.policy === highlight"
    return chart.encode(opacity=alt.condition(chosen, alt.value(full), alt.value(DIMMED)))


def finish(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart,
    height: int,
    sentence: str,
    *,
    highlight: bool = False,
    filtered: bool = False,
    renderer: str = "svg",
) -> Chart:
    """The chart with the parameters that the page sets."""
    if highlight:
        chart = chart.add_params(alt.param(name="highlight", value=""))
    if highlight or filtered:
        chart = chart.add_params(alt.param(name="hidden", value=[]))
    spec = chart.properties(width="container", height=height, description=sentence).to_dict()
    # The page brings the configuration, and names no address that a reader could take for a download.
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return Chart(spec, sentence, height, renderer)
