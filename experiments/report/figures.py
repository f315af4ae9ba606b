"""The report's charts as pictures for papers: the page's specifications, drawn in its light colours."""

import copy
import json
import re
from importlib.resources import files

import vl_convert

from experiments.report.content import ReportContent
from experiments.report.render import sections_of

WIDTH = 720
SCALE = 2.0


def pictures(content: ReportContent) -> dict[str, tuple[bytes, str]]:
    """By file name: the picture as PNG, and what it shows."""
    _, drawn = sections_of(content)
    config = _config()
    found = {}
    for name, chart in drawn.items():
        spec = copy.deepcopy(chart.spec) | {"config": config, "width": WIDTH, "background": "white"}
        _with_legends(spec)
        data: bytes = vl_convert.vegalite_to_png(json.dumps(spec), scale=SCALE)
        found[f"{name.removeprefix('chart-')}.png"] = (data, chart.sentence)
    return found


def _with_legends(node: object) -> None:
    """A picture has no buttons beside it: policies' colours and marks need a legend of its own."""
    if isinstance(node, dict):
        if node.get("field") == "policy" and node.get("legend", 0) is None:
            node["legend"] = {"orient": "top", "title": None, "columns": 5, "labelLimit": 300}
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
        "labelColor": colour["muted"],
        "titleColor": colour["muted"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    ramp = [colour[f"ramp-{place}"] for place in range(4)]
    styles = {name: {"color": colour[name]} for name in ("accent", "ink", "muted")}
    return {
        "font": "sans-serif",
        "padding": 12,
        "view": {"stroke": None},
        "axis": words | {"gridColor": colour["faint"], "domain": False, "tickColor": colour["line"], "titlePadding": 8},
        "legend": words | {"titlePadding": 4, "offset": 10, "titleLimit": 300},
        "range": {"heatmap": ramp, "ramp": ramp},
        "style": styles | {"bound": {"color": colour["ink"]}, "edge": {"stroke": "white", "strokeWidth": 0.6}},
    }
