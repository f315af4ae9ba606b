"""The `tracekit` command. A command's module is imported only when that command runs, so that help is instant."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from typer.exceptions import Abort, Exit, TyperException

from tracekit.errors import TracekitError

COMMANDS = {
    "demo": ("demo", "Record, replay and validate real gating of a small trained MoE, in about a minute."),
    "record": ("record", "Record the routing of a transformers MoE model into a trace."),
    "import": ("import_", "Turn somebody else's routing log into a trace."),
    "info": ("info", "Say what a trace holds and what it is like."),
    "replay": ("replay", "Replay a plan on a trace: hits, bytes and, on modelled hardware, time."),
    "curve": ("curve", "Hit ratio against cache size for several policies."),
    "validate": ("validate", "Run a plan in the engine and in the simulator, and say how far they differ."),
    "generate": ("generate", "Generate text with a model whose experts are offloaded."),
    "hardware": ("hardware", "List or show hardware profiles."),
    "policies": ("policies", "List eviction policies and prefetchers."),
}
INTERRUPTED = 130
EXTRAS = {
    "torch": "engine",
    "transformers": "engine",
    "tokenizers": "engine",
    "altair": "report",
    "vl_convert": "report",
    "cachetools": "dev",
}


def build(wanted: str | None) -> typer.Typer:
    """The command line; only the command `wanted` is real, the others show their summary."""
    app = typer.Typer(
        name="tracekit",
        help="Record, replay and validate the expert routing of mixture-of-experts models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, (module, summary) in COMMANDS.items():
        if name == wanted:
            app.command(name)(importlib.import_module(f"experiments.cli.{module}").command)
        else:
            app.command(name, help=summary)(_placeholder)
    return app


def _root() -> None:
    """Record, replay and validate the expert routing of mixture-of-experts models."""


def _placeholder() -> None:
    """Stands for a command that is not the one asked for."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr and exit code 2."""
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    return guarded(lambda: build(wanted)(list(arguments), standalone_mode=False, prog_name="tracekit"))


def guarded(action: Callable[[], object]) -> int:
    """Run `action`; expected failures become one line on stderr and an exit code."""
    try:
        result = action()
    except TracekitError as error:
        return _fail(str(error))
    except TyperException as error:
        return _fail(error.format_message())
    except Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed: pip install 'moe-tracekit[{EXTRAS[error.name]}]'")
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def main() -> None:
    """Entry point of the console script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open for as long as we run
    if hasattr(signal, "SIGPIPE"):
        # Stop quietly, as other commands do, when the reader (head, less) has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _fail(f"output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
