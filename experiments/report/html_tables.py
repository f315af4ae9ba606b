"""Numbers as a reader wants them, and tables of them. All text is escaped here."""

from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from experiments.report.content import Best, CurvePoint, HeatMap, PolicyRow, Validation
from experiments.report.labels import labels

Cell = str  # HTML, already escaped
NONE = '<span class="none" aria-label="unknown or none">\u2013</span>'


def percent(ratio: float) -> str:
    """0.4321 -> "43.2%"; small shares keep two digits that count."""
    return f"{ratio:.1%}" if ratio >= 0.0095 or ratio == 0 else f"{100 * ratio:.2g}%"


def rate(value: float) -> str:
    """Three digits that count: 2.06, 14.3, 1,530."""
    for least, digits in ((99.95, 0), (9.995, 1), (0.0995, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"


def size(count: float) -> str:
    """Bytes in decimal units, as links are sold: 1.24 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * factor:
            return f"{rate(count / factor)} {unit}"
    return f"{rate(count)} B"


def signed(ratio: float) -> str:
    """0.021 -> "+2.1%", with a true minus sign."""
    return f"{ratio:+.1%}".replace("-", "\u2212")


def number(value: float | None, shown: Callable[[float], str]) -> Cell:
    """A number for the eye, with the exact one kept for whoever reads the file by machine."""
    return NONE if value is None else f'<data value="{float(value)!r}">{escape(shown(value))}</data>'


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, label: str, policies: Iterable[str] | None = None
) -> str:
    """A table that scrolls sideways inside its own frame. The first cell of a row is its heading.

    `policies` names the policy of each row, for the page's filter.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    listed = list(rows)
    marks = [""] * len(listed) if policies is None else [f' data-row="{escape(name)}"' for name in policies]
    body = "\n".join(
        f'<tr{mark}><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
        for mark, cells in zip(marks, listed, strict=True)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def policy_rows(
    columns: Sequence[str], rows: Sequence[PolicyRow], cells: Callable[[PolicyRow], Sequence[Cell]], *, label: str
) -> str:
    """A table with a line for each row: its label, and what `cells` makes of it."""
    named = [[escape(name), *cells(row)] for name, row in zip(row_labels(rows), rows, strict=True)]
    return table(columns, named, label=label, policies=[row.name for row in rows])


def row_labels(rows: Sequence[PolicyRow]) -> list[str]:
    """A short name for each row, all different: beside the policy only what rows differ in."""
    return labels([row.parts for row in rows])


def _or_none(text: str) -> Cell:
    return escape(text) or NONE


POLICY_COLUMNS: tuple[tuple[str, Callable[[PolicyRow], Cell]], ...] = (
    ("Policy", lambda row: escape(row.name) + (' <span class="tag">foresight</span>' if row.is_bound else "")),
    ("Cache", lambda row: escape(row.capacity)),
    ("Prefetch", lambda row: _or_none(row.parts["prefetch"])),
    ("Routing", lambda row: _or_none(row.routing and f"{row.routing}, first-order estimate")),
    ("Weights", lambda row: _or_none(row.weights)),
    ("Kernels", lambda row: _or_none(row.kernels)),
    ("Misses", lambda row: _or_none(row.lane)),
    ("Hit ratio", lambda row: number(row.hit_ratio, percent)),
    ("in decode", lambda row: number(row.decode_hit_ratio, percent)),
    ("Hits by prefetch", lambda row: number(row.hits_prefetched, percent)),
    ("Tokens/s", lambda row: number(row.tokens_per_second, rate)),
    ("Bound", lambda row: number(row.bound_tokens_per_second, rate)),
    ("of bound", lambda row: number(row.share_of_bound, percent)),
    ("Loaded per token", lambda row: number(row.bytes_loaded_per_token, size)),
    ("Loss of quality", lambda row: number(row.loss, percent)),
)
"""Each column's heading, and what stands under it."""


def policy_table(rows: Sequence[PolicyRow]) -> str:
    """Everything known about every row, in the order given; no column that says nothing of any."""
    names = [row.name for row in rows]
    columns = [(name, [cell(row) for row in rows]) for name, cell in POLICY_COLUMNS]
    columns = [(name, cells) for name, cells in columns if set(cells) != {NONE}]
    lines = list(zip(*(cells for _, cells in columns), strict=True))
    return table([name for name, _ in columns], lines, label="Policies, scrolls sideways", policies=names)


def best_table(best: Sequence[Best], unit: str) -> str:
    """The best plans of one machine, the winner first."""
    columns = [
        "Best plans",
        unit[:1].upper() + unit[1:],
        "Interval",
        "Against the best",
        "Device memory",
        "Of the bound",
        "Loss of quality",
    ]
    cells = []
    for place, one in enumerate(best):
        against = '<span class="tag">best</span>' if place == 0 else _or_none(one.against.replace("-", "\u2212"))
        shares = [number(one.device_bytes, size), number(one.share_of_bound, percent), _or_none(one.loss)]
        cells.append([escape(one.label), number(one.value, rate), _or_none(one.within), against, *shares])
    empty = [place for place in range(len(columns)) if cells and all(line[place] == NONE for line in cells)]
    kept = [place for place in range(len(columns)) if place not in empty]
    lines = [[line[place] for place in kept] for line in cells]
    return f'<div class="best">{table([columns[place] for place in kept], lines, label="The best plans")}</div>'


def speed_table(rows: Sequence[PolicyRow]) -> str:
    """The bars' numbers, fastest first."""
    found = by_speed(rows)
    cells = [
        [escape(label), number(row.tokens_per_second, rate), number(row.bound_tokens_per_second, rate)]
        for label, row in found
    ]
    names = [row.name for _, row in found]
    return table(["Policy", "Tokens/s", "Bound"], cells, label="Tokens per second", policies=names)


def by_speed(rows: Sequence[PolicyRow]) -> list[tuple[str, PolicyRow]]:
    """Label and row of every timed row, fastest first; equally fast ones in the order given."""
    timed = [pair for pair in zip(row_labels(rows), rows, strict=True) if pair[1].tokens_per_second is not None]
    return sorted(timed, key=lambda pair: -(pair[1].tokens_per_second or 0))


def curve_table(points: Sequence[CurvePoint]) -> str:
    """Cache sizes down, policies across."""
    policies = list(dict.fromkeys(point.policy for point in points))
    sizes = sorted({(point.share_held, point.capacity) for point in points})
    ratio = {(point.policy, point.share_held): point.hit_ratio for point in points}
    rows = []
    for share, capacity in sizes:
        cells = [number(ratio.get((policy, share)), percent) for policy in policies]
        rows.append([escape(capacity), number(share, percent), *cells])
    return table(["Cache", "Experts held", *policies], rows, label="Hit ratio by cache size")


def heat_table(heat: HeatMap) -> str:
    """A row per layer: how unevenly its experts are used."""
    rows = []
    for layer, shares in zip(heat.layer_numbers, np.nan_to_num(heat.shares), strict=True):
        order = np.sort(shares)[::-1]
        half = int(np.searchsorted(np.cumsum(order), order.sum() / 2)) + 1 if order.any() else 0
        rows.append(
            [
                str(layer),
                str(int((shares > 0).sum())),
                str(int(shares.argmax())) if order.any() else NONE,
                number(order[0], percent),
                str(half),
            ]
        )
    columns = ["Layer", "Experts used", "Busiest expert", "Its share", "Experts carrying half"]
    return table(columns, rows, label=f"Use of experts by layer, {heat.model}")


def validation_table(validation: Validation) -> str:
    """Both sides of the comparison."""
    sides = (validation.simulated_ms, validation.measured_ms)
    found = [("Tokens/s", validation.simulated_tokens_per_second, validation.measured_tokens_per_second)]
    for percentile in (50, 95, 99) if validation.simulated_ms else ():
        simulated, measured = (float(np.percentile(side, percentile)) for side in sides)
        found.append((f"ms per decode step, p{percentile}", simulated, measured))
    for what, pick in (("slowest", min), ("fastest", max)):
        if len(validation.measured_runs) > 1 and validation.simulated_runs:
            found.append((f"Tokens/s, {what} run", pick(validation.simulated_runs), pick(validation.measured_runs)))
    rows = [
        [name, number(ours, rate), number(theirs, rate), signed(ours / theirs - 1) if theirs else NONE]
        for name, ours, theirs in found
    ]
    return table(["", "Simulated", "Measured", "Difference"], rows, label="Simulated against measured")
