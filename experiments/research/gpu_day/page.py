"""The day as a page in Markdown: the machine, and what each step found."""

import json
from collections.abc import Iterable
from pathlib import Path

from experiments.research.gpu_day.runner import Found
from experiments.research.markdown import table


def write_page(output: Path, parts: Iterable[Path]) -> Path:
    """The page of all parts that have results in `output`."""
    lines = ["# The day with a GPU", ""]
    for path in parts:
        if not path.exists():
            continue
        told = json.loads(path.read_text())
        lines += [f"## Part {told['part']}", "", f"`{told['command']}`, {told['date']}.", ""]
        lines += [table(["machine", ""], [[name, value] for name, value in told["machine"].items()]), ""]
        for name, found in told["steps"].items():
            lines += [f"### {name}", "", *_step(found)]
    page = output / "gpu-day.md"
    page.write_text("\n".join(lines))
    return page


def _step(found: Found) -> list[str]:
    shown = {name: value for name, value in found.items() if name not in ("outcome", "error", "where", "text")}
    if found["outcome"] != "done":
        said = str(found.get("error", "")).replace("|", "/")
        return [f"**Failed**: {said}", "", *_values(shown)]
    return _values(shown)


def _values(found: Found) -> list[str]:
    """Lists of rows as tables, everything else as name and value."""
    plain = [[name, _text(value)] for name, value in found.items() if not _is_rows(value)]
    lines = [table(["what", "found"], plain), ""] if plain else []
    for name, value in found.items():
        if _is_rows(value):
            columns = list(dict.fromkeys(column for row in value for column in row))
            rows = [[_text(row.get(column, "")) for column in columns] for row in value]
            lines += [f"{name}:", "", table(columns, rows), ""]
    return lines


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return " / ".join(map(_text, value))
    return str(value).replace("|", "/").replace("\n", " ")
