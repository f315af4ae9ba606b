"""`tracekit record`: run an MoE model on prompts and write down what its gates chose."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from tracekit.errors import ModelError, PlanError, TraceError

if TYPE_CHECKING:
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import Prompt


def command(
    model: options.Model,
    prompts: Annotated[Path, typer.Option(help=options.PROMPTS)],
    output: options.NewTrace,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate per prompt")] = 128,
    batch_size: Annotated[int, typer.Option(help="prompts per batch")] = 1,
    logits: Annotated[bool, typer.Option("--logits", help="record every gate's logits too")] = False,
    lookahead: Annotated[
        list[str] | None,
        typer.Option(metavar="D", help="record gate l+D on the input of gate l; repeat, or give a list: 1,2"),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    plan: Annotated[
        Path | None,
        typer.Option(help="record from the engine, offloading by this plan: models larger than --device"),
    ] = None,
    prefill_chunk: options.PrefillChunk = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an unfinished trace at OUTPUT")] = False,
    score: Annotated[bool, typer.Option("--score", help="route the given text, generate nothing")] = False,
    seed: Annotated[int, typer.Option(help="seed of sampling")] = 0,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    shard_rows: Annotated[
        int, typer.Option(help="tokens after which, at the end of a batch, all so far is safe from a crash")
    ] = 1024,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python code that comes with the model")
    ] = False,
    json: options.Json = False,
) -> None:
    """Record which experts a mixture-of-experts model chooses, token by token, into a trace.

    The model must lie on this machine: nothing is downloaded. Generation is greedy unless --temperature or
    --top-p is given. A recording that was cut off keeps its finished shards and goes on with --resume.

    Example: tracekit record ./mixtral-mini --prompts prompts.jsonl --output mixtral.trace --lookahead 1
    """
    from tracekit.durable import check_place
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import read_prompts

    settings = RecordOptions(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        logits=logits,
        lookahead=_distances(lookahead or []),
        do_sample=temperature is not None or top_p is not None,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
        resume=resume,
        score=score,
        shard_rows=shard_rows,
        prefill_chunk=prefill_chunk,
    )
    # Everything cheap is refused before torch is imported and a model is loaded.
    requests = read_prompts(prompts)
    if output.exists() and not resume:
        raise TraceError(f"{output} exists: choose another name, remove it, or continue it with --resume")
    if not output.is_dir():
        check_place(output)
    summary = _run(model, requests, output, settings, dtype, device, trust_remote_code, plan)
    if json:
        console.emit_json(summary)
    else:
        console.table(f"recorded {output}", ["", ""], [[name, str(value)] for name, value in summary.items()])


def _run(
    model: str,
    requests: "list[Prompt]",
    output: Path,
    settings: "RecordOptions",
    dtype: str,
    device: str,
    trust: bool,
    plan: Path | None,
) -> dict[str, object]:
    from tracekit.manifest import load_manifest
    from tracekit.notes import altered_note
    from tracekit.recorder.models import find_model, load_model, load_tokenizer, parse_device
    from tracekit.recorder.recorder import record

    notes: list[str] = []
    with ExitStack() as stack:
        if plan is None:
            loaded, tokenizer = load_model(model, dtype, device, trust)
        else:
            from engine.plan.plan import load_plan
            from engine.runtime.offload import offload
            from engine.runtime.offload_state import offloaded

            chosen, target = load_plan(plan), str(parse_device(device))
            if chosen.miss.where != "copy":
                raise PlanError(f'{plan}: routing does not depend on who computes: record with miss.where = "copy"')
            if not chosen.exact and settings.resume and not chosen.cache.resets:
                raise PlanError(
                    f"{plan}: what a routing policy or precision tiers alter follows from a cache that is gone: record "
                    'anew, without --resume, or with cache.warm = "reset"'
                )
            if chosen.routing.alters:
                notes.append(altered_note(chosen.routing.policy))
            if trust:  # code of the model's own builds it
                loaded, tokenizer = load_model(model, dtype, "cpu", trust)
                offload(loaded, chosen, device=target)
            else:
                directory = find_model(model)
                tokenizer = load_tokenizer(directory)
                loaded = offload(directory, chosen, dtype=dtype, device=target, say=console.say)
            stack.enter_context(offloaded(loaded))
        before = load_manifest(output).tokens if settings.resume and (output / "manifest.json").exists() else 0
        start = time.perf_counter()
        report = stack.enter_context(console.meter("recording"))
        try:
            record(loaded, tokenizer, requests, output, settings, report, notes=notes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the finished shards of {output} are kept; continue with --resume") from None
    seconds = time.perf_counter() - start
    manifest = load_manifest(output)
    return {
        "trace": str(output),
        "model": manifest.model.id,
        "moe_layers": len(manifest.moe_layers),
        "experts_per_layer": max(manifest.experts_per_layer),
        "top_k": manifest.top_k,
        "requests": manifest.requests,
        "tokens": manifest.tokens,
        "steps": manifest.steps,
        "seconds": round(seconds, 3),
        "tokens_per_second": round((manifest.tokens - before) / seconds, 1),
    }


def _distances(given: list[str]) -> tuple[int, ...]:
    parts = [part.strip() for text in given for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ModelError(f"--lookahead takes distances such as 1 or 1,2, not {','.join(given)!r}")
    return tuple(sorted({int(part) for part in parts}))
