"""`tracekit fit`: a predictor from a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    from tracekit.trace import Trace


def command(
    predictor: Annotated[str, typer.Argument(help="linear, routing, mlp, recurrent, token-popularity, ...")],
    trace: options.TraceDirectory,
    output: Annotated[Path, typer.Option("--output", "-o", help="the directory to write")],
    distance: Annotated[int, typer.Option(min=1, help="MoE layers to look ahead; not for eviction")] = 1,
    hold_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="share of the requests, the last ones, kept for testing")
    ] = 0.25,
    hold_out_requests: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="instead: these requests, such as 3,6,9:12")
    ] = None,
    hold_out_domain: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="instead: requests whose prompt's id begins with it; give --prompts"),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="the prompts that were recorded, one per request")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, max=100_000, help="passes over the examples")] = None,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=10, help="of the optimiser")] = 3e-3,
    weight_decay: Annotated[
        float, typer.Option(min=0, max=10, help="of the optimiser; more keeps weights smaller")
    ] = 1e-4,
    batch: Annotated[int, typer.Option(min=1, help="examples per step of training")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="of first weights and of the order of requests")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a hyperparameter of the predictor; repeat")
    ] = None,
    json: options.Json = False,
) -> None:
    """Fit a predictor on some requests of a trace and test it on the others.

    The directory that it writes is named in plans (prefetch.artefact, eviction.artefact) or by --prefetch-artefact and
    --eviction-artefact. A fit that was cut off goes on when it is asked for again. docs/predictors.md says more.

    Example: tracekit fit mlp my.trace --output my-mlp
    """
    import msgspec

    from experiments.fit.fit_predictor import find_predictor, fit, spelled
    from experiments.fit.train import Training
    from tracekit.errors import PolicyError
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    kind = find_predictor(predictor)
    given = dict(text.split("=", 1) for text in settings or [] if "=" in text)
    if len(given) != len(settings or []):
        raise PolicyError("--set takes NAME=VALUE, each name once, such as --set hidden=32")
    options = Training(
        epochs=kind.epochs if epochs is None else epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        batch=batch,
        seed=seed,
    )
    held_out = chosen_requests(opened, hold_out, hold_out_requests, hold_out_domain, prompts)
    with console.progress(f"fitting {predictor}", options.epochs) as advance:
        card = fit(
            predictor,
            opened,
            output,
            held_out=held_out,
            distance=distance,
            options=options,
            hyperparameters=given,
            progress=advance,
        )
    found = msgspec.to_builtins(card)
    del found["program"], found["fitted"]["requests"]
    if json:
        console.emit_json({"artefact": str(output), **found})
        return
    tested = spelled(card.fitted.held_out)
    copies = spelled(sorted(set(card.fitted.held_out) - set(held_out)))
    rows = [
        ("predictor", f"{card.predictor}, for {card.purpose}"),
        ("reads", ", ".join(card.blocks) or "token ids"),
        ("parameters", f"{card.parameters:,}"),
        ("one visit here", f"{card.measured_ns_per_visit / 1000:.0f} us"),
        ("fitted on", f"{card.fitted.tokens} tokens of {card.fitted.model}"),
        ("tested on requests", tested or "none"),
        *([("held out, too, as copies of them", copies)] if copies else []),
    ]
    simple = {name.removeprefix("recall_"): card.held_out[name] for name in card.held_out if name[:7] == "recall_"}
    for name, value in card.held_out.items():
        if name[:7] == "recall_":
            continue
        for m, share in value.items() if isinstance(value, dict) else [("", value)]:
            shown = f"{share:.4f}" if isinstance(share, float) else str(share)
            if name == "recall" and simple:
                shown += " (" + ", ".join(f"{other} {shares[m]:.4f}" for other, shares in simple.items()) + ")"
            rows.append((f"{name.replace('_', ' ')} {m}".strip(), shown))
    console.table(str(output), ["what", "value"], rows)
    if tested:
        console.tell(
            f"replay it on what it has not seen: tracekit slice {trace} --requests {tested} --output held-out.trace"
        )


def chosen_requests(
    trace: "Trace", share: float, numbers: str | None, domain: str | None, prompts: Path | None
) -> list[int]:
    """The requests that are kept for testing."""
    import numpy as np

    from tracekit.edit.slice import Selection
    from tracekit.errors import PolicyError
    from tracekit.recorder.prompts import read_prompts

    requests = np.unique(trace.request)
    if numbers is not None and domain is not None:
        raise PolicyError("--hold-out-requests and --hold-out-domain say both what is kept for testing: give one")
    if numbers is not None:
        return [int(number) for number in np.unique(trace.request[Selection(requests=numbers).rows(trace)])]
    if domain is not None:
        if prompts is None:
            raise PolicyError("--hold-out-domain needs --prompts: a trace does not hold the ids of its prompts")
        ids = [str(prompt.id) for prompt in read_prompts(prompts)]
        if len(ids) <= int(requests.max(initial=-1)):
            raise PolicyError(f"{prompts} holds {len(ids)} prompts, {trace.path} has request {requests.max()}")
        found = [number for number in requests.tolist() if ids[number].startswith(domain)]
        if not found:
            raise PolicyError(f"no prompt of {prompts} has an id that begins with {domain!r}")
        return found
    return [int(number) for number in requests[len(requests) - int(len(requests) * share) :]]
