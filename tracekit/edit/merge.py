"""Several recordings of one model as one trace: their requests one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from tracekit.durable import whole_or_nothing
from tracekit.edit.pieces import Progress, copy_rows
from tracekit.errors import TraceError, shortened
from tracekit.manifest import SHAPE, Manifest
from tracekit.notes import moved
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

_Value = TypeVar("_Value")


def merge(traces: Sequence[Trace], output: str | Path, *, progress: Progress = lambda rows: None) -> Trace:
    """Write the trace `output`, which must not exist, holding all `traces`, and open it.

    Steps and requests are numbered on from trace to trace. Raises TraceError, in one line, when the traces are of
    different models or carry different things.
    """
    if len(traces) < 2:
        raise TraceError("merge needs two traces or more")
    for trace in traces[1:]:
        _check_same(traces[0], trace)
    output = Path(output)
    with whole_or_nothing(output) as aside, TraceWriter(aside, _manifest(traces)) as writer:
        for trace in traces:
            if trace.tokens:
                step, request = writer.next_step - int(trace.step[0]), writer.next_request - int(trace.request.min())
                copy_rows(trace, writer, progress, step=step, request=request)
        writer.finish()
    return Trace.open(output)


def _check_same(one: Trace, other: Trace) -> None:
    first, second = one.manifest, other.manifest
    values: list[tuple[str, object, object]] = [
        (f"model.{name}", getattr(first.model, name), getattr(second.model, name))
        for name in first.model.__struct_fields__
    ]
    values += [(name, getattr(first, name), getattr(second, name)) for name in (*SHAPE, "dense_bytes")]
    if one.tokens and other.tokens:
        values.append(("recorded arrays", sorted({"routing", *one.kinds}), sorted({"routing", *other.kinds})))
    for name, mine, its in values:
        if mine != its:
            raise TraceError(
                f"cannot merge {one.path} and {other.path}: their {name} differ ({shortened(mine)} and "
                f"{shortened(its)}); merge recordings of the same model with the same options"
            )


def _manifest(traces: Sequence[Trace]) -> Manifest:
    first = traces[0].manifest
    manifests = [trace.manifest for trace in traces]
    sources = sorted({manifest.source for manifest in manifests})
    artificial = any(source.startswith("synthetic") for source in sources)
    notes = [f"merged from {len(traces)} traces, {len({trace.digest for trace in traces})} of them different"]
    steps = 0  # as `merge` numbers them on
    for number, trace in enumerate(traces):
        own = trace.manifest.notes
        notes.append(
            f"part {number}: {trace.path.name}, {trace.tokens} tokens, {trace.manifest.requests} requests, "
            f"source {trace.manifest.source}, digest {trace.digest[:16]}"
        )
        notes += [f"part {number}: incomplete recording"] if not trace.manifest.complete else []
        notes += [moved(note, steps - int(trace.step[0]) if trace.tokens else 0, f"part {number}") for note in own]
        steps += int(trace.step[-1] - trace.step[0]) + 1 if trace.tokens else 0
    return msgspec.structs.replace(
        first.without_rows(notes),
        # What is in part synthetic must not pass for a recording.
        source=sources[0] if len(sources) == 1 else "synthetic" if artificial else "merge",
        versions=_common([manifest.versions for manifest in manifests]),
        sampling=_common([manifest.sampling for manifest in manifests]),
        prompts_sha256=first.prompts_sha256 if len({m.prompts_sha256 for m in manifests}) == 1 else None,
        seed=first.seed if len({manifest.seed for manifest in manifests}) == 1 else None,
        domains=_domains(traces),
    )


def _domains(traces: Sequence[Trace]) -> list[str]:
    """The labels of requests as `merge` numbers them on; none where no part has any."""
    if not any(trace.manifest.domains for trace in traces):
        return []
    found: list[str] = []
    for trace in traces:
        first, last = (int(trace.request.min()), int(trace.request.max())) if trace.tokens else (0, -1)
        own = trace.manifest.domains
        found += [own[number] if number < len(own) else "" for number in range(first, last + 1)]
    return found


def _common(tables: list[dict[str, _Value]]) -> dict[str, _Value]:
    return {name: value for name, value in tables[0].items() if all(table.get(name) == value for table in tables)}
