"""`tracekit demo`: the whole chain in about a minute."""

import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import console, options


def command(
    output: Annotated[Path, typer.Option(help="folder to write to; an earlier demo's is replaced")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Record real gating of two small trained MoE models, replay policies, run the best plan in the engine, compare.

    Example: tracekit demo
    """

    start = time.monotonic()

    def say(text: str) -> None:
        console.say(f"[{time.monotonic() - start:5.1f} s] {text}")

    say("importing")
    from experiments.demo.chain import HARDWARE, SHAPE, run_demo
    from experiments.statistics.speeds import MODELLED, interval_words
    from experiments.validation.verdict import WORDS

    result = run_demo(output, say)
    say("done")
    if json:
        console.emit_json(result)
    else:
        rows = []
        for row in result.rows:
            timed, bounds = row.result.time, row.result.bounds
            speed = None if timed is None else timed.tokens_per_second
            bound = None if bounds is None else bounds.best_tokens_per_second
            share = "-" if speed is None or bound is None else f"{100 * speed / bound:.0f} %"
            prefetched = console.percent(row.result.hits_by.prefetch / row.result.lookups)
            capacity, hits = str(row.plan["cache"]["capacity"]), console.percent(row.result.hit_ratio)
            rows.append(
                [row.title, capacity, hits, prefetched, console.number(speed, 3), interval_words(row.ends, 2), share]
            )
        console.table(
            f"Plans on a {HARDWARE} at {SHAPE}'s shape, {MODELLED}",
            ["plan", "capacity", "hit ratio", "prefetched", "tokens/s", "interval", "of the bound"],
            rows,
        )
        verdict, time_found = result.validation, result.validation.time
        console.tell(f"chosen: {result.winner} -> {result.folder}/winner.plan.toml")
        console.tell(f"validation {WORDS[verdict.judged.outcome]}: {verdict.verdict}")
        console.tell(
            f"  engine {time_found.measured_tokens_per_second:.1f} tokens/s, simulator "
            f"{time_found.simulated_tokens_per_second:.1f}: on this CPU, over an emulated link of "
            f"{time_found.emulated_link}"
        )
        console.tell(f"report: {result.report}")
    if not result.validation.passed:
        raise typer.Exit(1)
