"""Table 2 of Eliseev & Mazur (arXiv 2312.17238), as experiments.research.paper reproduces it: see docs/paper.md."""

from experiments.research.league.entries import Entry, Source
from experiments.research.paper.published import HIT_RATIO, MACHINES, RECALL, ROW_TITLES, Row
from experiments.research.paper.table2 import Cell, Table2, reproduce

GUESSED = "2 guessed"
MISSING: dict[Row, str] = {
    "full": "the routing: hit ratio and recall are assumed; how copies ahead and computing share the machine",
    "no-preload": "",
    "no-cache": "",
    "naive": "what is copied and how far it overlaps: loading whole layers is not what the simulator's engine does",
}
MISPRINT = "the published figure: loading every expert would beat loading two of eight"


def table2() -> Source:
    """The table's rows. Takes seconds."""
    result = reproduce()
    return Source(
        name="table2",
        title="Mixtral-8x7B in 2 and 3 bits, one token a step, on four GPUs",
        origin="Eliseev & Mazur 2023, arXiv 2312.17238, Table 2",
        unit="tokens/s",
        decimals=3,
        fits=[_fit(result, machine.name, machine.title) for machine in MACHINES],
        assumed=(
            f"Routing is not published: it is synthetic, with LRU hit ratios of {HIT_RATIO[2]:g} and {HIT_RATIO[4]:g} "
            f"at 2 and 4 experts per layer and a recall of {RECALL[2]:g} at two guesses."
        ),
        entries=[_entry(result, cell) for cell in result.cells],
    )


def _fit(result: Table2, name: str, title: str) -> str:
    fitted = result.fitted(name)
    return (
        f"{title}: link {fitted.simulated_link / 1e9:.1f} GB/s and overhead {1e3 * fitted.simulated_overhead:.0f} ms "
        "a token, on the 2-bit rows without pre-loading"
    )


def _entry(result: Table2, cell: Cell) -> Entry:
    machine = next(machine.title for machine in MACHINES if machine.name == cell.machine)
    variant = GUESSED if cell.row == "full" else ""
    found = [p for p in cell.predictions if (p.model, p.variant) == ("simulator", variant)]
    return Entry(
        machine=machine,
        row=f"{cell.bits}-bit, {ROW_TITLES[cell.row]}",
        kind="fitted" if cell.kind == "fitted" else "predicted",
        published=cell.published,
        predicted=found[0].tokens_per_second if found else None,
        missing=MISPRINT if cell.kind == "misprint" else MISSING[cell.row],
    )
