"""What `tracekit size` prints: a table for people, what is not known below it, and everything for machines."""

from typing import TYPE_CHECKING

from experiments.cli import console

if TYPE_CHECKING:
    from engine.hardware.prices import PriceList
    from experiments.prior import About
    from experiments.size.size import Row, Sizing

GIB = 1 << 30
SHOWN = 12
"""Rows for people."""


def show(
    model: str, trace: str | None, found: "Sizing", prices: "PriceList", life_hours: int | None, prior: "About | None"
) -> None:
    """The table: machines that nothing betters first, then the fastest, and what it is made of."""
    from experiments.statistics.speeds import MODELLED

    rows = sorted(found.rows, key=lambda row: (row.pareto != "best", -(row.tokens_per_second or 0)))
    routing = f"routing of {trace}" if prior is None else prior.mark
    title = f"{model}, {routing}: {MODELLED}"
    console.table(title, _columns(prices.currency), [_row(row) for row in rows[:SHOWN]])
    if prior is not None:
        console.tell(f"{prior.mark}: family {prior.family}, {prior.notice}.")
    _tell(found, rows, prices, life_hours)


def _columns(currency: str) -> tuple[str, ...]:
    return (
        "machine",
        "plan",
        "tokens/s",
        "TTFT s",
        "reached",
        f"purchase {currency}",
        "J/token",
        f"{currency} per million",
        "binds (twice of it wins)",
    )


MARKS = {"best": "* ", "open": "? "}


def _row(row: "Row") -> list[str]:
    from experiments.study.grid import plan_name

    name = MARKS.get(row.pareto or "", "  ") + row.machine
    if row.plan is None or row.time is None or row.estimates is None:
        return [name, "does not fit", "-", "-", "no", _purchase(row), "-", "-", row.binds]
    between = "" if row.low is None else f" ({row.low:.1f} to {console.number(row.high, 1)})"
    ttft = None if row.time.ttft_ms is None else row.time.ttft_ms / 1e3
    return [
        name,
        f"{row.plan.weights.experts} {plan_name(row.plan, stored=False)}",
        f"{row.tokens_per_second:.1f}{between}",
        console.number(ttft, 2),
        row.reached or "-",
        _purchase(row),
        console.number(row.estimates.joules_per_token, 1),
        console.number(row.estimates.cost_per_million_tokens, 2),
        row.binds if row.gain is None else f"{row.binds} ({console.percent(row.gain, 0)})",
    ]


def _purchase(row: "Row") -> str:
    if row.purchase is None:
        return "not known"
    return "hired" if row.hired else f"{row.purchase:.0f}"


def _tell(found: "Sizing", rows: "list[Row]", prices: "PriceList", life_hours: int | None) -> None:
    """What the table is made of, and what is not known."""
    if len(rows) > SHOWN:
        console.tell(f"{len(rows) - SHOWN} slower machines are left out; --json has all.")
    console.tell(
        "*: none of known figures betters it in purchase, energy and cost; ?: not all of its figures are known."
    )
    for row in rows[:SHOWN]:
        if row.refused is not None:
            console.tell(f"{row.machine}: {row.refused}")
        if row.held_to is not None:
            console.tell(f"{row.machine} is counted as held to the times of {row.held_to}: its own were longer.")
    served = next((row.plan.serve.context for row in rows if row.plan is not None), None)
    if served is not None:
        console.tell(f"Memory is kept for {served} tokens of context; with --context decoding reads as many, too.")
    if found.prompt_tokens is not None:
        console.tell(f"TTFT is of the trace's prompts, {found.prompt_tokens:.0f} tokens a prefill step.")
    for note in found.notes:
        console.tell(note)
    for note, machines in _unknown(rows).items():
        console.tell(f"{note}: {', '.join(machines)}")
    host = max((row.estimates.host_bytes for row in rows if row.estimates is not None), default=0)
    console.tell(
        f"Experts take up to {host / GIB:.1f} GiB of host memory; a profile without [host] does not say what there is."
    )
    dates = [one.price.date for one in prices.machines.values() if one.price is not None]
    console.tell(
        f"Prices are of {min(dates)} to {max(dates)}, purchases written off over {life_hours or prices.life.hours} "
        "hours of use; --prices replaces them."
        if dates
        else "The price list has no prices."
    )
    console.tell("Modelled, not measured: `tracekit validate` holds a plan against the engine.")


def _unknown(rows: "list[Row]") -> dict[str, list[str]]:
    """What is not known, with the machines of which it is not."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row.unknown:
            found.setdefault(note, []).append(row.machine)
    return found


def plain(found: "Sizing", prices: "PriceList", life_hours: int | None) -> dict[str, object]:
    """All of it."""
    import msgspec

    from experiments.statistics.speeds import MODELLED

    return {
        "basis": MODELLED,
        "currency": prices.currency,
        "life_hours": life_hours or prices.life.hours,
        "prices": msgspec.to_builtins(prices),
        "tried": found.tried,
        "prompt_tokens": found.prompt_tokens,
        "notes": found.notes,
        "machines": [row._asdict() | {"plan": None if row.plan is None else row.plan.to_dict()} for row in found.rows],
    }
