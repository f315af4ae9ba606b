"""What every command prints with: JSON for machines, tables for people, progress on a terminal's stderr."""

import sys
from collections.abc import Mapping, Sequence

from tracekit.errors import printable
from tracekit.progress import meter, progress

__all__ = ["emit_json", "meter", "number", "percent", "progress", "say", "table", "tell", "warn"]


SCHEMA = 1
"""Of what `--json` prints: raised where a key goes away or changes its meaning; keys may be added without."""


def emit_json(value: object) -> None:
    """Print `value`, a mapping, a struct or a dataclass, as one JSON object on stdout, `schema` its first key."""
    import json

    import msgspec

    found = {"schema": SCHEMA} | (dict(value) if isinstance(value, Mapping) else msgspec.to_builtins(value))
    # In ASCII; of that, JSON leaves only DEL as it is.
    text = json.dumps(found, indent=2, allow_nan=False, default=msgspec.to_builtins)
    print(text.replace("\x7f", "\\u007f"))


def percent(ratio: float | None, digits: int = 2) -> str:
    """`0.5` as `50.00 %`; a dash where there is none."""
    return "-" if ratio is None else f"{100 * ratio:.{digits}f} %"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def say(text: str) -> None:
    """A line on stderr, where results are not."""
    print(printable(text, also="\n\t"), file=sys.stderr)


def tell(text: str, end: str = "\n") -> None:
    """A line on stdout, at once; nothing that a terminal obeys is in it, for it may quote strangers."""
    print(printable(text, also="\n\t"), end=end, flush=True)


def warn(warnings: Sequence[str]) -> None:
    """What to know before believing what was printed."""
    for warning in warnings:
        tell(f"warning: {warning}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; the first column is text, the others are set flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text: names of files and models are no markup.
    drawn = Table(title=Text(printable(title)), title_justify="left", show_header=any(columns))
    for index, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell, also="\n")) for cell in row))
    # Piped output has no width of its own: let the table be as wide as its content.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(drawn, markup=False)
