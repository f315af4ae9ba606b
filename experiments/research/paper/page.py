"""docs/paper.md filled in: its tables, and the numbers in its sentences. The sentences are the page's own.

A table stands between `<!-- table:NAME -->` and `<!-- end -->`. A number is followed by `<!--NAME-->`; how it stands
there says with how many decimals, and whether with its sign.
"""

import json
import re
from pathlib import Path

from experiments.research import markdown
from experiments.research.paper.page_numbers import numbers
from experiments.research.paper.table2 import Table2
from experiments.research.paper.text_tables import TABLES
from tracekit.errors import StudyError

TABLE = re.compile(r"(?P<begin><!-- table:(?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.S)
NUMBER = re.compile(r"(?P<sign>[-+]?)\d+(?:\.(?P<decimals>\d+))?<!--(?P<name>[\w.-]+)-->")


def filled(page: Path, result: Table2) -> str:
    """The text of `page` with every table and number as it should be; Figures 1 and 2 are read from beside it.

    Raises StudyError for names that are not known, and for a page that shows not every table once.
    """
    tables = {
        name: markdown.table(table.columns, table.rows) for name, build in TABLES.items() for table in [build(result)]
    }
    tables["figures"] = figures_table(page.parent / "paper" / "figures.json")
    known = numbers(result)

    def number(found: re.Match[str]) -> str:
        if found["name"] not in known:
            raise StudyError(f"{page}: there is no number {found['name']!r}")
        digits = len(found["decimals"] or "")
        value = round(known[found["name"]], digits) + 0.0  # never a negative nothing
        return f"{value:{'+' if found['sign'] else ''}.{digits}f}<!--{found['name']}-->"

    text = page.read_text(encoding="utf-8")
    if sorted(shown := [found["name"] for found in TABLE.finditer(text)]) != sorted(tables):
        raise StudyError(f"{page} shows the tables {', '.join(shown)}; wanted once each: {', '.join(tables)}")
    text = TABLE.sub(lambda found: f"{found['begin']}{tables[found['name']]}\n{found['end']}", text)
    return NUMBER.sub(number, text)


def figures_table(figures: Path) -> str:
    """Hit ratios and recalls of recorded figures, by cache size or experts fetched."""
    found = json.loads(figures.read_text(encoding="utf-8"))
    hits = {int(p["capacity"].partition("/")[0]): p["decode_hit_ratio"] for p in found["hits"]}
    recall = {(p["distance"], p["fetched"]): p["recall"] for p in found["recall"]}
    rows = [["LRU hit ratio, decode", *(f"{ratio:.3f}" for ratio in hits.values())]]
    for d in sorted({distance for distance, _ in recall}):
        rows.append([f"recall, {d} layer{'s' * (d > 1)} ahead", *(f"{recall[d, n]:.3f}" for n in hits)])
    return markdown.table(["k, or experts fetched", *(str(n) for n in hits)], rows)
