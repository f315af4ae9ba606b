"""A report's charts and tables as files for papers: one chart for each question and machine, as wide as a column."""

import copy
import json
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Literal

import vl_convert

from experiments.report.charts import Chart
from experiments.report.content import ReportContent
from experiments.report.paper_tables import csv_table, latex_table, paper_tables
from experiments.report.render import sections_of
from tracekit.errors import StudyError

Format = Literal["svg", "pdf", "png"]
WIDTH = 336
"""A column of usual two-column styles: 3.5 inches, at 96 pixels to the inch."""
SCALE = 300 / 96
"""Of PNG: 300 pixels to the inch."""
DRAW: dict[Format, Callable[[str], bytes]] = {
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "pdf": lambda spec: vl_convert.vegalite_to_pdf(spec),
    "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=SCALE),
}


def figures(content: ReportContent, form: Format = "pdf", select: Sequence[str] = ()) -> dict[str, tuple[bytes, str]]:
    """By file name: the bytes, and what they show in a sentence; tables as CSV and LaTeX beside the charts.

    `select`: patterns of names without their endings, such as `speed-*`; none takes all. The same content gives the
    same bytes (with the same Vega). Raises StudyError where a pattern matches nothing.
    """
    _, drawn = sections_of(content)
    charts = {_named(name, content): chart for name, chart in drawn.items()}
    tables = paper_tables(content, slug)
    known = [*charts, *tables]
    if unknown := [pattern for pattern in select if not any(fnmatchcase(name, pattern) for name in known)]:
        raise StudyError(f"no figure is named {unknown[0]!r}; there are {', '.join(known)}")

    def chosen(name: str) -> bool:
        return not select or any(fnmatchcase(name, pattern) for pattern in select)

    found: dict[str, tuple[bytes, str]] = {}
    for name, chart in charts.items():
        if chosen(name):
            found[f"{name}.{form}"] = (DRAW[form](json.dumps(_standing_alone(chart))), chart.sentence)
    for name, table in tables.items():
        if chosen(name):
            found[f"{name}.csv"] = (csv_table(table).encode(), table.caption)
            found[f"{name}.tex"] = (latex_table(table).encode(), table.caption)
    return found


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80] or "unnamed"


def _named(name: str, content: ReportContent) -> str:
    """`chart-speed-0` as `speed-rtx3060-at-mixtral-8x7b-s-shape`: what it shows, and of what."""
    kind, _, place = name.removeprefix("chart-").partition("-")
    if not place:
        return kind
    titles = {
        "curves": [drawn.title for drawn in content.curve_sets],
        "heat": [drawn.model for drawn in content.heat_maps],
    }.get(kind, [setting.title for setting in content.settings])
    named = [slug(title.replace("'s shape", "")) for title in titles]
    own = named[int(place)]
    return f"{kind}-{own}" + (f"-{place}" if named.count(own) > 1 else "")


def _standing_alone(chart: Chart) -> dict[str, object]:
    """The chart's specification with what the page brings: configuration, width, and legends of its own."""
    fit = {"type": "fit-x", "contains": "padding"}  # axes and all within the column
    spec = copy.deepcopy(chart.spec) | {"config": _config(), "width": WIDTH, "autosize": fit, "background": "white"}
    _with_legends(spec)
    return spec


def _with_legends(node: object) -> None:
    """A picture has no legend beside it: colours and marks of policies and parts need one of its own."""
    if isinstance(node, dict):
        if node.get("field") in ("policy", "fate", "cause") and node.get("legend", 0) is None:
            square = {} if node["field"] == "policy" else {"symbolType": "square"}
            node["legend"] = {"orient": "top", "title": None, "columns": 3, "labelLimit": 160} | square
        for value in node.values():
            _with_legends(value)
    elif isinstance(node, list):
        for value in node:
            _with_legends(value)


def _config() -> dict[str, object]:
    """The page's theme in its light colours, from its style sheet."""
    page = (files("experiments.report") / "page.html").read_text("utf-8")
    root = re.search(r":root \{(.*?)\}", page, re.DOTALL)
    assert root is not None
    colour = dict(re.findall(r"--([\w-]+): (#\w+)", root[1]))
    words = {
        "labelColor": colour["ink"],
        "titleColor": colour["ink"],
        "labelFontSize": 10.5,  # 8 points, as captions are
        "titleFontSize": 10.5,
        "titleFontWeight": "normal",
    }
    ramp = [colour[f"ramp-{place}"] for place in range(4)]
    styles = {name: {"color": colour[name]} for name in ("accent", "ink", "muted")}
    return {
        "font": "sans-serif",
        "padding": 4,
        "view": {"stroke": None},
        "axis": words | {"gridColor": colour["faint"], "domain": False, "tickColor": colour["line"], "titlePadding": 6},
        "legend": words | {"titlePadding": 4, "offset": 8, "titleLimit": 300},
        "range": {"heatmap": ramp, "ramp": ramp},
        "style": styles | {"bound": {"color": colour["ink"]}, "edge": {"stroke": "white", "strokeWidth": 0.6}},
    }
