"""What the numbers say, in sentences that carry them: docs/paper.md shows these and no number of its own."""

from collections.abc import Callable

from engine.plan.weights import WeightFormat
from experiments.research.paper.bits import GB, GIB, table1_bits, table1_unit_params
from experiments.research.paper.published import (
    BITS,
    HIT_RANGE,
    MACHINES,
    MODEL_PARAMS,
    RECALL,
    SAID_BITS,
    SCALES_QUANTISED,
    TABLE1_16BIT,
    TABLE1_SIZE,
    Machine,
    published,
)
from experiments.research.paper.table2 import Cell, Table2
from experiments.research.paper.text_tables import MS, Saving, expert_bytes, naive_share, percent, saving
from experiments.research.paper.two_terms import largest_hit_ratio

A100, LAPTOP, DESKTOP, T4 = MACHINES


def bits(result: Table2) -> str:
    """Which bits per parameter are used and why."""
    used = " and ".join(f"{result.bits[b]:.2f}" for b in BITS)
    quantised = WeightFormat.parse(SCALES_QUANTISED).bits_per_parameter
    gap = table1_bits(3, GIB) - table1_bits(2, GIB)
    gib, gb = ([f"{table1_bits(b, unit):.2f}" for b in BITS] for unit in (GIB, GB))
    said = next(s for s in result.sensitivity if s.bits[2] == SAID_BITS)
    fall = 1 - said.links[0] / result.sensitivity[0].links[0]
    plain = result.sensitivity[0].largest_error
    return (
        f"Used: {used} bits per parameter of 2- and 3-bit experts, what HQQ's stored layout takes in groups of 16 "
        f"(scales and zeros in 8 bits) and 64 (in 16 bits; in 8 bits, as the text has it, it would be {quantised:.2f}, "
        f"but Table 1 puts {gap:.2f} bits between the two). The text says {SAID_BITS} for 2 bits. Table 1's sizes "
        f"({TABLE1_SIZE[2]} and {TABLE1_SIZE[3]}) leave {gb[0]} and {gb[1]} if they count 10^9 bytes, {gib[0]} and "
        f"{gib[1]} if they count 2^30. They count 2^30: the 16-bit model's {TABLE1_16BIT} would otherwise hold "
        f"{table1_unit_params(GB) / 1e9:.1f} billion parameters instead of {table1_unit_params(GIB) / 1e9:.1f} (the "
        f"model has {MODEL_PARAMS / 1e9:.1f}). 2-bit predictions do not depend on the choice, for only bytes over rate "
        f"enter; the rate moves in proportion, with {SAID_BITS} bits {100 * fall:.0f} % down. 3-bit predictions depend "
        f"on the ratio of the two: their largest error moves from {percent(plain)} to {percent(said.largest_error)}."
    )


def physical(result: Table2) -> str:
    """Whether the fitted rates are ones that the slots allow."""
    shares = [f.link / f.raw_link for f in result.machines]
    t4 = result.fitted(T4.name)
    return (
        f"Fitted links take {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the raw rate of their slots (PCIe "
        f"3.0 x16 for T4 and 3060, 4.0 x16 for A100 and 3080 Mobile): all are possible, and none needs a faster slot. "
        f"The T4's 3-bit rows alone would want {t4.alone_link / 1e9:.1f} GB/s, {100 * t4.alone_link / t4.raw_link:.0f} "
        f"% of the slot, which packet headers do not leave: a sign that these two rows carry something else as well."
    )


def misprint(result: Table2) -> str:
    """Why one cell is left out."""
    told = published(3, "naive", DESKTOP.name)
    ratios = [published(3, "naive", m.name) / published(2, "naive", m.name) for m in MACHINES if m != DESKTOP]
    slip = told - 1
    below = published(3, "no-cache", DESKTOP.name)
    two_bit = published(2, "naive", DESKTOP.name)
    return (
        f"The 3060's 3-bit naive cell, {told}, is left out: it would make loading every expert "
        f"{told / below:.2f} times as fast as loading two of eight ({below}), and 3-bit experts {told / two_bit:.2f} "
        f"times as fast as 2-bit ones ({two_bit}). On the other GPUs the latter ratio is {min(ratios):.2f} to "
        f"{max(ratios):.2f}; {slip:.3f}, a slip of the first digit, would make it {slip / two_bit:.2f}."
    )


