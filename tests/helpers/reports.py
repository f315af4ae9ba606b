"""Reports to test: rows of a table, names that are no markup, and what a page holds."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from experiments.report.content import PolicyRow

HOSTILE = """</script><script>alert('x')</script><img src=x onerror="alert(1)">{{bundle}}&"""


def policy(name: str, **changes: Any) -> PolicyRow:
    row = PolicyRow(
        name=name,
        capacity="4/layer",
        prefetch="none",
        hit_ratio=0.3123,
        decode_hit_ratio=0.2917,
        hits_prefetched=0.0,
        tokens_per_second=2.06,
        bound_tokens_per_second=4.02,
        bytes_loaded_per_token=1.374e9,
    )
    return replace(row, **changes)


class Page(HTMLParser):
    """Start tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def charts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def values(drawn: Any) -> list[Any]:
    """The data of a chart or of one of its layers, wherever Vega-Lite keeps it."""
    return [row for rows in drawn["spec"]["datasets"].values() for row in rows]
