"""The domains of requests: labels that a trace carries, or a file of prompts does."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tracekit.errors import ImportFormatError, PlanError, TraceError
from tracekit.json_text import why_not_json
from tracekit.manifest import check_label
from tracekit.opening import read_file
from tracekit.trace import Trace

OWN = "trace"
"""The labels that a trace carries itself, where a file could be named."""
MOST_BYTES = 1 << 30


class _Line(msgspec.Struct, frozen=True):
    """Of a prompt's line only this is read: it may hold anything else."""

    domain: str | None = None


def labels_of(trace: Trace, source: str | None = None) -> list[str]:
    """The label of each request by its number, "" for none, as the trace carries them or the file `source` says.

    The file is of JSON lines, as prompts are, of which line r is request r. Raises PlanError where there are no labels
    at all, ImportFormatError for a file that cannot be read.
    """
    if source in (None, OWN):
        found, where = trace.manifest.domains, f"{trace.path} carries none of its requests' domains"
    else:
        found, where = read_labels(Path(source or "")), f"{source} holds no domains"
    if not any(found):
        raise PlanError(f'{where}: give lines like {{"id": "a", "domain": "code"}}, one a request (--labels FILE)')
    most = int(trace.request.max(initial=-1)) + 1
    if source not in (None, OWN) and len(found) < most:
        raise PlanError(f"{source} labels {len(found)} requests, and {trace.path} has request {most - 1}")
    return [*found, *[""] * (most - len(found))]


def read_labels(path: Path) -> list[str]:
    """The `domain` of each line of a file of JSON lines, "" where it has none; blank lines are skipped."""
    try:
        lines = read_file(path, MOST_BYTES).splitlines()
    except OSError as error:
        raise ImportFormatError(f"labels {path}: {error.strerror or error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label = msgspec.json.decode(line, type=_Line).domain or ""
            check_label(label)
        except msgspec.ValidationError as error:
            raise ImportFormatError(f"{path}, line {number} labels no request: {error}") from None
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ImportFormatError(f"{path}, line {number} {why_not_json(line, error)}") from None
        except TraceError as error:
            raise ImportFormatError(f"{path}, line {number}: {error}") from None
        found.append(label)
    return found


def numbered(labels: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """The place of each label among `names`, -1 for "". Raises PlanError for any other."""
    places = {name: place for place, name in enumerate(names)} | {"": -1}
    for number, label in enumerate(labels):
        if label not in places:
            known = ", ".join(names)
            raise PlanError(f"{where}: request {number} is of domain {label!r}, which the placement has not ({known})")
    return [places[label] for label in labels]