def t4(result: Table2) -> str:
    """Why the T4's 2-bit full row is out of reach of anything that hides copies."""
    f = result.fitted(T4.name)
    told = published(2, "full", T4.name)
    s = saving(result, 2, T4)
    short = f.overhead - 1 / told
    limit = largest_hit_ratio(*(1 / published(2, row, T4.name) for row in ("no-cache", "no-preload", "full")))
    load = expert_bytes(result, 2)
    spare = load / f.link - load / f.raw_link
    low, high = HIT_RANGE[4]
    others = [x.alone_overhead / x.overhead - 1 for x in result.machines if x.machine != T4.name]
    return (
        f"Without pre-loading the fit leaves the T4 {f.overhead * MS:.0f} ms per token that are no copies. They alone "
        f"allow {1 / f.overhead:.3f} tokens/s, {100 * (1 - 1 / f.overhead / told):.1f} % below the published "
        f"{told:.3f}: pre-loading is said to save {s.published * MS:.0f} ms where only {s.remaining * MS:.0f} ms of "
        f"copies are left, so {short * MS:.0f} ms are saved that are not copies. No link, recall or number of guesses "
        f"can do that. A hit ratio of at most {limit:.3f} at k = 4 could, with everything hidden, but {low:.2f} to "
        f"{high:.2f} is measured. Nor can written-back experts (the Colab host cannot hold all of them): the fitted "
        f"rate leaves {spare * MS:.1f} ms of each {load / f.link * MS:.1f} ms load for anything but the copy in, and "
        f"these are counted among the copies. What remains is the overhead: {100 * short / f.overhead:.0f} % less of "
        f"it in that run would do, and most of it depends on the host (the simulator finds "
        f"{f.simulated_overhead * MS:.0f} ms that are neither arithmetic nor memory). The table shows that it varies "
        f"by more: the 3-bit column was taken on another T4 (Azure instead of Colab), and its rows alone give "
        f"{f.alone_overhead * MS:.0f} ms, {percent(f.alone_overhead / f.overhead - 1)}; on the GPUs whose machine "
        f"stayed the same the two halves differ by {percent(min(others))} to {percent(max(others))}."
    )


def full_a100(result: Table2) -> str:
    """The A100's full rows."""
    two, three = (saving(result, b, A100) for b in BITS)
    f = result.fitted(A100.name)
    return (
        f"A100: pre-loading saves {_of(two)} (2-bit) and {_of(three)} (3-bit), less than one guess per layer would. "
        f"Missing: a cost of pre-loading itself, {two.unexplained(1) * MS:.1f} to {three.unexplained(2) * MS:.1f} ms "
        f"per layer, such as host time for another gate, its read-back and more copies to ask for. That a layer of "
        f"this run is bound by its host is likely: the simulator, which knows the GPU's arithmetic and memory, still "
        f"needs {f.simulated_overhead * MS:.0f} ms per token of overhead."
    )


def full_laptop(result: Table2) -> str:
    """The 3080 Mobile's full rows."""
    two, three = (saving(result, b, LAPTOP) for b in BITS)
    return (
        f"3080 Mobile: {_of(two)} and {_of(three)}, nearly every copy hidden, where a recall of {RECALL[2]:.2f} leaves "
        f"a fifth. Missing: {-two.unexplained(2) * MS:.1f} and {-three.unexplained(2) * MS:.1f} ms per layer more "
        f"saved than simulated, and no cost of guessing at all. A100 and 3080 Mobile have nearly the same copies left "
        f"({saving(result, 2, A100).remaining * MS:.0f} and {two.remaining * MS:.0f} ms), the same cache and the same "
        f"recall, yet save {saving(result, 2, A100).published * MS:.0f} and {two.published * MS:.0f} ms: nothing in "
        f"the model can tell them apart, so what does is the host or the software of the two runs."
    )


