"""What every command prints with: JSON for machines, tables for people, progress on a terminal's stderr."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from tracekit.errors import printable
from tracekit.progress import Advance, progress

__all__ = ["Advance", "emit_json", "progress", "say", "table"]


def emit_json(value: Any) -> None:
    """Print `value` as one JSON document on stdout."""
    # In ASCII; of that, JSON leaves only DEL as it is.
    print(json.dumps(value, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def say(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print lines on stdout or stderr, nothing that a terminal obeys among them: they may quote strangers."""
    print(printable(text, also="\n\t"), end=end, file=sys.stderr if err else sys.stdout, flush=True)


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
