"""Numbers as a reader wants them, and tables of them. All text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from experiments.report.content import CurvePoint, HeatMap, PolicyRow, Validation

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


def _signed(ratio: float) -> str:
    return f"{ratio:+.1%}".replace("-", "\u2212")


def number(value: float | None, shown: str) -> Cell:
    """A number for the eye, with the exact one kept for whoever reads the file by machine."""
    return f'<data value="{float(value)!r}">{escape(shown)}</data>' if value is not None else NONE


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    label: str,
    policies: Sequence[str] | None = None,
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
    shown = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table>{shown}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def row_labels(rows: Sequence[PolicyRow]) -> list[str]:
    """A short name for each row, all different: the capacity is named only where rows differ in it."""
    capacities = len({row.capacity for row in rows}) > 1
    labels: list[str] = []
    for row in rows:
        label = row.name if row.prefetch in ("", "none") else f"{row.name} + {row.prefetch}"
        label = f"{label}, {row.capacity}" if capacities else label
        count, unique = 1, label
        while unique in labels:
            count += 1
            unique = f"{label} ({count})"
        labels.append(unique)
    return labels


def policy_table(rows: Sequence[PolicyRow]) -> str:
    """Everything known about every row, in the order given."""
    columns = [
        "Policy",
        "Cache",
        "Prefetch",
        "Hit ratio",
        "in decode",
        "Hits by prefetch",
        "Tokens/s",
        "Bound",
        "of bound",
        "Loaded per token",
    ]
    names = [row.name for row in rows]
    return table("", columns, [_policy_cells(row) for row in rows], label="Policies, scrolls sideways", policies=names)


def _policy_cells(row: PolicyRow) -> list[Cell]:
    speed, bound = row.tokens_per_second, row.bound_tokens_per_second
    share = speed / bound if speed is not None and bound else None
    tag = ' <span class="tag">bound</span>' if row.is_bound else ""
    loaded = row.bytes_loaded_per_token
    return [
        escape(row.name) + tag,
        escape(row.capacity),
        escape(row.prefetch) if row.prefetch not in ("", "none") else NONE,
        number(row.hit_ratio, percent(row.hit_ratio)),
        number(row.decode_hit_ratio, percent(row.decode_hit_ratio or 0)),
        number(row.hits_prefetched, percent(row.hits_prefetched)),
        number(speed, rate(speed or 0)),
        number(bound, rate(bound or 0)),
        number(share, percent(share or 0)),
        number(loaded, size(loaded or 0)),
    ]


def speed_table(rows: Sequence[PolicyRow]) -> str:
    """The bars' numbers, fastest first."""
    shown = [
        [
            escape(label),
            number(row.tokens_per_second, rate(row.tokens_per_second or 0)),
            number(row.bound_tokens_per_second, rate(row.bound_tokens_per_second or 0)),
        ]
        for label, row in by_speed(rows)
    ]
    names = [row.name for _, row in by_speed(rows)]
    return table("", ["Policy", "Tokens/s", "Bound"], shown, label="Tokens per second", policies=names)


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
        found = [ratio.get((policy, share)) for policy in policies]
        cells = [number(value, percent(value or 0)) for value in found]
        rows.append([escape(capacity), number(share, percent(share)), *cells])
    return table("", ["Cache", "Experts held", *policies], rows, label="Hit ratio by cache size")


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
                number(order[0], percent(order[0])),
                str(half),
            ]
        )
    columns = ["Layer", "Experts used", "Busiest expert", "Its share", "Experts carrying half"]
    return table("", columns, rows, label=f"Use of experts by layer, {heat.model}")


def validation_table(validation: Validation) -> str:
    """Both sides of the comparison."""
    names = ["Tokens/s"]
    pairs = [(validation.simulated_tokens_per_second, validation.measured_tokens_per_second)]
    if validation.simulated_ms:
        for percentile in (50, 95, 99):
            names.append(f"ms per decode step, p{percentile}")
            sides = (validation.simulated_ms, validation.measured_ms)
            simulated, measured = (float(np.percentile(side, percentile)) for side in sides)
            pairs.append((simulated, measured))
    rows = [
        [
            name,
            number(simulated, rate(simulated)),
            number(measured, rate(measured)),
            _signed(simulated / measured - 1) if measured else NONE,
        ]
        for name, (simulated, measured) in zip(names, pairs, strict=True)
    ]
    return table("", ["", "Simulated", "Measured", "Difference"], rows, label="Simulated against measured")
