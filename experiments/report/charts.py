"""The charts, as Vega-Lite specifications. Colours of text, grid and ramps are the page's (light or dark).

Policies keep one colour and one mark throughout a report. A chart with the parameter `highlight` dims every
policy but the one named by it; the page sets it from the legend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from experiments.report.content import CurvePoint, HeatMap, PolicyRow, Validation
from experiments.report.html_tables import by_speed, percent, rate

# Okabe & Ito, "Color Universal Design" (2008), less black and yellow: each vanishes on one of the grounds.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ([6, 4], [2, 3], [10, 3, 2, 3])
NEUTRAL = "#8a8f94"  # legible on both grounds: bounds are not contestants
MOST_BARS = 40
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
    rows = [{"policy": p.policy, "cache": p.capacity, "held": p.share_held, "hit": p.hit_ratio} for p in points]
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
    return finish(alt.layer(lines, dots), 340, sentence, highlight=True)


def speeds(rows: Sequence[PolicyRow], look: dict[str, Look]) -> Chart:
    """Decode tokens per second, a bar per row, and each row's bound as a mark across it."""
    timed = by_speed(rows)
    chosen = timed[:MOST_BARS]
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
        for label, row in chosen
    ]
    order = [label for label, _ in chosen]
    base = dimmed(labelled(values, order)).encode(
        tooltip=[
            alt.Tooltip("label:N", title="policy"),
            alt.Tooltip("rate:Q", title="tokens/s", format=".3~g"),
            alt.Tooltip("bound:Q", title="bound", format=".3~g"),
        ],
    )
    x = alt.X("rate:Q", title="decode tokens per second", axis=alt.Axis(tickCount=5)).scale(zero=True)
    bars = base.mark_bar(height=12, yOffset=9, cornerRadiusEnd=2).encode(x=x, color=alt.Color("colour:N", scale=None))
    spans = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, yOffset=9, style="bound")
    spans = spans.encode(x=alt.X("low:Q"), x2="high:Q")
    limits = base.transform_filter("isValid(datum.bound)").mark_tick(
        orient="vertical", thickness=2, size=18, yOffset=9, style="bound"
    )
    limits = limits.encode(x=alt.X("bound:Q"))
    names = labels(base, "max(60, width - 145)")
    numbers = base.mark_text(align="right", yOffset=-8, fontSize=12, style="muted", aria=False)
    numbers = numbers.encode(x=alt.value(alt.ExprRef("width")), text="text:N")
    bounded = any(row.bound_tokens_per_second is not None for _, row in chosen)
    sentence = "Decode tokens per second, fastest first."
    if bounded:
        sentence += " The upright mark is each row's bound: what clairvoyant decisions would allow with that cache "
        sentence += "on that machine."
    if any(row.is_bound for _, row in chosen):
        sentence += " Grey bars know the future."
    if len(chosen) < len(timed):
        sentence += f" The {len(chosen)} fastest of {len(timed)} are drawn."
    drawn = [bars, limits, names, numbers]
    if any(row.low is not None for _, row in chosen):
        drawn.insert(1, spans)
        sentence += " The line through a bar's end is the interval that its requests leave open."
    return finish(alt.layer(*drawn), 46 * len(chosen), sentence, highlight=True)


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
    share = "" if row.share_of_bound is None else f" ({percent(row.share_of_bound)} of bound)"
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


def labelled(values: Sequence[Mapping[str, object]], order: Sequence[str]) -> alt.Chart:
    """Rows for bars whose label stands above each, so that nothing is cut off on a narrow screen."""
    return shown(values).encode(y=alt.Y("label:N", sort=order, axis=None).scale(paddingInner=0, paddingOuter=0.1))


def labels(bars: alt.Chart, width: str) -> alt.Chart:
    """The labels of such bars, at most so wide."""
    text: alt.Chart = bars.mark_text(
        align="left", yOffset=-8, fontSize=13, style="ink", limit=alt.ExprRef(width), aria=False
    )
    return text.encode(x=alt.value(0), text="label:N")


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
