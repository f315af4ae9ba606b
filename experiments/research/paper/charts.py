"""Figures 1 and 2, and Table 2 as a picture, drawn with altair and rendered to PNG without a browser."""

from collections.abc import Sequence

import altair as alt

from engine.curves.curve import CurvePoint
from experiments.research.paper.activation import ActivationRow
from experiments.research.paper.published import HIT_RATIO, MACHINES, ROW_TITLES, ROWS
from experiments.research.paper.recall import RecallPoint
from experiments.research.paper.table2 import Table2
from tracekit.trace import Trace

# Okabe & Ito, "Color Universal Design" (2008).
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY = "#8a8f94"
SCALE = 1.5

COUNTS = alt.Axis(tickMinStep=1, grid=False, labelFlush=False)
SHARES = alt.Axis(format=".0%", tickCount=5)
ALL = alt.Scale(domain=[0, 1])

Chart = alt.TopLevelMixin


def png(chart: Chart) -> bytes:
    """The chart as PNG, half as large again as its nominal size."""
    import vl_convert

    chart = chart.configure(font="sans-serif", background="white", padding=12).configure_axis(
        labelFontSize=12, titleFontSize=13, titleFontWeight="normal", gridColor="#e4e6e8"
    )
    chart = chart.configure_title(fontSize=14, fontWeight="normal", anchor="start", subtitleFontSize=12, offset=10)
    chart = chart.configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelLimit=400)
    chart = chart.configure_header(labelFontSize=13, titleFontSize=13).configure_view(stroke="#c8ccd0")
    data: bytes = vl_convert.vegalite_to_png(chart.to_json(), scale=SCALE)
    return data


def hits(points: Sequence[CurvePoint], trace: Trace) -> Chart:
    """Figure 2, left: LRU hit ratio of decode steps against experts held per layer."""
    decode = any(point.decode_hit_ratio for point in points)
    ours, paper = trace.manifest.model.id, "Mixtral-8x7B, stated"
    ratios = [(p.capacity, p.decode_hit_ratio if decode else p.hit_ratio) for p in points]
    rows = [{"size": int(size.partition("/")[0]), "hit": hit, "what": ours} for size, hit in ratios]
    names = [ours]
    if (trace.num_experts, trace.top_k) == (8, 2):
        rows += [{"size": size, "hit": ratio, "what": paper} for size, ratio in HIT_RATIO.items()]
        names.append(paper)
    symbols = alt.Scale(domain=names, range=["circle", "diamond"][: len(names)])
    colours = alt.Scale(domain=names, range=[BLUE, VERMILION][: len(names)])
    legend = alt.Legend(orient="top")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("size:Q", title="cache size k, experts per layer", axis=COUNTS),
        y=alt.Y("hit:Q", title="hit ratio", axis=SHARES, scale=ALL),
        color=alt.Color("what:N", title=None, sort=None, legend=legend, scale=colours),
    )
    line = base.transform_filter(alt.datum.what == ours).mark_line(strokeWidth=2)
    # Hollow, so that neither hides the other where they agree.
    dots = base.mark_point(filled=False, size=110, strokeWidth=2, opacity=1).encode(
        shape=alt.Shape("what:N", title=None, sort=None, legend=legend, scale=symbols)
    )
    subtitle = f"a cache per layer, {'decode' if decode else 'all'} steps"
    title = alt.Title("LRU hit ratio against cache size", subtitle=subtitle)
    return alt.layer(line, dots).properties(width=380, height=280, title=title)


def recall(points: Sequence[RecallPoint], trace: Trace) -> Chart:
    """Figure 2, right: recall of guesses against how many experts are fetched, a line per distance."""
    names = {p.distance: f"{p.distance} layer{'s' * (p.distance > 1)} ahead" for p in points}
    rows = [{"fetched": p.fetched, "recall": p.recall, "what": names[p.distance]} for p in points]
    most = max(p.fetched for p in points)
    # Guessing blindly finds each needed expert with probability fetched / experts.
    rows += [{"fetched": n, "recall": n / trace.num_experts, "what": "by chance"} for n in range(1, most + 1)]
    domain = [*names.values(), "by chance"]
    colours = alt.Scale(domain=domain, range=[*[BLUE, VERMILION, GREEN][: len(names)], GREY])
    dashes = alt.Scale(domain=domain, range=[*[[1, 0], [6, 4], [2, 3]][: len(names)], [1, 3]])
    legend = alt.Legend(orient="top", symbolType="stroke", symbolSize=300)
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=40))
        .encode(
            x=alt.X("fetched:Q", title="experts fetched", axis=COUNTS),
            y=alt.Y("recall:Q", title="recall", axis=SHARES, scale=ALL),
            color=alt.Color("what:N", title=None, sort=None, legend=legend, scale=colours),
            strokeDash=alt.StrokeDash("what:N", title=None, sort=None, legend=legend, scale=dashes),
        )
    )
    subtitle = f"{trace.manifest.model.id}: later gate on earlier input, top-{trace.top_k} of {trace.num_experts}"
    return chart.properties(width=380, height=280, title=alt.Title("Speculative recall", subtitle=subtitle))


