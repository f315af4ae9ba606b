"""What the priors' families were fitted to, how well they give it back, and whether recorded traces fall within them.

    python -m experiments.research.priors figures --write docs/sizing.md           # published beside drawn
    python -m experiments.research.priors score --write docs/sizing.md T.trace ...  # recorded beside drawn
    python -m experiments.research.priors fit qwen3-moe low                         # numbers of a family's file

Tables stand between `<!-- table:NAME -->` and `<!-- end -->` of the page.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.research import markdown
from experiments.research.priors.figures import drawn_figure, fitted, words
from experiments.research.priors.scoring import score
from tracekit.priors import LEVELS, family_names, load_family
from tracekit.trace import Trace

app = typer.Typer(name="python -m experiments.research.priors", add_completion=False, pretty_exceptions_enable=False)
Write = Annotated[Path | None, typer.Option(help="put the table into this page")]


@app.command()
def figures(write: Write = None) -> None:
    """Every published figure, and what the family's locality of that level gives instead."""
    rows = []
    for family in map(load_family, family_names()):
        for known in sorted(family.known, key=lambda known: LEVELS.index(known.level)):
            drawn = drawn_figure(known, family.locality(known.level))
            model = f"{known.model}, top-{known.top_k} of {known.experts}"
            shown = (f"{known.value:.3f}", f"{drawn:.3f}")
            rows.append((f"{family.name}, {known.level}", model, words(known), *shown, known.source))
    columns = ("family", "model", "figure", "published", "drawn", "source")
    _put("prior-figures", markdown.table(columns, rows), write)


@app.command("score")
def scores(traces: Annotated[list[Path], typer.Argument(help="recorded traces")], write: Write = None) -> None:
    """Figures of recorded traces against the interval of the prior of their granularity."""
    points = [point for path in traces for point in score(Trace.open(path), path.stem)]
    rows = [
        (
            f"{point.trace}, top-{point.top_k} of {point.experts}",
            point.family,
            point.figure,
            f"{point.recorded:.3f}",
            *(f"{point.said[level]:.3f}" for level in LEVELS),
            "inside" if point.inside else "outside",
        )
        for point in points
    ]
    table = markdown.table(("trace", "family", "figure", "recorded", *LEVELS, "verdict"), rows)
    held = sum(point.inside for point in points)
    _put("prior-score", f"{table}\n\n{held} of {len(points)} inside.", write)


@app.command()
def fit(
    name: Annotated[str, typer.Argument(help="a shipped family")],
    level: Annotated[Literal["low", "likely", "high"], typer.Argument(help="which of its localities")],
) -> None:
    """The parts that give a level's figures back best, popularity and ends as in the file."""
    parts, missed = fitted(load_family(name), level)
    print("\n".join(f"{part} = {value:.3f}" for part, value in parts.items()))
    print(f"# root mean square of what is missed: {missed:.4f}")


def _put(name: str, table: str, page: Path | None) -> None:
    """Print a table, or put it in its place on a page."""
    if page is None:
        print(table)
        return
    place = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.S)
    page.write_text(place.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page.read_text()))


if __name__ == "__main__":
    app()
