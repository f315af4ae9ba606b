"""`tracekit`, and `python -m tracekit`."""

import sys
from importlib import import_module

from tracekit.errors import TracekitError
from tracekit.shadows import check_shadows


def main() -> None:
    """Run the command line (experiments.cli); exit code 2 and one line if another package hides one of ours."""
    try:
        check_shadows()
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    import_module("experiments.cli.main").main()


if __name__ == "__main__":
    main()
