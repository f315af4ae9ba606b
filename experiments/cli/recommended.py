"""A recommendation as tables for people and as plain data for machines."""

from pathlib import Path
from shlex import quote

from engine.plan.tables import ServePlan
from engine.plan.weights import WeightFormat
from experiments.cli import console
from experiments.recommend import Choice, Recommendation
from experiments.statistics.speeds import MODELLED, basis
from experiments.study.grid import plan_name

GIB = 1 << 30
UNKNOWN = "not known"
SPEEDS = ("weights", "plan", "experts in", "tokens/s", "{interval}", "TTFT ms", "most time goes to")
OVER_REQUESTS, OVER_MODELS = "95 % interval", "least to most local"
TAKES = ("dense", "kv_cache", "activations", "slots", "staging", "expansion")
"""Parts of device memory (engine.replay.memory.DeviceMemory)."""


def show(title: str, found: Recommendation) -> None:
    """Print it: how fast, what it takes, what is left out, and how far to believe it."""
    calibrated = all(is_measured(choice) for choice in found.choices)
    prior = found.prior
    said = f"; {prior.mark}" if prior else ""
    said += "" if calibrated else f"; {MODELLED}"
    columns = [name.format(interval=OVER_MODELS if prior else OVER_REQUESTS) for name in SPEEDS]
    console.table(f"{title}: {found.tried} replays{said}", columns, [_speed(choice) for choice in found.choices])
    parts = [part for part in TAKES if any(choice.estimates.device_parts[part] for choice in found.choices)]
    named = [part.replace("_", " ") for part in parts]
    console.table(
        "What each takes: GiB on the device by part and in host memory; energy, money and quality",
        ("weights", "device", *named, "host", "J/token", "per million tokens", "quality lost"),
        [_takes(choice, parts) for choice in found.choices],
    )
    if (served := found.choices[0].plan.serve.context) is not None:
        console.tell(f"Memory is kept for {served} tokens of context: --context says another length.")
    if any(choice.estimates.cost_per_million_tokens is not None for choice in found.choices):
        console.tell("Energy and cost: `tracekit hardware show` says where a machine's power and price come from.")
    for word, why in found.refused.items():
        console.tell(f"{word} is left out: {why}")
    if any(choice.where == "disk" for choice in found.choices):
        console.tell(
            "experts on disk: the plan says so (serve.host); run it with --slabs DIR; the host's cache begins empty"
        )
    if prior:
        console.tell(f"{prior.mark}: family {prior.family}, {prior.notice}. Record a trace, and give --trace.")
    else:
        console.tell("The interval is over requests: what others would give on the machine as it is modelled.")
    if calibrated:
        console.tell("Modelled on a machine that was measured: `tracekit validate` holds a plan against the engine.")
    else:
        console.tell("Modelled, not measured: `tracekit validate` holds a plan against the engine.")


def is_measured(choice: Choice) -> bool:
    """Whether the machine was measured, and the engine on it."""
    return choice.machine.measured


def _speed(choice: Choice) -> list[str]:
    between = "too few requests" if choice.low is None else f"{choice.low:.2f} to {console.number(choice.high, 2)}"
    return [
        str(choice.plan.weights.experts),
        plan_name(choice.plan.replace(serve=ServePlan()), stored=False),
        choice.where,
        f"{choice.tokens_per_second:.2f}",
        between,
        console.number(choice.time.ttft_ms, 0),
        choice.limit,
    ]


def _takes(choice: Choice, parts: list[str]) -> list[str]:
    estimates = choice.estimates
    joules, cost = estimates.joules_per_token, estimates.cost_per_million_tokens
    return [
        str(choice.plan.weights.experts),
        f"{estimates.device_bytes / GIB:.2f}",
        *(f"{estimates.device_parts[part] / GIB:.2f}" for part in parts),
        f"{estimates.host_bytes / GIB:.2f}",
        UNKNOWN if joules is None else f"{joules:.1f}",
        UNKNOWN if cost is None else f"{estimates.currency} {cost:.2f}",
        UNKNOWN if choice.quality_loss is None else console.percent(choice.quality_loss, 1),
    ]


def next_command(model: str, found: Recommendation, plan: Path, hardware: str) -> str:
    """What to run with the fastest plan: our engine, or where that does not store the format, another."""
    best = found.choices[0]
    stored = WeightFormat.parse(best.plan.weights.experts or "bf16")
    if stored.foreign:
        return f"tracekit export {quote(str(plan))} --to llama.cpp --model {quote(model)}"
    directory = quote(model) if Path(model).is_dir() else "DIR"
    words = f'tracekit generate {directory} "..." --plan {quote(str(plan))}'
    words += f" --hardware {quote(hardware)}" if best.plan.miss.where == "auto" else ""
    return words + (" --slabs DIR" if best.where == "disk" else "")


def plain(found: Recommendation) -> dict[str, object]:
    """For JSON."""
    return {
        "basis": basis(calibrated=all(is_measured(choice) for choice in found.choices)),
        "tried": found.tried,
        "prior": found.prior,
        "refused": found.refused,
        "plans": [
            {
                "plan": choice.plan.to_dict(),
                "experts_in": choice.where,
                "tokens_per_second": choice.tokens_per_second,
                "low": choice.low,
                "high": choice.high,
                "calibrated": is_measured(choice),
                "limit": choice.limit,
                "quality_loss": choice.quality_loss,
                "time": choice.time,
                "estimates": choice.estimates,
                "warnings": choice.warnings,
            }
            for choice in found.choices
        ],
    }
