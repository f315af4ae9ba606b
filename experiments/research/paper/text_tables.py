"""The results as tables of text, for the terminal and for docs/paper.md alike."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.research.paper.published import (
    BITS,
    EXPERT_PARAMS,
    EXPERTS,
    LAYERS,
    MACHINES,
    ROW_TITLES,
    Bits,
    Machine,
)
from experiments.research.paper.table2 import Cell, Model, Prediction, Table2
from experiments.research.paper.two_terms import loads_per_token

MS = 1e3
WITHIN = 0.10
_MODELS: tuple[tuple[Model, str], ...] = (("two-term", "two terms"), ("simulator", "simulator"))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def percent(share: float) -> str:
    """A signed error, such as +4.5 %; never a negative nothing."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"


def expert_bytes(result: Table2, bits: Bits) -> float:
    """Bytes of one expert as the results count them."""
    return result.bits[bits] * EXPERT_PARAMS / (LAYERS * EXPERTS) / 8


def fits(result: Table2) -> Table:
    """What was fitted, and the same two rows of the 3-bit half alone as a check."""
    rows = []
    for machine in MACHINES:
        f = result.fitted(machine.name)
        terms = (f.link, f.overhead), (f.simulated_link, f.simulated_overhead), (f.alone_link, f.alone_overhead)
        shown = [cell for link, overhead in terms for cell in (_rate(link, f.raw_link), f"{overhead * MS:.0f}")]
        rows.append([machine.title, f"{machine.pcie}.0: {f.raw_link / 1e9:.1f}", *shown])
    columns = [
        "GPU", "slot, GB/s", "link, GB/s", "overhead, ms", "simulator: link", "overhead, ms", "3-bit alone: link",
        "overhead, ms",
    ]  # fmt: skip
    return Table("Fitted to the 2-bit rows without pre-loading (share of the slot's raw rate)", columns, rows)


def plain(result: Table2) -> Table:
    """The rows without pre-loading: the fitted ones and those predicted from them."""
    rows = []
    for bits in BITS:
        for row in ("no-preload", "no-cache"):
            for cell in _cells(result, bits, row):
                shown = [_shown(cell.of("two-term")), _shown(cell.of("simulator"))]
                name = f"{bits}-bit, {ROW_TITLES[cell.row]}"
                rows.append([name, _title(cell), cell.kind, f"{cell.published:.3f}", *shown])
    return Table(
        "Tokens per second without pre-loading", ["row", "GPU", "", "published", "two terms", "simulator"], rows
    )


def full(result: Table2) -> Table:
    """The full algorithm, with one and two experts guessed."""
    rows = []
    for bits in BITS:
        for cell in _cells(result, bits, "full"):
            shown = [_shown(cell.of(model, f"{n} guessed")) for model, _ in _MODELS for n in result.recall]
            ends = [f"{p.tokens_per_second:.3f}" for p in cell.predictions if p.variant.startswith("recall")]
            name = f"{bits}-bit, {ROW_TITLES[cell.row]}"
            rows.append([name, _title(cell), f"{cell.published:.3f}", *shown, " to ".join(ends) or "-"])
    columns = [
        "row", "GPU", "published", "two terms, 1 guess", "two terms, 2 guesses", "simulator, 1 guess",
        "simulator, 2 guesses", "at recall 0.70 to 0.90",
    ]  # fmt: skip
    return Table("Tokens per second of the full algorithm", columns, rows)


@dataclass(frozen=True, slots=True)
class Saving:
    """What pre-loading saved in one column of Table 2, seconds per token."""

    published: float
    remaining: float
    """Time of all copies that the row without pre-loading makes, by the two-term fit."""
    simulated: dict[int, float]
    """By number of guesses."""

    def unexplained(self, guesses: int) -> float:
        """Seconds per layer that the simulation saves and the publication does not."""
        return (self.simulated[guesses] - self.published) / LAYERS


def saving(result: Table2, bits: Bits, machine: Machine) -> Saving:
    """What pre-loading saved, as published and as simulated."""
    before, after = result.cell(bits, "no-preload", machine.name), result.cell(bits, "full", machine.name)
    simulated = {
        guesses: 1 / before.of("simulator").tokens_per_second
        - 1 / after.of("simulator", f"{guesses} guessed").tokens_per_second
        for guesses in result.recall
    }
    loads = loads_per_token("no-preload", result.hit_ratio[machine.cache])
    remaining = loads * expert_bytes(result, bits) / result.fitted(machine.name).link
    return Saving(1 / before.published - 1 / after.published, remaining, simulated)


