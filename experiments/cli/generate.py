"""`tracekit generate`: text from a model whose experts are offloaded."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracekit.errors import ImportFormatError

if TYPE_CHECKING:
    from tracekit.recorder.prompts import Prompt


def command(
    model: Annotated[str, typer.Argument(help="directory of the model, or its hub name if it is cached here")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="the texts to continue, one after the other")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help='instead: JSON lines, {"id", "prompt"} or {"id", "messages"}')
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts that are continued together")] = 1,
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
    prefill_chunk: Annotated[
        int | None, typer.Option(min=1, help="tokens of a prompt that are read at a time; without it, 2048")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt through the model's chat template")] = False,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    host: Annotated[str, typer.Option("--host", help="where experts lie: memory or disk")] = "memory",
    slabs: Annotated[
        Path | None, typer.Option("--slabs", help="a directory of converted experts, written if it is not there yet")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="device memory for weights and slots, e.g. 8GiB; default: what is free"),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="this machine's profile, which a plan with a CPU lane weighs")
    ] = None,
    emulate_link: Annotated[
        float | None, typer.Option("--emulate-link", help="slow copies down to this many GB/s (CPU only)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Continue prompts, greedily, with the experts in host memory and copied to the device by the plan.

    Text goes to stdout as it comes. Example:
    tracekit generate ./mixtral-mini "The list is sorted by" --capacity 4/layer --prefetch gate
    """
    from engine.hardware import load_hardware
    from engine.plan.plan import Plan
    from experiments.cli import console
    from experiments.cli.links import emulated_link
    from experiments.cli.plans import plan_from_options
    from tracekit.recorder.prompts import Prompt, read_prompts

    chosen: Plan = plan_from_options(plan, capacity=capacity, policy=policy, prefetch=prefetch, weights=weights)
    link, profile = emulated_link(emulate_link), None if hardware is None else load_hardware(hardware)
    if (prompts is None) == (not texts):
        raise ImportFormatError("generate continues texts: give one or more, or --prompts FILE")
    asked = [Prompt(id=index, prompt=text) for index, text in enumerate(texts or [])]
    asked = asked if prompts is None else read_prompts(prompts)
    if chat:
        asked = [as_chat(prompt) for prompt in asked]
    import msgspec

    from engine.runtime import offload, offloaded
    from engine.runtime.memory import fit_checkpoint, parse_memory
    from experiments.generation import generate
    from tracekit.recorder.models import empty_model, find_model, load_config, load_tokenizer
    from tracekit.recorder.prompts import encode_prompts
    from tracekit.recorder.recorder import check_fit

    limit = parse_memory(memory)
    chosen = fit_checkpoint(model, chosen, dtype=dtype, device=device, limit=limit, on_disk=host == "disk")
    directory = find_model(model)
    tokenizer = load_tokenizer(directory)
    encoded = encode_prompts(asked, tokenizer)
    check_fit(empty_model(load_config(directory), directory), asked, encoded, max_new_tokens)
    reopened = slabs is not None and slabs.exists()
    begun = time.perf_counter()
    loaded = offload(
        directory,
        chosen,
        device=device,
        emulate_link=link,
        hardware=profile,
        host=host,
        slabs=slabs,
        memory=limit,
        dtype=dtype,
        say=lambda text: console.say(text, err=True),
    )
    loading_s = time.perf_counter() - begun
    with offloaded(loaded) as state:
        done = generate(
            loaded,
            tokenizer,
            asked,
            encoded,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            chunk=prefill_chunk,
            write=(lambda text: None) if json else show,
        )
        copied, slots = state.bytes_loaded, {"count": state.pool.slots, "bytes": state.pool.bytes}
    if json:
        report: dict[str, Any] = msgspec.to_builtins(done)
        report |= {
            "bytes_loaded": copied,
            "host": host,
            "slabs": None if slabs is None else {"path": str(slabs), "written": not reopened},
            "loading_s": loading_s,
            "slots": slots,
            "emulated_link_bytes_per_s": None if link is None else link.bytes_per_s,
            "plan": chosen.to_dict(),
        }
        alone = report["outputs"][0] if len(asked) == 1 else {}
        console.emit_json({**{key: alone[key] for key in ("text", "token_ids", "prompt_tokens") if alone}, **report})
        return
    rate = "" if done.tokens_per_second is None else f", {done.tokens_per_second:.1f} tokens/s after the first"
    where = "" if slabs is None else f" from {slabs} ({'reopened' if reopened else 'written'} in {loading_s:.1f} s)"
    where += "" if link is None else f" over an emulated link of {emulate_link:g} GB/s"
    count, mebibytes = sum(len(output.token_ids) for output in done.outputs), sum(copied.values()) / 2**20
    console.say(f"{count} tokens{rate}; {mebibytes:.1f} MiB of experts copied{where}", err=True)


def as_chat(prompt: "Prompt") -> "Prompt":
    """A text as what a user says, for the model's chat template; conversations stay what they are."""
    from tracekit.recorder.prompts import Message, Prompt

    if prompt.prompt is None:
        return prompt
    return Prompt(id=prompt.id, messages=(Message(role="user", content=prompt.prompt),))


def show(text: str) -> None:
    """Write a piece of text at once, without an end of line."""
    from experiments.cli import console

    console.say(text, end="")
