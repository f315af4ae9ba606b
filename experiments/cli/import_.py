"""`tracekit import`: a foreign routing trace becomes a trace."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import options
from experiments.cli.traces import emit


def command(
    format: Annotated[
        str, typer.Argument(help="bigmoe-csv, deepseek-csv, jsonl, llama-csv, npz, sglang or vllm", metavar="FORMAT")
    ],
    source: Annotated[Path, typer.Argument(help="the file to import; deepseek-csv also takes a folder of files")],
    output: options.NewTrace,
    model: Annotated[str | None, typer.Option(help="the model's name, if the file has none")] = None,
    experts: Annotated[int | None, typer.Option(help="experts per layer; else the largest id says how many")] = None,
    layers: Annotated[int | None, typer.Option(help="sglang: the model's layers, dense ones included")] = None,
    top_k: Annotated[int | None, typer.Option(help="sglang, llama-csv: experts per token")] = None,
    json: options.Json = False,
) -> None:
    """Import routing recorded by another engine, as a new trace.

    vllm and sglang are saved responses with routed experts (JSON or JSON lines; vllm also .npy and .npz), jsonl a dump
    of router choices with a line per token and layer, llama-csv the logs of llama.cpp's moe-trace, deepseek-csv the
    activations of MoE-Beyond, bigmoe-csv the route trace of BigMoeOnEdge. npz is a NumPy file: `experts`, integers of
    shape (tokens, layers, k), and if you have them `weights` of the same shape, `request`, `step`, `position`, `phase`
    and `token_id` of shape (tokens), `expert_bytes` and `experts_per_layer` as one number or one for each layer.
    docs/traces.md shows each layout. A file that is not what its format says is refused, and nothing is written; what
    is only odd becomes a note of the trace.

    Example: tracekit import npz routing.npz --output mine.trace
    """
    from tracekit.importers import ImportOptions, import_trace

    emit(import_trace(format, source, output, ImportOptions(model, experts, layers, top_k)), json=json)
