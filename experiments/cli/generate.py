"""`tracekit generate`: text from a model whose experts are offloaded."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    model: Annotated[str, typer.Argument(help="directory of the model, or its hub name if it is cached here")],
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    plan: Annotated[Path | None, typer.Option("--plan", help="a plan file (TOML)")] = None,
    capacity: Annotated[
        str | None,
        typer.Option("--capacity", help="4/layer, 512, 2000MiB, 25% or auto; over the plan's"),
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="instead of, or over, the plan's")] = None,
    prefetch: Annotated[str | None, typer.Option("--prefetch", help="instead of, or over, the plan's")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="how experts are stored: bf16, hqq-4bit, hqq-2bit, ...")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens to generate")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt through the model's chat template")] = False,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    host: Annotated[str, typer.Option("--host", help="where experts lie: memory or disk")] = "memory",
    slabs: Annotated[
        Path | None, typer.Option("--slabs", help="with --host disk: their directory, written if it is not there yet")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="device memory for weights and slots, e.g. 8GiB; default: what is free"),
    ] = None,
    emulate_link: Annotated[
        float | None, typer.Option("--emulate-link", help="slow copies down to this many GB/s (CPU only)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Continue a prompt, greedily, with the experts in host memory and copied to the device by the plan.

    Example: tracekit generate ./mixtral-mini "The list is sorted by" --capacity 4/layer --prefetch gate
    """
    from engine.plan import Plan
    from experiments.cli import console
    from experiments.cli.links import emulated_link
    from experiments.cli.plans import plan_from_options

    chosen: Plan = plan_from_options(plan, capacity=capacity, policy=policy, prefetch=prefetch, weights=weights)
    link = emulated_link(emulate_link)
    from engine.runtime import load_slabs, offload, offloaded
    from engine.runtime.memory import fit_checkpoint, parse_memory
    from tracekit.recorder.generation import Decoding
    from tracekit.recorder.models import load_model
    from tracekit.recorder.prompts import Message, Prompt, encode_prompts
    from tracekit.recorder.recorder import check_fit, stop_tokens

    chosen = fit_checkpoint(
        model, chosen, dtype=dtype, device=device, limit=parse_memory(memory), on_disk=host == "disk"
    )
    # On the host: what the device cannot hold is why the model is offloaded.
    reopened = host == "disk" and slabs is not None and slabs.exists()
    begun = time.perf_counter()
    loaded, tokenizer = load_slabs(model, str(slabs)) if reopened else load_model(model, dtype, "cpu")
    asked = (
        Prompt(id="prompt", messages=(Message(role="user", content=prompt),))
        if chat
        else Prompt(id="prompt", prompt=prompt)
    )
    (ids,) = encode_prompts([asked], tokenizer)
    check_fit(loaded, [asked], [ids], max_new_tokens)
    offload(loaded, chosen, device=device, emulate_link=link, host=host, slabs=slabs)
    loading_s = time.perf_counter() - begun
    with offloaded(loaded) as state:
        decoding = Decoding(loaded, [ids], max_new_tokens=max_new_tokens, stop=stop_tokens(loaded, tokenizer))
        new = decoding.generated[0]
        shown = ""
        start = time.perf_counter()
        first = start
        for count, _ in enumerate(decoding.passes()):
            if count == 0:
                first = time.perf_counter()
            if not json:
                # Decoded anew each time: a character may need several tokens.
                text = str(tokenizer.decode(new, skip_special_tokens=True))
                if not text.endswith("\ufffd"):
                    print(text[len(shown) :], end="", flush=True)
                    shown = text
        seconds = time.perf_counter() - first
        loaded_bytes = state.bytes_loaded
        slot_bytes = state.pool.bytes
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    report: dict[str, Any] = {
        "text": text,
        "token_ids": new,
        "prompt_tokens": len(ids),
        "time_to_first_token_s": first - start,
        "tokens_per_second": (len(new) - 1) / seconds if len(new) > 1 else None,
        "bytes_loaded": loaded_bytes,
        "host": host,
        "slabs": None if slabs is None else {"path": str(slabs), "written": not reopened},
        "loading_s": loading_s,
        "slots": {"count": state.pool.slots, "bytes": slot_bytes},
        "emulated_link_bytes_per_s": None if link is None else link.bytes_per_s,
        "plan": chosen.to_dict(),
    }
    if json:
        console.emit_json(report)
        return
    print(text[len(shown) :])
    speed = report["tokens_per_second"]
    rate = "" if speed is None else f", {speed:.1f} tokens/s after the first"
    copied = sum(loaded_bytes.values()) / 2**20
    where = "" if host == "memory" else f" from {slabs} ({'reopened' if reopened else 'written'} in {loading_s:.1f} s)"
    where += "" if link is None else f" over an emulated link of {emulate_link:g} GB/s"
    typer.echo(f"{len(new)} tokens{rate}; {copied:.1f} MiB of experts copied{where}", err=True)
