"""`tracekit import`: a foreign routing trace becomes a trace."""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from experiments.cli import options
from experiments.cli.traces import emit
from tracekit.errors import ImportFormatError


def command(
    format: Annotated[
        str,
        typer.Argument(
            help="auto, bigmoe-csv, deepseek-csv, jsonl, llama-csv, mbolt, npz, parquet, router-data, sglang or vllm",
            metavar="FORMAT",
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Argument(help="the file to import; deepseek-csv also takes a folder of files", metavar="SOURCE"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the trace directory to write, NAME.trace")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the model's name, if the file has none")] = None,
    experts: Annotated[int | None, typer.Option(help="experts per layer; else the largest id says how many")] = None,
    layers: Annotated[int | None, typer.Option(help="sglang: the model's layers, dense ones included")] = None,
    top_k: Annotated[int | None, typer.Option(help="sglang, llama-csv: experts per token")] = None,
    request_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="jsonl, parquet: what tells requests apart; none if nothing does"),
    ] = None,
    drop_slot: Annotated[
        list[int] | None, typer.Option(help="leave a slot of every choice out, such as a fused shared expert; repeat")
    ] = None,
    rows_as: Annotated[
        str | None, typer.Option("--as", help="deepseek-csv: decode takes each row as a generated token of its own")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="deepseek-csv: a tokenizer.json, or the model's directory: ids of tokens")
    ] = None,
    json: options.Json = False,
) -> None:
    """Import routing recorded by another engine, as a new trace. FORMAT auto looks at the file and says why.

    vllm and sglang are saved responses with routed experts (JSON, JSON lines or events; vllm also .npy and .npz), jsonl
    and parquet a dump of router choices with a line per token and layer, llama-csv the logs of llama.cpp's moe-trace,
    mbolt those of its patch of that name, deepseek-csv the activations of MoE-Beyond, bigmoe-csv the route trace of
    BigMoeOnEdge, router-data gpt-oss's published activations. npz is a NumPy file: `experts`, integers of
    shape (tokens, layers, k), and if you have them `weights` of the same shape, `request`, `step`, `position`, `phase`
    and `token_id` of shape (tokens), `expert_bytes` and `experts_per_layer` as one number or one for each layer.
    docs/traces.md shows each layout; text may be packed with gzip or zstd. A file that is not what its format says is
    refused, and nothing is written; what is only odd becomes a note of the trace.

    Example: tracekit import npz routing.npz --output mine.trace
    """
    if source is None and output is not None and os.path.lexists(format):
        raise ImportFormatError(
            f"{format} was taken for a format: say which it has, or auto: tracekit import auto {quote(format)} "
            f"--output {quote(str(output))}"
        )
    if source is None or output is None:
        raise ImportFormatError("import needs a format, a file and a place: tracekit import auto FILE --output T.trace")
    from tracekit.importers import ImportOptions, import_trace

    given = ImportOptions(
        model=model,
        experts=experts,
        layers=layers,
        top_k=top_k,
        request_field=request_field,
        drop_slot=tuple(drop_slot or ()),
        rows_as=rows_as,
        tokenizer=tokenizer,
    )
    emit(import_trace(format, source, output, given), json=json)
