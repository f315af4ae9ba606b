"""The `tracekit` command. A command's module is imported only when that command runs, so that help is instant.

Nor does this module import anything that takes time: what does is imported where Ctrl-C is already caught.
"""

import atexit
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.interrupts import INTERRUPTED, Interrupted, Interrupts, interrupted, passing_on

if TYPE_CHECKING:
    import typer

COMMANDS = {
    "demo": ("demo", "Record, replay and validate real gating of a small trained MoE, in about a minute."),
    "record": ("record", "Record the routing of a transformers MoE model into a trace."),
    "import": ("import_", "Turn somebody else's routing log into a trace."),
    "info": ("info", "Say what a trace holds and what it is like."),
    "merge": ("merge", "Join recordings of one model into one trace."),
    "slice": ("slice", "Keep some requests, some steps or one phase of a trace."),
    "anonymise": ("anonymise", "Make a trace that can be given away."),
    "diff": ("diff", "Say how far two recordings of the same prompts differ."),
    "synthetic": ("synthetic", "Write a trace of stated statistics, for tests and examples."),
    "fit": ("fit", "Fit a predictor for prefetching or eviction on a trace."),
    "place": ("place", "Choose the experts that stay on the device, from a trace, as a placement file."),
    "replay": ("replay", "Replay a plan on a trace: hits, bytes and, on modelled hardware, time."),
    "curve": ("curve", "Hit ratio against cache size for several policies."),
    "recommend": ("recommend", "Say which plan is fastest for a model on a machine, within its memory."),
    "size": ("size", "Say which machine is fast enough for a model, and what each costs."),
    "study": ("study", "Replay a grid of plans on traces and machines, and name the best."),
    "quality": ("quality", "Measure what plans cost in how well a model predicts a text."),
    "report": ("report", "Draw a study as one HTML file that opens offline."),
    "validate": ("validate", "Run a plan in the engine and in the simulator, and say how far they differ."),
    "generate": ("generate", "Generate text with a model whose experts are offloaded."),
    "calibrate": ("calibrate", "Measure this machine into a hardware profile."),
    "hardware": ("hardware", "List or show hardware profiles."),
    "export": ("export", "Print the arguments of another engine that come nearest to a plan."),
    "shapes": ("shapes", "List or show the shapes of models."),
    "policies": ("policies", "List eviction policies and prefetchers."),
}
EXTRAS = {
    "torch": "engine",
    "transformers": "engine",
    "tokenizers": "engine",
    "altair": "report",
    "vl_convert": "report",
    "cachetools": "dev",
    "dask": "cluster",
    "distributed": "cluster",
}


def build(wanted: str | None) -> "typer.Typer":
    """The command line; only the command `wanted` is real, the others show their summary."""
    import typer

    app = typer.Typer(
        name="tracekit",
        help="Record, replay and validate the expert routing of mixture-of-experts models.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
    )

    def print_version(asked: bool) -> None:
        if asked:
            from tracekit.version import own_version

            typer.echo(f"tracekit {own_version()}")
            raise typer.Exit

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=print_version, help="Show the version and exit."
        ),
    ) -> None:
        """Record, replay and validate the expert routing of mixture-of-experts models."""

    for name, (module, summary) in COMMANDS.items():
        if name == wanted:
            app.command(name)(passing_on(importlib.import_module(f"experiments.cli.{module}").command))
        else:
            app.command(name, help=summary)(_placeholder)
    return app


def _placeholder() -> None:
    """Stands for a command that is not the one asked for."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr and exit code 2."""
    wanted = next((word for word in arguments or _being_completed() if not word.startswith("-")), None)
    what = " ".join(["tracekit", *(word for word in arguments if not word.startswith("-"))][:3])
    return guarded(lambda: build(wanted)(list(arguments), standalone_mode=False, prog_name="tracekit"), what)


def _being_completed() -> list[str]:
    """The words behind the command's name that a shell asks to complete; they come in the environment."""
    asked = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return asked.split()[1:] if "_TRACEKIT_COMPLETE" in os.environ else []


def guarded(action: Callable[[], object], what: str = "tracekit") -> int:
    """Run `action`; expected failures become one line on stderr and an exit code. `what`: the command and its input."""
    try:
        return _guarded(action, what)
    except KeyboardInterrupt as error:
        return interrupted(error)


def _guarded(action: Callable[[], object], what: str) -> int:
    from typer.exceptions import Abort, Exit, TyperException

    from tracekit.errors import TracekitError

    try:
        result = action()
    except TracekitError as error:
        return _fail(str(error))
    except TyperException as error:
        return _fail(error.format_message())
    except Exit as error:
        return error.exit_code
    except (Interrupted, Abort) as error:
        return interrupted(error)
    except MemoryError:
        return _fail(f"{what}: this machine's memory does not hold it; give a part of it, or take a larger machine")
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed: pip install 'moe-tracekit[{EXTRAS[error.name]}]'")
    if result == INTERRUPTED:  # while Typer read the arguments
        return interrupted()
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    from tracekit.errors import one_line

    print("error: " + one_line(message), file=sys.stderr)
    return 2


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code that gave it."""
    from tracekit.errors import one_line

    print("note: " + one_line(message), file=sys.stderr)


def main() -> None:
    """Entry point of the console script."""
    warnings.showwarning = _note
    interrupts = Interrupts()
    interrupts.install()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open for as long as we run
    if hasattr(signal, "SIGPIPE"):
        # Stop quietly, as other commands do, when the reader (head, less) has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = run(sys.argv[1:])
    except BaseException:
        if not interrupts.came:
            raise
        code = interrupted()
    # The work is done, or given up: what is left to interrupt is Python's own clean-up.
    interrupts.ignore()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _fail(f"output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if interrupts.came:
        # Temporary folders go, but nothing waits for threads, or for gigabytes to be taken apart piece by piece.
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)
