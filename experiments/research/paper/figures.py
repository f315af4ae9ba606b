"""`figures TRACE`: Figures 1 and 2 of any trace, as pictures, as CSV and as figures.json."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import msgspec

from experiments.research.paper import charts
from experiments.research.paper.activation import activation
from experiments.research.paper.recall import hit_ratios, recalls
from tracekit.errors import TraceError
from tracekit.trace import Trace


class Written(TypedDict):
    """What `write_figures` wrote; file names are relative to its directory."""

    files: list[str]
    notes: list[str]
    quantities: dict[str, object]


def write_figures(trace: Trace, output: Path) -> Written:
    """Write activation, hits and recall as PNG and CSV, and all of them as figures.json.

    What the trace cannot tell is left out, with a note. Raises TraceError for a trace without tokens.
    """
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to draw")
    output.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    files: list[str] = []

    def save(name: str, chart: charts.Chart, rows: Sequence[msgspec.Struct]) -> None:
        (output / f"{name}.png").write_bytes(charts.png(chart))
        with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0].__struct_fields__)
            for row in rows:
                # Truth values as 0 and 1.
                writer.writerow([int(v) if isinstance(v, bool) else v for v in msgspec.structs.astuple(row)])
        files.extend([f"{name}.png", f"{name}.csv"])

    hits = hit_ratios(trace)
    save("hits", charts.hits(hits, trace), hits)
    shown = activation(trace, notes)
    if shown:
        save("activation", charts.activation(shown, trace), shown)
    recall = recalls(trace, notes)
    if recall:
        save("recall", charts.recall(recall, trace), recall)
    quantities = {
        "trace": {"digest": trace.digest, "model": trace.manifest.model.id, "tokens": trace.tokens},
        "hits": msgspec.to_builtins(hits),
        "recall": msgspec.to_builtins(recall),
        "activation": {"cache": f"{trace.top_k}/layer", "cells": len(shown)},
        "notes": notes,
    }
    (output / "figures.json").write_text(json.dumps(quantities, indent=2) + "\n", encoding="utf-8")
    return {"files": [*sorted(files), "figures.json"], "notes": notes, "quantities": quantities}
