"""A report's tables for papers: as CSV with every digit, and as LaTeX as they stand on the page."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.report.content import CurveSet, PolicyRow, ReportContent, Setting
from experiments.report.html_tables import percent, rate, row_labels, size

Shown = Callable[[float], str]
Value = str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, each with how its numbers are shown (None: text), and rows; what the table says, in a sentence."""

    columns: tuple[tuple[str, Shown | None], ...]
    rows: tuple[tuple[Value, ...], ...]
    caption: str


def paper_tables(content: ReportContent, slug: Callable[[str], str]) -> dict[str, Table]:
    """By name, `slug` of what they are about: the best plans and every plan of each setting, and hit-ratio curves."""
    found: dict[str, Table] = {}
    for setting in content.settings:
        name = slug(setting.title.replace("'s shape", ""))
        if setting.best:
            found[_free(f"best-{name}", found)] = best(setting)
        if setting.rows:
            found[_free(f"plans-{name}", found)] = plans(setting.rows, setting.title)
    if content.rows:
        found["plans"] = plans(content.rows, content.title)
    for drawn in content.curve_sets:
        found[_free(f"curves-{slug(drawn.title)}", found)] = curves(drawn)
    return found


def best(setting: Setting) -> Table:
    """The best plans of a setting."""
    columns = (
        ("plan", None),
        (setting.unit, rate),
        ("against the best", None),
        ("device memory", size),
        ("of the bound", percent),
    )
    rows = tuple((one.label, one.value, one.against, one.device_bytes, one.share_of_bound) for one in setting.best)
    common = f" All: {setting.alike}." if setting.alike and len(rows) > 1 else ""
    return Table(columns, rows, f"The best plans on {setting.title}.{common}")


def plans(rows: Sequence[PolicyRow], title: str) -> Table:
    """Every plan, with its interval and its bound."""
    columns = (
        ("plan", None),
        ("hit ratio", percent),
        ("tokens/s", rate),
        ("low", rate),
        ("high", rate),
        ("bound", rate),
        ("loaded per token", size),
        ("device memory", size),
        ("loss of quality", percent),
    )
    lines = tuple(
        (
            label,
            row.hit_ratio,
            row.tokens_per_second,
            row.low,
            row.high,
            row.bound_tokens_per_second,
            row.bytes_loaded_per_token,
            row.device_bytes,
            row.loss,
        )
        for label, row in zip(row_labels(rows), rows, strict=True)
    )
    return Table(columns, lines, f"Every plan: {title}.")


def curves(drawn: CurveSet) -> Table:
    """Hit ratio by policy and cache size."""
    columns = (("policy", None), ("cache", None), ("experts held", percent), ("hit ratio", percent))
    rows = tuple((point.policy, point.capacity, point.share_held, point.hit_ratio) for point in drawn.points)
    return Table(columns, rows, f"Hit ratio against cache size: {drawn.title}.")


def csv_table(table: Table) -> str:
    """Numbers with every digit; nothing where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in table.columns])
    for row in table.rows:
        writer.writerow(["" if value is None else repr(value) if isinstance(value, float) else value for value in row])
    return text.getvalue()


def latex_table(table: Table) -> str:
    """A `tabular`, numbers as people read them, for \\input; it needs no package."""
    kinds = "".join("l" if shown is None else "r" for _, shown in table.columns)
    lines = [f"% {table.caption}", f"\\begin{{tabular}}{{{kinds}}}", "\\hline"]
    lines += [" & ".join(_latex(name) for name, _ in table.columns) + r" \\", "\\hline"]
    for row in table.rows:
        cells = [_cell(value, shown) for value, (_, shown) in zip(row, table.columns, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _cell(value: Value, shown: Shown | None) -> str:
    if value is None:
        return "--"
    return _latex(value if isinstance(value, str) or shown is None else shown(value))


def _latex(text: object) -> str:
    """Text that LaTeX sets as it is."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join((special | escaped).get(character, character) for character in " ".join(str(text).split()))


def _free(name: str, taken: dict[str, Table]) -> str:
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    return found