def full_desktop(result: Table2) -> str:
    """The 3060's full rows."""
    two, three = (saving(result, b, DESKTOP) for b in BITS)
    f = result.fitted(DESKTOP.name)
    copy = expert_bytes(result, 2) / f.link
    return (
        f"3060: {_of(two)} and {_of(three)}, though most is left to hide here (k = 2). One copy takes {copy * MS:.1f} "
        f"ms and a layer's overhead {f.overhead * MS / 32:.1f} ms, so the link is the limit and a wrong guess delays "
        f"a needed copy; the simulation has that, and still saves {two.simulated[1] * MS:.0f} ms with one guess. "
        f"Missing: {two.unexplained(1) * MS:.1f} to {three.unexplained(2) * MS:.1f} ms per layer. Copies that overlap "
        f"with less than the whole overhead would explain it: the published saving is what "
        f"{two.published / 32 / copy:.2f} hidden copies per layer give."
    )


def full_t4(result: Table2) -> str:
    """The T4's full rows."""
    two, three = (saving(result, b, T4) for b in BITS)
    cell = result.cell(3, "no-preload", T4.name)
    return (
        f"T4: {_of(two)} and {_of(three)}. 2-bit: {-two.unexplained(2) * MS:.1f} ms per layer more saved than "
        f"simulated, explained below. 3-bit: two guesses save {three.simulated[2] * MS:.0f} ms in the simulator, as "
        f"published; the row is missed because the one without pre-loading already is "
        f"({percent(cell.of('simulator').error)}), and that is another machine's column: see the T4's 3-bit fit."
    )


def naive(result: Table2) -> str:
    """What the naive rows imply."""
    shares = {
        c.machine: naive_share(result, c)
        for c in result.cells
        if c.row == "naive" and c.kind == "predicted" and c.bits == 2
    }
    desktop = result.cell(2, "naive", DESKTOP.name)
    needed = desktop.published * 256 * expert_bytes(result, 2)
    hidden = _span([c.of("two-term", "overhead hidden").error for c in _naive(result, DESKTOP)])
    added = _span([c.of("two-term", "overhead added").error for c in _naive(result, DESKTOP)])
    return (
        f"All eight experts of every layer at the fitted rate, with the overhead added, are too slow on every GPU "
        f"({added} without the 3060); with the overhead wholly hidden behind the copies they come to {hidden}. So "
        f"either the naive run has little overhead of its own (it loads whole layers in one piece and asks no cache), "
        f"or part of the model stayed on the GPU: with the overhead added, {100 * min(shares.values()):.0f} to "
        f"{100 * max(shares.values()):.0f} % of the experts can have been loaded. The 3060 decides it for at least one "
        f"GPU: even with no overhead at all, loading everything takes {needed / 1e9:.1f} GB/s, "
        f"{100 * needed / desktop_raw(result):.0f} % of its slot's raw rate, so its naive row did not load everything."
    )


def desktop_raw(result: Table2) -> float:
    """Raw rate of the 3060's slot, bytes per second."""
    return result.fitted(DESKTOP.name).raw_link


NOTES: dict[str, Callable[[Table2], str]] = {
    "bits": bits,
    "physical": physical,
    "misprint": misprint,
    "full-a100": full_a100,
    "full-3080m": full_laptop,
    "full-3060": full_desktop,
    "full-t4": full_t4,
    "t4": t4,
    "naive": naive,
}


def _of(s: Saving) -> str:
    return f"{s.published * MS:.0f} of {s.remaining * MS:.0f} ms"


def _naive(result: Table2, but: Machine) -> list[Cell]:
    return [c for c in result.cells if c.row == "naive" and c.kind == "predicted" and c.machine != but.name]


def _span(errors: list[float]) -> str:
    return f"{percent(min(errors))} to {percent(max(errors))}"
