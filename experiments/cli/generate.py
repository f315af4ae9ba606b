"""`tracekit generate`: text from a model whose experts are offloaded."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from tracekit.errors import ImportFormatError, shortened
from tracekit.opening import open_given

if TYPE_CHECKING:
    from tracekit.recorder.prompts import Prompt

MOST_BYTES = 16 << 20
"""Of a text that is piped in."""


def command(
    model: options.Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="the texts to continue, one after the other")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help=f"instead: {options.PROMPTS}")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts that are continued together")] = 1,
    plan: options.PlanFile = None,
    capacity: options.Capacity = None,
    policy: options.Policy = None,
    prefetch: options.Prefetch = None,
    prefetch_distance: options.PrefetchDistance = None,
    prefetch_count: options.PrefetchCount = None,
    routing_policy: options.RoutingPolicy = None,
    routing_set: options.RoutingSet = None,
    routing_profile: options.RoutingProfile = None,
    miss: options.Miss = None,
    admission: options.Admission = None,
    admit_per_step: options.AdmitPerStep = None,
    weights: options.Weights = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: Annotated[int, typer.Option(help="seed of sampling")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens to generate")] = 64,
    prefill_chunk: options.PrefillChunk = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt through the model's chat template")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    host: options.Host = None,
    slabs: options.Slabs = None,
    memory: options.Memory = None,
    hardware: Annotated[
        str | None, typer.Option(help="this machine's profile, for plans whose misses are divided by it")
    ] = None,
    emulate_link: options.EmulateLink = None,
    save_warm: options.SaveWarm = None,
    json: options.Json = False,
) -> None:
    """Continue prompts with the experts in host memory and copied to the device by the plan.

    Decoding is greedy unless --temperature or --top-p is given; - is the text that is piped in.
    Text goes to stdout as it comes. Example:
    tracekit generate ./mixtral-mini "The list is sorted by" --capacity 4/layer --prefetch gate
    """
    from engine.hardware.profile import load_hardware
    from experiments.cli.plans import plan_from_options
    from tracekit.recorder.prompts import Prompt, read_prompts
    from tracekit.recorder.sampling import Sampling

    chosen = plan_from_options(
        plan,
        capacity=capacity,
        policy=policy,
        prefetch=prefetch,
        prefetch_distance=prefetch_distance,
        prefetch_count=prefetch_count,
        routing_policy=routing_policy,
        routing_set=routing_set,
        routing_profile=routing_profile,
        miss=miss,
        admission=admission,
        admit_per_step=admit_per_step,
        weights=weights,
    )
    sampling = Sampling.asked(temperature, top_p, seed)
    link, profile = options.emulated_link(emulate_link), None if hardware is None else load_hardware(hardware)
    options.check_run(chosen, profile, dtype, device)
    host = host or chosen.serve.host or "memory"
    if (prompts is None) == (not texts):
        mend = "give one or more texts, or --prompts FILE"
        if not texts and not Path(model).is_dir():
            mend = f"the model comes first, then the text: {shortened(model)!r} was taken for the model"
        raise ImportFormatError(f"generate continues texts: {mend}")
    asked = [Prompt(id=index, prompt=piped_in() if text == "-" else text) for index, text in enumerate(texts or [])]
    asked = asked if prompts is None else read_prompts(prompts)
    if chat:
        asked = [as_chat(prompt) for prompt in asked]
    options.check_placement("--save-warm", save_warm)
    import msgspec

    from engine.decisions.rerouted import CLOSED_LOOP
    from engine.decisions.saving import held_by
    from engine.plan.capacity import parse_memory
    from engine.plan.placement import save_placement
    from engine.replay.result import altered_routing
    from engine.runtime.memory import fit_checkpoint
    from engine.runtime.offload import offload
    from engine.runtime.offload_state import offloaded
    from experiments.generation import generate
    from tracekit.recorder.models import empty_model, find_model, load_config, load_tokenizer, parse_device
    from tracekit.recorder.prompts import encode_prompts
    from tracekit.recorder.recorder import check_fit

    limit, device = parse_memory(memory), str(parse_device(device))
    quantising = slabs is None or not slabs.exists()
    chosen = fit_checkpoint(
        model, chosen, dtype=dtype, device=device, limit=limit, on_disk=host == "disk", quantising=quantising
    )
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
        say=console.say,
    )
    loading_s = time.perf_counter() - begun
    with offloaded(loaded) as state:
        state.serve([prompt.domain for prompt in asked])
        done = generate(
            loaded,
            tokenizer,
            asked,
            encoded,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            chunk=prefill_chunk,
            sampling=sampling,
            write=(lambda text: None) if json else show,
        )
        if save_warm is not None:
            save_placement(held_by(state.cache, chosen, [layer.num_experts for layer in state.layers]), save_warm)
        altered = None
        if state.altered is not None:
            altered = altered_routing(chosen.routing.policy, CLOSED_LOOP, state.altered)
        copied, slots = state.bytes_loaded, {"count": state.pool.slots, "bytes": state.pool.bytes}
    if json:
        alone = done.outputs[0] if len(asked) == 1 else None
        first = {} if alone is None else {key: getattr(alone, key) for key in ("text", "token_ids", "prompt_tokens")}
        report = {
            **first,
            **msgspec.structs.asdict(done),
            "bytes_loaded": copied,
            "routing": altered,
            "host": host,
            "slabs": None if slabs is None else {"path": str(slabs), "written": not reopened},
            "loading_s": loading_s,
            "slots": slots,
            "emulated_link_bytes_per_s": None if link is None else link.bytes_per_s,
            "plan": chosen.to_dict(),
        }
        console.emit_json(report)
        return
    rate = "" if done.tokens_per_second is None else f", {done.tokens_per_second:.1f} tokens/s after the first"
    where = "" if slabs is None else f" from {slabs} ({'reopened' if reopened else 'written'} in {loading_s:.1f} s)"
    where += "" if link is None else f" over an emulated link of {emulate_link:g} GB/s"
    count, mebibytes = sum(len(output.token_ids) for output in done.outputs), sum(copied.values()) / 2**20
    console.say(f"{count} tokens{rate}; {mebibytes:.1f} MiB of experts copied{where}")
    if altered is not None:
        shares = f"{console.percent(altered.altered_share)} of the gates' choices altered"
        console.say(f"{shares} by {altered.policy}, {console.percent(altered.dropped_share)} dropped ({altered.label})")


def piped_in() -> str:
    """The text that is piped in. Raises ImportFormatError where there is none, or too much."""
    with open_given("-") as file:
        data = file.read(MOST_BYTES + 1)
    if not data.strip() or len(data) > MOST_BYTES:
        what = "is empty" if len(data) <= MOST_BYTES else f"is longer than {MOST_BYTES >> 20} MiB"
        raise ImportFormatError(f"the text that is piped in {what}: give one, or --prompts FILE")
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise ImportFormatError("what is piped in is no text in UTF-8") from None


def as_chat(prompt: "Prompt") -> "Prompt":
    """A text as what a user says, for the model's chat template; conversations stay what they are."""
    from tracekit.recorder.prompts import Message, Prompt

    if prompt.prompt is None:
        return prompt
    return Prompt(id=prompt.id, messages=(Message(role="user", content=prompt.prompt),), domain=prompt.domain)


def show(text: str) -> None:
    """Write a piece of text at once, without an end of line."""
    from experiments.cli import console

    console.tell(text, end="")