def activation(rows: Sequence[ActivationRow], trace: Trace) -> Chart:
    """Figure 1: experts chosen token by token (shade: gate weight) and those an LRU cache holds (grey), by layer."""
    panels = []
    tokens = max(row.token for row in rows) + 1
    experts = trace.num_experts
    step = max(1, -(-experts // 8))
    row_height, frame_width = (20, 1.6) if experts <= 16 else (8, 1.2) if experts <= 40 else (5, 0.7)
    strongest = max(row.weight for row in rows)
    for layer in dict.fromkeys(row.layer for row in rows):
        cells = [
            {"token": r.token, "expert": r.expert, "weight": r.weight, "cached": r.cached}
            for r in rows
            if r.layer == layer
        ]
        tokens_axis = alt.Axis(values=list(range(0, tokens, 8)), labelAngle=0, ticks=False)
        experts_axis = alt.Axis(values=list(range(0, experts, step)), ticks=False)
        title = "decode token" if layer == rows[-1].layer else None
        base = alt.Chart(alt.InlineData(values=cells)).encode(
            x=alt.X("token:O", title=title, axis=tokens_axis).scale(domain=list(range(tokens)), padding=0.08),
            y=alt.Y("expert:O", title=f"layer {layer}, expert", axis=experts_axis).scale(
                domain=list(range(experts)), padding=0.08
            ),
        )
        cached = base.transform_filter("datum.cached").mark_rect(color="#c4c8cc")
        shade = alt.Scale(domain=[0, strongest], range=["#d6e6f4", "#08306b"])
        legend = alt.Legend(format=".1f", gradientLength=120)
        weight = alt.Color("weight:Q", title="gate weight", legend=legend, scale=shade)
        chosen = base.transform_filter("datum.weight > 0").mark_rect().encode(color=weight)
        frame = base.transform_filter("datum.cached && datum.weight > 0").mark_rect(
            filled=False, stroke=VERMILION, strokeWidth=frame_width
        )
        panels.append(alt.layer(cached, chosen, frame).properties(width=760, height=min(900, row_height * experts)))
    about = alt.Title(
        f"Experts chosen by {trace.manifest.model.id}, token by token",
        subtitle=f"blue: chosen; grey: held by an LRU cache of {trace.top_k} per layer and not chosen; framed: a hit",
    )
    return alt.vconcat(*panels, spacing=14).properties(title=about)


def table2(result: Table2) -> Chart:
    """Published against predicted tokens per second, a panel per row of Table 2."""
    titles = {m.name: m.title for m in MACHINES}
    values = []
    for cell in result.cells:
        wanted = {"full": "2 guessed", "naive": "overhead added"}.get(cell.row, "")
        place = {"row": ROW_TITLES[cell.row], "gpu": f"{titles[cell.machine]}, {cell.bits}-bit"}
        for p in cell.predictions:
            if p.variant == wanted and cell.kind != "misprint":
                model = "two terms" if p.model == "two-term" else "simulator"
                values.append({**place, "model": model, "speed": p.tokens_per_second})
        stated = "published (misprint)" if cell.kind == "misprint" else "published"
        values.append({**place, "model": stated, "speed": cell.published})
    order = [f"{m.title}, {bits}-bit" for m in MACHINES for bits in (2, 3)]
    domain = ["published", "published (misprint)", "two terms", "simulator"]
    colour = alt.Color("model:N", title=None, sort=None, legend=alt.Legend(orient="top")).scale(
        domain=domain, range=["#c4c8cc", "#f0d2c0", BLUE, VERMILION]
    )
    shape = alt.Shape("model:N", title=None, sort=None, legend=alt.Legend(orient="top")).scale(
        domain=domain, range=["square", "square", "circle", "diamond"]
    )
    base = alt.Chart().encode(
        x=alt.X("speed:Q", title="tokens/s", axis=alt.Axis(tickCount=4)).scale(zero=True),
        y=alt.Y("gpu:N", title=None, sort=order),
        color=colour,
    )
    is_told = "indexof(datum.model, 'published') == 0"
    bars = base.mark_bar(height=14).transform_filter(is_told)
    dots = base.mark_point(filled=True, size=80, opacity=1).transform_filter(f"!({is_told})").encode(shape=shape)
    chart = alt.layer(bars, dots, data=alt.InlineData(values=values)).properties(width=300, height=190)
    return chart.facet(
        facet=alt.Facet("row:N", title=None, sort=[ROW_TITLES[row] for row in ROWS]),
        columns=2,
        title=alt.Title(
            "Table 2: published and predicted",
            subtitle=f"fitted to the 2-bit rows without pre-loading; full: two guesses, recall {result.recall[2]:.2f}; "
            "naive: overhead added",
        ),
    )
