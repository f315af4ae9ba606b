"""The league as a page (docs/league.md) and as rows for a terminal."""

from collections.abc import Sequence

from experiments.research import markdown
from experiments.research.league.entries import Entry, Source

COLUMNS = ("row", "machine", "", "published", "predicted", "error")
HEAD = """\
# The league

Published measurements that a simulator of expert offloading should predict, and what this one says of them. Two numbers
at most are fitted for a machine, or one for each size of its cache, on the rows marked so; every other row is
predicted. Misses stay in, with what is missing. This page is written by
`python -m experiments.research.league --data FOLDER --write docs/league.md --picture docs/pictures/league.png`.

![errors of all predicted rows by source](pictures/league.png)
"""


def page(sources: Sequence[Source]) -> str:
    """The whole text of docs/league.md."""
    parts = [HEAD, markdown.table(SUMMARY_COLUMNS, summary(sources)) + "\n"]
    for source in sources:
        fits = "\n".join(f"- {line}" for line in source.fits)
        parts.append(f"## {source.title}\n\n{source.origin}; {source.unit}.\n\n{source.assumed}\n\nFitted:\n\n{fits}\n")
        parts.append(markdown.table(COLUMNS, rows(source)) + "\n")
        if lacking := missing(source):
            parts.append("What is missing:\n\n" + "\n".join(f"- {line}" for line in lacking) + "\n")
    return "\n".join(parts)


SUMMARY_COLUMNS = ("source", "rows predicted", "median error", "worst", "without an answer")


def summary(sources: Sequence[Source]) -> list[list[str]]:
    """A row for each source: errors of what was predicted."""
    return [
        [
            source.title,
            str(len(source.errors())),
            f"{100 * source.median_error:.2f} %" if source.errors() else "-",
            _percent(source.worst_error) if source.errors() else "-",
            str(source.unanswered),
        ]
        for source in sources
    ]


def rows(source: Source) -> list[list[str]]:
    """A row for each published figure."""
    return [
        [
            entry.row,
            entry.machine,
            "no answer" if entry.predicted is None else entry.kind,
            f"{entry.published:.{source.decimals}f}",
            "-" if entry.predicted is None else f"{entry.predicted:.{source.decimals}f}",
            "-" if entry.error is None else _percent(entry.error),
        ]
        for entry in source.entries
    ]


def missing(source: Source) -> list[str]:
    """What the simulator would have to know: a line for each lack, with the rows that have it."""
    lacks: dict[str, list[Entry]] = {}
    for entry in source.entries:
        if entry.missing:
            lacks.setdefault(entry.missing, []).append(entry)
    return [f"{'; '.join(dict.fromkeys(_name(e) for e in entries))}: {lack}." for lack, entries in lacks.items()]


def _name(entry: Entry) -> str:
    return f"{entry.row} ({entry.machine})" if "published figure" in entry.missing else entry.row


def _percent(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:+.2f} %"  # never a negative nothing