def savings(result: Table2) -> Table:
    """Row by row, how much of the remaining copies pre-loading hid, and what the simulation lacks."""
    rows = []
    for bits in BITS:
        for machine in MACHINES:
            s = saving(result, bits, machine)
            stated = [f"{s.remaining * MS:.0f}", f"{s.published * MS:.0f}", f"{100 * s.published / s.remaining:.0f} %"]
            simulated = [f"{saved * MS:.0f}" for saved in s.simulated.values()]
            missing = [f"{s.unexplained(guesses) * MS:+.1f}" for guesses in s.simulated]
            rows.append([f"{bits}-bit", machine.title, *stated, *simulated, *missing])
    columns = [
        "row", "GPU", "copies left, ms", "saved, ms", "of the copies", "simulated, 1 guess", "2 guesses",
        "missing per layer, 1 guess", "2 guesses",
    ]  # fmt: skip
    return Table("What pre-loading saves per token, and what the simulation lacks (ms)", columns, rows)


def naive(result: Table2) -> Table:
    """Naive offloading as all eight experts of every layer, and the share of them that the row can have loaded."""
    rows = []
    for bits in BITS:
        for cell in _cells(result, bits, "naive"):
            added, hidden = (_shown(cell.of("two-term", f"overhead {how}")) for how in ("added", "hidden"))
            stated, share, wanted = f"{cell.published:.3f} (misprint)", "-", "-"
            if cell.kind != "misprint":
                rate = cell.published * loads_per_token("naive", 0) * expert_bytes(result, bits)
                stated, share = f"{cell.published:.3f}", f"{100 * naive_share(result, cell):.0f} %"
                wanted = _rate(rate, result.fitted(cell.machine).raw_link)
            rows.append([f"{bits}-bit", _title(cell), stated, added, hidden, share, wanted])
    columns = [
        "row", "GPU", "published", "overhead added", "overhead hidden", "experts loaded, overhead added",
        "link for all, overhead hidden",
    ]  # fmt: skip
    return Table("Naive offloading: tokens per second if every layer loads all its experts", columns, rows)


def naive_share(result: Table2, cell: Cell) -> float:
    """The share of all experts that the published naive row can have loaded at the fitted rate and overhead."""
    f = result.fitted(cell.machine)
    everything = loads_per_token("naive", 0) * expert_bytes(result, cell.bits) / f.link
    return (1 / cell.published - f.overhead) / everything


def assumptions(result: Table2) -> Table:
    """How the fit moves with the bits per parameter and with the hit ratios."""
    rows = []
    for s in result.sensitivity:
        links = [_rate(link, m.raw_link) for link, m in zip(s.links, MACHINES, strict=True)]
        bits = " / ".join(f"{s.bits[b]:.2f}" for b in BITS)
        hits = " / ".join(f"{s.hit_ratio[k]:g}" for k in (2, 4))
        rows.append([s.assumption, bits, hits, *links, percent(s.largest_error)])
    columns = [
        "assumption", "bits, 2 / 3", "hits, k = 2 / 4", *(f"{m.title}, GB/s" for m in MACHINES), "largest 3-bit error",
    ]  # fmt: skip
    return Table("The fitted link under other assumptions, and the largest error without pre-loading", columns, rows)


def verdict(result: Table2) -> Table:
    """How many predicted cells are within ten per cent, by kind of row and by model."""
    kinds: list[tuple[str, Model, str]] = [
        ("without pre-loading, two terms", "two-term", ""),
        ("without pre-loading, simulator", "simulator", ""),
        *((f"full, {title}, {_guesses(n)}", model, f"{n} guessed") for model, title in _MODELS for n in result.recall),
        ("naive, overhead added", "two-term", "overhead added"),
        ("naive, overhead hidden", "two-term", "overhead hidden"),
    ]
    rows = []
    for title, model, variant in kinds:
        errors = [
            p.error
            for cell in result.cells
            if cell.kind == "predicted"
            for p in cell.predictions
            if (p.model, p.variant) == (model, variant)
        ]
        good = sum(abs(error) <= WITHIN for error in errors)
        rows.append([title, f"{good} of {len(errors)}", percent(max(errors, key=abs))])
    title = f"Predicted cells within {100 * WITHIN:.0f} % of the published value (the misprint aside)"
    return Table(title, ["rows and model", "within", "worst"], rows)


TABLES: dict[str, Callable[[Table2], Table]] = {
    "fits": fits,
    "verdict": verdict,
    "plain": plain,
    "full": full,
    "savings": savings,
    "naive": naive,
    "assumptions": assumptions,
}


def _guesses(count: int) -> str:
    return "1 guess" if count == 1 else f"{count} guesses"


def _cells(result: Table2, bits: Bits, row: str) -> list[Cell]:
    return [cell for cell in result.cells if cell.bits == bits and cell.row == row]


def _title(cell: Cell) -> str:
    return next(m.title for m in MACHINES if m.name == cell.machine)


def _shown(prediction: Prediction) -> str:
    return f"{prediction.tokens_per_second:.3f} ({percent(prediction.error)})"


def _rate(link: float, raw: float) -> str:
    return f"{link / 1e9:.1f} ({100 * link / raw:.0f} %)"
