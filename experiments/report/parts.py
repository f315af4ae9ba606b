"""Pieces of the page that several sections are made of."""

from collections.abc import Iterable, Mapping
from html import escape

from experiments.report.charts import Chart, Look
from experiments.report.marks import MARKS, swatch


def section(name: str, title: str, inner: str) -> str:
    """A section; without a title it goes on with the one before."""
    if not title:
        return f'<section class="more">{inner}</section>'
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n{inner}</section>'


def chart_of(name: str, chart: Chart, numbers: str, drawn: dict[str, Chart], legend: str = "", again: str = "") -> str:
    """A chart with its sentence, its legend, its numbers and how to make it again to unfold; added to `drawn`."""
    drawn[f"chart-{name}"] = chart
    return (
        f"<p>{escape(chart.sentence)}</p>\n{legend}"
        f'<div class="chart" id="chart-{name}" style="min-height:{chart.height + 50}px"></div>\n'
        f"<details><summary>The numbers</summary>{numbers}</details>{made_again(again)}"
    )


def made_again(commands: str) -> str:
    """How to make a figure again, to unfold."""
    if not commands:
        return ""
    return f"<details><summary>This figure again</summary>{shell(commands)}</details>"


def shell(commands: str) -> str:
    """Commands to copy."""
    label = 'role="region" tabindex="0" aria-label="Commands"'
    return f"<pre {label}><code>{escape(commands)}</code></pre>"


def policy_filter(policies: Iterable[str]) -> str:
    """Boxes that show and hide policies in every chart and table."""
    boxes = "".join(
        f'<label><input type="checkbox" checked data-shown="{escape(name)}">{escape(name)}</label>' for name in policies
    )
    buttons = '<button type="button" id="show-all">All</button><button type="button" id="show-none">None</button>'
    return f'<fieldset class="filter" id="filter"><legend>Policies shown</legend>{boxes}{buttons}</fieldset>'


def swatches(colours: Mapping[str, str]) -> str:
    """A legend of plain colours."""
    items = "".join(f"<li>{swatch(hue)}<span>{escape(name)}</span></li>" for name, hue in colours.items())
    return f'<ul class="words inline">{items}</ul>'


def legend(looks: dict[str, Look]) -> str:
    """Buttons that highlight a policy."""
    buttons = []
    for name, look in looks.items():
        if not look.dash:
            mark = f'<g fill="{look.colour}" stroke="none">{MARKS[look.shape]}</g>'
        else:
            dash = " ".join(str(length) for length in look.dash)
            mark = f'<path d="M0 8h22" stroke="{look.colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        width = 22 if look.dash else 16
        picture = f'<svg viewBox="0 0 {width} 16" width="{width}" height="16" aria-hidden="true">{mark}</svg>'
        text = escape(name)
        buttons.append(f'<button type="button" aria-pressed="false" data-policy="{text}">{picture}{text}</button>')
    label = "Highlight a policy in every chart"
    return f'<div class="legend" role="group" aria-label="{label}">{"".join(buttons)}</div>\n'
