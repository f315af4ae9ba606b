"""Runs the named benchmarks, or all of them, and prints one table."""

import importlib
import sys

from experiments.cli import console
from experiments.research.benchmarks.alternating import Row
from tracekit.errors import TracekitError, did_you_mean

BENCHMARKS = (
    "decisions",
    "timeline",
    "peers",
    "curves",
    "commands",
    "long",
    "engine",
    "host",
    "offloading",
    "loading",
    "launches",
    "recording",
    "studies",
)


def main(names: list[str]) -> int:
    """Run benchmarks by name; all of them when none is named."""
    for name in names:
        if name not in BENCHMARKS:
            guess = did_you_mean(name, BENCHMARKS)
            raise TracekitError(f"no benchmark {name!r}{guess}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in names or BENCHMARKS:
        print(f"running {name} ...", file=sys.stderr)
        rows += importlib.import_module(f"experiments.research.benchmarks.{name}").rows()
    console.table(
        "Benchmarks (medians; ratios within one run)",
        ["what", "ours", "peer", "ratio", "to reach"],
        [[row.what, row.ours, row.peer, f"{row.ratio:.2f}x", row.target] for row in rows],
    )
    return 0


if __name__ == "__main__":
    from experiments.cli.main import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
