"""`python -m experiments.research.hosts FOLDER` prints the tables of docs/experiments.md.

It routes held-out text by the reference models, in FOLDER (or finds there what `experiments.research.placement` left;
traces without gate weights are not enough). Nothing is fitted to requests: every plan serves all of them. What was
found is kept in FOLDER and not found again.
"""

import argparse
import sys
from pathlib import Path

from experiments.research.domains import SHAPES
from experiments.research.hosts.claims import bounded_inserts, few_or_whole
from experiments.research.hosts.contest import SLOTS, contest, modelled, plans, steps
from experiments.research.hosts.sweep import Point, sweep
from experiments.research.hosts.tables import matrices, right
from tracekit.errors import TracekitError


def main() -> int:
    """Print the tables; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.hosts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where traces and results are, or are to be")
    parser.add_argument("--picture", type=Path, help="also draw where the host begins to win, as PNG")
    chosen = parser.parse_args()
    try:
        swept = report(chosen.folder)
        if chosen.picture is not None:
            from experiments.research.hosts.chart import crossing
            from experiments.research.paper.charts import png

            chosen.picture.write_bytes(png(crossing(swept)))
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(folder: Path) -> list[Point]:
    """Print all tables; what the sweep over hosts found, for the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    swept = []
    for model, sizes in SLOTS.items():
        trace, shape = steps(model, folder), SHAPES[model]
        machines = modelled(shape)
        print(f"\n## {model}, {trace.manifest.requests} requests, {trace.tokens} tokens\n", flush=True)
        found = {slots: contest(trace, plans(slots), machines, shape, folder / f"{model}-{slots}") for slots in sizes}
        print(matrices(found, list(machines)), flush=True)
        print("\n" + right(found, machines, shape, len(set(trace.step.tolist()))), flush=True)
        table, points = sweep(trace, sizes, shape, folder / f"{model}-sweep")
        print("\n" + table, flush=True)
        swept += [Point(model, *point) for point in points]
        print("\n" + few_or_whole(trace, machines, shape, folder / f"{model}-claims"), flush=True)
    print("\n" + bounded_inserts(folder), flush=True)
    return swept


if __name__ == "__main__":
    sys.exit(main())
