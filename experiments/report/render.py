"""The page's HTML: sections, legend, and the content security policy that keeps it offline."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files

from experiments.report import charts, html_tables, setting_sections
from experiments.report.charts import Chart, Look
from experiments.report.content import CurvePoint, PolicyRow, ReportContent
from experiments.report.parts import chart_of, legend, policy_filter, section, shell
from experiments.report.validation_section import verdict
from experiments.statistics.speeds import MODELLED
from tracekit.errors import TracekitError


def render(content: ReportContent, bundle: str) -> str:
    """The page's HTML, with `bundle` as the script that defines `vegaEmbed`."""
    body, drawn = sections_of(content)
    data = json.dumps(
        {name: {"renderer": chart.renderer, "spec": chart.spec} for name, chart in drawn.items()},
        ensure_ascii=True,
        allow_nan=False,
        separators=(",", ":"),
    )
    template = (files("experiments.report") / "page.html").read_text("utf-8")
    found = re.search(r'<script id="app">(.*?)</script>', template, re.DOTALL)
    assert found is not None
    if "</script" in bundle.lower():
        raise TracekitError("the Vega bundle of vl-convert cannot stand in a page; try another version of it")
    parts = {
        "title": escape(content.title),
        "policy": " ".join(_digest(script) for script in (bundle, found[1])),
        "header": _header(content),
        "body": body,
        "charts": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "bundle": bundle,
    }
    # In one pass, so that text which looks like a placeholder stays text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def sections_of(content: ReportContent) -> tuple[str, dict[str, Chart]]:
    """The page's sections as HTML, and its charts by the name of the place where each is drawn."""
    policies = content.policies()
    drawn: dict[str, Chart] = {}
    answers = [setting_sections.answer(index, setting) for index, setting in enumerate(content.settings)]
    sections = _sections(content, charts.looks(policies), drawn)
    several = [policy_filter(policies)] if len(policies) > 1 and drawn else []
    facts = [section("", "", _facts(content))] if answers else []
    return "\n".join([*answers, *facts, *several, *sections]), drawn


def _sections(content: ReportContent, look: dict[str, Look], drawn: dict[str, Chart]) -> list[str]:
    sections = []

    def figure(
        name: str,
        title: str,
        chart: Chart,
        numbers: str,
        legend: str = "",
        again: str = "",
        *,
        at: str = "",
        of: str = "",
    ) -> None:
        inner = chart_of(name, chart, numbers, drawn, legend, again)
        heading = f'<h3 class="model">{escape(of)}</h3>' if of else ""
        sections.append(section(at or name, title, heading + inner))

    if content.rows:
        sections.append(section("policies", "Policies", _policies(content.rows)))
    if any(row.tokens_per_second is not None for row in content.rows):
        numbers = html_tables.speed_table(content.rows)
        heading = "Tokens per second" + (f", {MODELLED}" if content.modelled else "")
        figure("speed", heading, charts.speeds(content.rows, look), numbers)
    for index, setting in enumerate(content.settings):
        sections += setting_sections.details(index, setting, look, drawn)
    for index, found in enumerate(content.curve_sets):
        figure(
            f"curves-{index}",
            "" if index else "Hit ratio against cache size",
            charts.curves(found.points, look),
            html_tables.curve_table(found.points),
            _curve_legend(found.points, look),
            found.again,
            at=f"sizes-{index}",
            of=found.title,
        )
    if content.curves:
        numbers, buttons = html_tables.curve_table(content.curves), _curve_legend(content.curves, look)
        figure("curves", "Hit ratio against cache size", charts.curves(content.curves, look), numbers, buttons)
    for index, heat in enumerate(content.heat_maps):
        title, numbers = "" if index else "Which experts are used", html_tables.heat_table(heat)
        place = f"experts-{index}"
        figure(f"heat-{index}", title, charts.heat(heat), numbers, "", heat.again, at=place, of=heat.model)
    if content.validation is not None:
        sections.append(section("validation", "Simulated and measured", verdict(content.validation, drawn)))
    if content.warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in content.warnings)
        sections.append(section("limits", "Limits", f"<ul>{items}</ul>"))
    if content.reproduce:
        sections.append(section("reproduce", "Reproduce", shell("\n".join(content.reproduce))))
    return sections


def _curve_legend(points: Sequence[CurvePoint], look: dict[str, Look]) -> str:
    return legend({point.policy: look[point.policy] for point in points})


def _header(content: ReportContent) -> str:
    parts = [f"<h1>{escape(content.title)}</h1>"]
    if lede := _lede(content.rows, modelled=content.modelled):
        parts.append(f'<p class="lede">{lede}</p>')
    if not content.settings:  # else the answers come first
        parts.append(_facts(content))
    return "\n".join(parts)


def _facts(content: ReportContent) -> str:
    """What all of it is about, and how much there is to keep in mind."""
    facts = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(which)}</dd></div>" for what, which in content.subtitle)
    parts = [f"<dl>{facts}</dl>"] if facts else []
    if count := len(content.warnings):
        words = "one limit" if count == 1 else f"{count} limits"
        parts.append(f'<p class="note">Read with <a href="#limits">{words}</a> in mind.</p>')
    return "\n".join(parts)


def _lede(rows: tuple[PolicyRow, ...], *, modelled: bool) -> str:
    """What a reader wants to know first: the best that needs no foresight, and how far from its bound."""
    labelled = list(zip(html_tables.row_labels(rows), rows, strict=True))
    real = [(label, row) for label, row in labelled if not row.is_bound]
    if not real:
        return ""
    timed = [(label, row) for label, row in real if row.tokens_per_second is not None]
    if not timed:
        label, row = max(real, key=lambda pair: pair[1].hit_ratio)
        shown = html_tables.percent(row.hit_ratio)
        return f"The highest hit ratio without foresight is <b>{shown}</b>, by <b>{escape(label)}</b>."
    label, row = max(timed, key=lambda pair: pair[1].tokens_per_second or 0)
    speed = html_tables.rate(row.tokens_per_second or 0.0)
    text = f"Fastest without foresight is <b>{escape(label)}</b> at <b>{speed} tokens/s</b>"
    if row.low is not None and row.high is not None:
        text += f" ({html_tables.rate(row.low)} to {html_tables.rate(row.high)})"
    text += f", {MODELLED}" if modelled else ""
    if (share := row.share_of_bound) is not None:
        text += f", {html_tables.percent(share)} of what clairvoyant decisions would allow with that cache"
    return text + "."


def _policies(rows: tuple[PolicyRow, ...]) -> str:
    text = (
        "A row is one plan on the same routing. Hits by prefetch is the share of hits that a prefetch "
        "brought; how much of their copying was hidden shows only in the tokens per second. The bound is what "
        "no policy can beat with that cache on that machine."
    )
    if any(row.is_bound for row in rows):
        text += " Rows marked foresight know the future, and no machine can run them."
    return f"<p>{text}</p>\n{html_tables.policy_table(rows)}"


def _digest(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
