"""A table for notebooks: what `_repr_html_` of traces, plans, profiles and results returns."""

from collections.abc import Iterable
from html import escape


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Rows of (what, value) as an HTML table under `title`; every text is escaped."""
    cells = "".join(f"<tr><th>{escape(what)}</th><td>{escape(str(value))}</td></tr>" for what, value in rows)
    return f"<table><caption>{escape(title)}</caption><tbody>{cells}</tbody></table>"
