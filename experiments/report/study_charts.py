"""The charts that only studies have: memory against speed, fates of prefetches, regret."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from html import escape

import altair as alt

from engine.replay.bars import COLOURS, LANES
from experiments.report import bars, html_tables
from experiments.report.causes import NEUTRAL, colour
from experiments.report.charts import PALETTE, SHAPES, Chart, Look, alike, dimmed, finish, shown
from experiments.report.content import BetterRow, PolicyRow, RegretRow, SearchRound, TokenTimeline
from experiments.report.front import front
from experiments.report.html_tables import number, percent, policy_rows, rate, row_labels, size, table

FATES = (("useful", "#009E73"), ("late", "#E69F00"), ("wasted", "#D55E00"))
MOST_POINTS = 2000


def bytes_of(row: PolicyRow) -> float:
    """What a row takes of the device."""
    return row.device_bytes or 0


def memory(rows: Sequence[PolicyRow], look: dict[str, Look], room: float | None = None) -> Chart:
    """Tokens per second against device memory, the line of those that are beaten by none, and where `room` ends."""
    best = front(rows, bytes_of)
    fastest = sorted(rows, key=lambda row: -(row.tokens_per_second or 0))[:MOST_POINTS]

    def values(chosen: Sequence[PolicyRow]) -> list[dict[str, object]]:
        return [
            {
                "policy": row.name,
                "label": label,
                "format": row.weights or "as stored",
                "ahead": row.prefetch.partition(" (")[0] or "none",
                "lane": row.lane or "copied",
                "gigabytes": (row.device_bytes or 0) / 1e9,
                "rate": row.tokens_per_second,
            }
            for label, row in zip(row_labels(chosen), chosen, strict=True)
        ]

    x = alt.X("gigabytes:Q", title="device memory, GB", axis=alt.Axis(tickCount=6, grid=False)).scale(
        zero=False, padding=12
    )
    y = alt.Y("rate:Q", title="decode tokens per second", axis=alt.Axis(tickCount=5)).scale(zero=False, padding=12)
    line = alt.Chart(alt.InlineData(values=values(best))).mark_line(
        interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 4], style="muted", aria=False
    )
    channels, told = _told_apart(fastest, look)
    dots = (
        dimmed(shown(values(fastest)), 0.85)
        .mark_point(size=60, strokeWidth=1.5)
        .encode(
            x=x,
            y=y,
            **channels,
            tooltip=[
                alt.Tooltip("label:N", title="plan"),
                alt.Tooltip("gigabytes:Q", title="device memory, GB", format=".2f"),
                alt.Tooltip("rate:Q", title="tokens/s", format=".3~g"),
            ],
        )
    )
    sentence = "Each point is one plan: the device memory it takes and its tokens per second. "
    sentence += "Along the dashed line no plan is faster with as much memory."
    sentence += f" {told}" if told else ""
    layers = [line.encode(x=x, y=y), dots]
    if room is not None and any((row.device_bytes or 0) > room for row in rows):
        end = alt.Chart(alt.InlineData(values=[{"gigabytes": room / 1e9}])).mark_rule(strokeWidth=2, style="bound")
        layers.append(end.encode(x=x))
        sentence += f" What is right of the upright line does not fit: there are {room / 1e9:.1f} GB."
    return finish(alt.layer(*layers), 320, sentence, highlight=True)


def _told_apart(rows: Sequence[PolicyRow], look: dict[str, Look]) -> tuple[dict[str, object], str]:
    """How points are told apart, and how that is said: colours are weight formats, or policies where there is but one
    format; marks are prefetchers; hollow marks do not copy and keep every miss. What does not vary takes no channel."""
    formats = sorted({row.weights or "as stored" for row in rows})
    ahead = sorted({row.prefetch.partition(" (")[0] or "none" for row in rows}, key=lambda name: (name != "none", name))
    lanes = sorted({row.lane or "copied" for row in rows}, key=lambda name: name != "copied")
    names = list(dict.fromkeys(row.name for row in rows))
    legend = alt.Legend(orient="top", direction="vertical", labelLimit=320, title=None, symbolStrokeWidth=1.5)
    if len(formats) > 1:
        hues = [PALETTE[place % len(PALETTE)] for place in range(len(formats))]
        tint, words = alt.Color("format:N", sort=None, legend=legend).scale(domain=formats, range=hues), ["weights"]
        solid = alt.Fill("format:N", sort=None, legend=legend).scale(domain=formats, range=hues)
    else:
        hues = [look[name].colour for name in names]
        tint, words = alt.Color("policy:N", sort=None, legend=None).scale(domain=names, range=hues), ["policies"]
        solid = alt.Fill("policy:N", sort=None, legend=None).scale(domain=names, range=hues)
    told = f"Colours are {words[0]}"
    channels: dict[str, object] = {"color": tint}
    if len(ahead) > 1:
        marks = [SHAPES[place % len(SHAPES)] for place in range(len(ahead))]
        channels["shape"] = alt.Shape("ahead:N", sort=None, legend=legend).scale(domain=ahead, range=marks)
        told += ", marks prefetchers"
    elif len(formats) == 1:
        channels["shape"] = alt.Shape("policy:N", sort=None, legend=None).scale(
            domain=names, range=[look[name].shape for name in names]
        )
    if len(lanes) > 1:
        channels["fill"] = alt.condition("datum.lane === 'copied'", solid, alt.value("transparent"))
        told += "; where not every miss is copied and kept, marks are hollow"
    else:
        channels["fill"] = solid
    return channels, f"{told}." if len(formats) > 1 or len(ahead) > 1 or len(lanes) > 1 else ""


def memory_table(rows: Sequence[PolicyRow]) -> str:
    """The plans along the line."""

    def cells(row: PolicyRow) -> list[str]:
        return [number(row.device_bytes, size), number(row.tokens_per_second, rate)]

    return policy_rows(
        ["Plan", "Device memory", "Tokens/s"], front(rows, bytes_of), cells, label="Fastest plans by memory"
    )


def fates(rows: Sequence[PolicyRow]) -> Chart:
    """Of each prefetching plan, the shares of prefetches that were in time, late and wasted."""
    chosen = sorted(rows, key=lambda row: -(row.tokens_per_second or 0))[: bars.MOST]
    values = [
        {
            "policy": row.name,
            "label": label,
            "fate": fate,
            "order": place,
            "share": count / sum(row.fates or (1,)),
            "count": count,
        }
        for label, row in zip(row_labels(chosen), chosen, strict=True)
        for place, ((fate, _), count) in enumerate(zip(FATES, row.fates or (), strict=True))
    ]
    order = row_labels(chosen)
    sentence = "Of each plan's prefetches, the share that was there in time (useful), waited for (late), or never used "
    sentence += "(wasted); the fastest plan first."
    sentence += alike(chosen)
    if len(chosen) < len(rows):
        sentence += f" The {len(chosen)} fastest of {len(rows)} are drawn."
    return _stacked(values, order, "fate", dict(FATES), "share of prefetches", ".0%", sentence)


def fates_table(rows: Sequence[PolicyRow]) -> str:
    """Counts and shares."""

    def cells(row: PolicyRow) -> list[str]:
        counts = row.fates or (0, 0, 0)
        return [number(count, lambda of: f"{of:,} ({percent(of / sum(counts))})") for count in counts]

    return policy_rows(["Plan", "Useful", "Late", "Wasted"], rows, cells, label="What became of prefetches")


def regret(rows: Sequence[RegretRow]) -> Chart:
    """Milliseconds of a step beyond computing alone, by cause; what wins time goes to the left."""
    chosen = rows[: bars.MOST]
    values = [
        {"policy": row.policy, "label": row.label, "cause": cause, "order": place, "share": value}
        for row in chosen
        for place, (cause, value) in enumerate(row.parts)
        if value
    ]
    colours = {cause: colour(cause) for cause in causes(chosen)}
    sentence = (
        "What a step takes beyond computing alone, by what causes it; to the left of zero, what prefetching and "
        "misses served otherwise win. The causes add up to the whole."
    )
    sentence += f" All: {chosen[0].alike}." if chosen[0].alike else ""
    if len(chosen) < len(rows):
        sentence += f" The first {len(chosen)} of {len(rows)} are drawn."
    order = [row.label for row in chosen]
    return _stacked(values, order, "cause", colours, "ms per step", ".3~f", sentence)


def causes(rows: Sequence[RegretRow]) -> list[str]:
    """The causes that take or win any time."""
    return list(dict.fromkeys(cause for row in rows for cause, value in row.parts if value))


def regret_table(rows: Sequence[RegretRow]) -> str:
    """Every part, and their sum."""
    columns = ["Plan", *(cause for cause, _ in rows[0].parts), "Total, ms"]
    cells = []
    for row in rows:
        parts = [value for _, value in row.parts]
        cells.append([escape(row.label), *(number(value, "{:+.2f}".format) for value in parts)])
        cells[-1].append(number(sum(parts), "{:.2f}".format))
    return table(columns, cells, label="Regret, milliseconds per step", policies=[row.policy for row in rows])


def _gained(now: float, speed: float) -> str:
    return f"{rate(speed)} ({speed / now - 1:+.0%})"


def better_section(rows: Sequence[BetterRow]) -> str:
    """What would help most: of each plan its speed on machines of which one thing is better."""
    columns = ["Plan", "Tokens/s", *(f"{part} {times:g}x" for part, times, _ in rows[0].better)]
    cells = []
    for row in rows:
        cells.append([escape(row.label), number(row.now, rate)])
        cells[-1] += [number(speed, partial(_gained, row.now)) for *_, speed in row.better]
    text = (
        "Speeds as they would be if one thing of the machine were so many times better; memory is slots for experts, "
        "and plans are decided again for them. Where a plan prefetches, or the host computes, a better machine may be "
        "slower: a copy ahead of demand begins that would not have begun."
    )
    numbers = table(columns, cells, label="What would help most", policies=[row.policy for row in rows])
    return f"<h3>What would help most</h3><p>{text}</p>{numbers}"


def timeline(found: TokenTimeline) -> Chart:
    """What ran where and when while one token was made."""
    values = [asdict(bar) | {"ms": bar.end - bar.begin} for bar in found.bars]
    lanes = [lane for lane in LANES if any(bar.lane == lane for bar in found.bars)]
    kinds = [kind for kind in COLOURS if any(bar.kind == kind for bar in found.bars)]
    length = max(bar.end for bar in found.bars)
    colours = [NEUTRAL if kind == "wait" else COLOURS[kind] for kind in kinds]
    legend = alt.Legend(orient="top", title=None, columns=2, symbolType="square")
    bars = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(height=30, style="edge")
        .encode(
            x=alt.X("begin:Q", title="milliseconds", axis=alt.Axis(tickCount=6, grid=False)).scale(
                domain=[0, length], nice=False
            ),
            x2="end:Q",
            y=alt.Y("lane:N", sort=lanes, title=None, axis=alt.Axis(ticks=False)),
            color=alt.Color("kind:N", legend=legend, sort=None).scale(domain=kinds, range=colours),
            opacity=alt.condition("datum.kind === 'wait'", alt.value(0.3), alt.value(1)),
            tooltip=[
                alt.Tooltip("kind:N", title="what"),
                alt.Tooltip("label:N", title="expert, or cause"),
                alt.Tooltip("layer:O", title="MoE layer"),
                alt.Tooltip("begin:Q", title="begins, ms", format=".3~f"),
                alt.Tooltip("ms:Q", title="takes, ms", format=".3~f"),
            ],
        )
    )
    sentence = f"{found.title}. Each bar is one piece of work in the lane that did it."
    return finish(bars, 52 * len(lanes) + 40, sentence)


def timeline_table(found: TokenTimeline) -> str:
    """Every bar."""
    cells = [
        [
            escape(bar.lane),
            escape(bar.kind),
            escape(bar.label) or html_tables.NONE,
            str(bar.layer),
            number(bar.begin, "{:.3f}".format),
            number(bar.end, "{:.3f}".format),
        ]
        for bar in found.bars
    ]
    columns = ["Lane", "What", "Expert, or cause", "MoE layer", "Begins, ms", "Ends, ms"]
    return table(columns, cells, label="A token's timeline")


def search_table(rounds: Sequence[SearchRound]) -> str:
    """What a search pruned, round by round."""
    cells = [
        [
            f"first {percent(found.share)}",
            *(f"{count:,}" for count in (found.plans, found.kept, found.pruned, found.too_large, found.failed)),
            escape(found.last_kept) or html_tables.NONE,
            escape(found.first_pruned) or html_tables.NONE,
        ]
        for found in rounds
    ]
    columns = ["Of the decode steps", "Plans", "Kept", "Pruned", "Too large", "Failed", "Last kept", "First pruned"]
    return table(columns, cells, label="What the search pruned")


def _stacked(
    values: Sequence[Mapping[str, object]],
    order: list[str],
    part: str,
    colours: dict[str, str],
    title: str,
    form: str,
    sentence: str,
) -> Chart:
    """Horizontal stacked bars with the label above each; parts in the order of `colours`."""
    drawn = bars.Bars(order)
    base = drawn.base(values)
    marks = base.mark_bar(height=bars.BAR, yOffset=drawn.offset).encode(
        x=alt.X("sum(share):Q", title=title, axis=alt.Axis(tickCount=5, format=form), stack="zero"),
        color=alt.Color(f"{part}:N", sort=None, legend=None).scale(domain=list(colours), range=list(colours.values())),
        order=alt.Order("order:Q"),
        tooltip=[
            alt.Tooltip("label:N", title="plan"),
            alt.Tooltip(f"{part}:N", title=part),
            alt.Tooltip("share:Q", title=title, format=form.replace(".0%", ".1%")),
        ],
    )
    names = drawn.names(base.transform_aggregate(groupby=["label", "lines"]))
    return finish(alt.layer(marks, names), drawn.height, sentence, filtered=True)
