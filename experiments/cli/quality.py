"""`tracekit quality`: what plans cost in how well a model predicts a text."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    from engine.plan.plan import Plan
    from experiments.quality.measurement import Estimate, Measurement


def command(
    model: options.Model,
    text: Annotated[
        list[Path],
        typer.Option(
            help='JSON lines {"id", "prompt"} (.jsonl, or -), a document each; any other file is one document'
        ),
    ],
    plan: Annotated[list[Path] | None, typer.Option(help="a plan file (TOML) to measure; repeat")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="formats of experts to measure: hqq-4bit,hqq-2bit; repeat, or give a list")
    ] = None,
    capacity: Annotated[str, typer.Option(help="cache of the plans made of --weights: 4/layer, 25%, auto")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="folder for the results; a measurement that is already there is gone on with")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=2, help="tokens that are read together; default: the model's positions, 2048 at most"),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="tokens of a pass, each a step of the engine; 1 is as in decoding")
    ] = None,
    scratch: Annotated[
        str | None, typer.Option(help="disk for the unaltered model's logits, in the output's folder; default: 4GiB")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    memory: options.Memory = None,
    json: options.Json = False,
) -> None:
    """Measure what plans cost in quality: bits per byte and perplexity of a text, against the unaltered model.

    The text is given to the model token by token, in the engine, under each plan. Loss is what bits per byte grow by,
    as a share; agreement, of greedy tokens, and the divergence of predictions are against the model as it is stored.
    Everything is paired by document. A document that comes twice counts once. A measurement that was interrupted goes
    on where it was: run the same command again. Studies weigh it (`quality = DIR`, `quality_loss = "0.5 %"`).

    Example: tracekit quality ./mixtral-mini --text held-out.jsonl --weights hqq-4bit,hqq-3bit --output quality
    """
    from engine.plan.capacity import parse_memory
    from experiments.quality.text import read_documents
    from tracekit.errors import ImportFormatError
    from tracekit.recorder.words import check_device, check_dtype

    if sum(str(path) == "-" for path in text) > 1:
        raise ImportFormatError("only one text is piped in: give --text - once")
    plans = _plans(plan or [], weights or [], capacity)
    room, disk = parse_memory(memory), parse_memory(scratch, "--scratch")
    check_dtype(dtype)
    check_device(device)
    documents, repeated = read_documents(text)
    # What is imported from here on takes seconds: what can be refused has been.
    from experiments.quality.measure import measure
    from experiments.quality.work import Options

    asked = Options(dtype=dtype, device=device, memory=room, window=window, chunk=chunk, scratch=disk)
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(TemporaryDirectory(prefix="tracekit-quality-"))) / "quality"
        report = stack.enter_context(console.meter("reading"))
        try:
            found = measure(
                model, documents, plans, folder, asked, counted_once=repeated, progress=report, say=console.say
            )
        except KeyboardInterrupt:
            kept = "what is finished is kept; run the same command again to go on"
            raise KeyboardInterrupt("nothing is kept without --output" if output is None else kept) from None
    if json:
        console.emit_json(found)
        return
    _show(found)
    if output is not None:
        console.tell(f"measured: {output}/quality.json")


def _plans(files: list[Path], formats: list[str], capacity: str) -> "dict[str, Plan]":
    """Every plan once, under a name that tells it from the others. PlanError for what the engine does not store."""
    from engine.plan.plan import Plan, load_plan
    from engine.plan.weights import WeightFormat
    from experiments.study.grid import plan_name

    words = [word.strip() for given in formats for word in given.split(",") if word.strip()]
    asked = [load_plan(path) for path in files] + [Plan(capacity, weights=word) for word in words]
    for plan in asked:
        WeightFormat.parse(plan.weights.experts or "bf16").served()
    found: dict[str, Plan] = {}
    for one in asked:
        name, count = plan_name(one), 1
        while (unique := name if count == 1 else f"{name} ({count})") in found and found[unique] != one:
            count += 1
        found[unique] = one
    return found


def _show(found: "Measurement") -> None:
    """A row for each plan, the unaltered model first."""
    from experiments.quality.measurement import loss_text

    plain = found.unaltered
    rows = [["unaltered", f"{plain.bits_per_byte:.4f}", f"{plain.perplexity:.3f}", "", "", ""]]
    for one in found.plans:
        figures = [f"{one.bits_per_byte:.4f}", f"{one.perplexity:.3f}", loss_text(one.loss)]
        rows.append([one.name, *figures, _share(one.agreement), f"{one.kl_divergence.value:.5f}"])
    columns = ["plan", "bits/byte", "perplexity", "loss", "greedy tokens agree", "KL, nats/token"]
    console.table(found.said, columns, rows)
    if found.text.counted_once:
        pairs = ", ".join(f"{twice} is {first}" for twice, first in found.text.counted_once[:5])
        console.tell(f"note: {len(found.text.counted_once)} documents came twice and count once: {pairs}")


def _share(found: "Estimate") -> str:
    return console.percent(found.value)
