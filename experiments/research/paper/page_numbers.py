"""The numbers that the sentences of docs/paper.md give, by name. What they mean is said there."""

from engine.plan.weights import WeightFormat
from experiments.research.paper.bits import GB, GIB, table1_bits, table1_unit_params
from experiments.research.paper.published import (
    BITS,
    EXPERTS,
    HIT_RANGE,
    LAYERS,
    MACHINES,
    MODEL_PARAMS,
    RECALL,
    SAID_BITS,
    SCALES_QUANTISED,
    TABLE1_16BIT,
    TABLE1_SIZE,
    published,
)
from experiments.research.paper.table2 import Table2
from experiments.research.paper.text_tables import MS, expert_bytes, naive_share, saving
from experiments.research.paper.two_terms import largest_hit_ratio

DESKTOP, T4 = "rtx3060", "t4"


def numbers(result: Table2) -> dict[str, float]:
    """Every number, unrounded: times in ms, rates in GB/s, shares and errors in per cent, parameters in billions."""
    return _stored_bits(result) | _machines(result) | _t4_full_row(result) | _naive(result)


def _stored_bits(result: Table2) -> dict[str, float]:
    used, said = result.sensitivity[0], next(s for s in result.sensitivity if s.bits[2] == SAID_BITS)
    found = {f"recall.{guesses}": recall for guesses, recall in RECALL.items()}
    for bits in BITS:
        found |= {
            f"bits.{bits}": result.bits[bits],
            f"table1.size.{bits}": TABLE1_SIZE[bits],
            f"table1.gb.{bits}": table1_bits(bits, GB),
            f"table1.gib.{bits}": table1_bits(bits, GIB),
        }
    return found | {
        "bits.scales": WeightFormat.parse(SCALES_QUANTISED).bits_per_parameter,
        "bits.said": SAID_BITS,
        "table1.gap": table1_bits(3, GIB) - table1_bits(2, GIB),
        "table1.16bit": TABLE1_16BIT,
        "parameters.gb": table1_unit_params(GB) / 1e9,
        "parameters.gib": table1_unit_params(GIB) / 1e9,
        "parameters": MODEL_PARAMS / 1e9,
        "said.link-fall": 100 * (1 - said.links[0] / used.links[0]),
        "said.error": 100 * said.largest_error,
        "used.error": 100 * used.largest_error,
    }


def _machines(result: Table2) -> dict[str, float]:
    """What was fitted to each machine, and what pre-loading saves there; `more` is saved beyond the simulation."""
    found: dict[str, float] = {}
    for machine in MACHINES:
        name, f = machine.name, result.fitted(machine.name)
        found |= {
            f"{name}.overhead": f.overhead * MS,
            f"{name}.layer": f.overhead * MS / LAYERS,
            f"{name}.copy": expert_bytes(result, 2) / f.link * MS,
            f"{name}.simulated-overhead": f.simulated_overhead * MS,
            f"{name}.alone-overhead": f.alone_overhead * MS,
            f"{name}.alone-link": f.alone_link / 1e9,
            f"{name}.alone-share": 100 * f.alone_link / f.raw_link,
        }
        for bits in BITS:
            saved = saving(result, bits, machine)
            found |= {f"{name}.saved.{bits}": saved.published * MS, f"{name}.left.{bits}": saved.remaining * MS}
            for guesses, simulated in saved.simulated.items():
                found[f"{name}.simulated.{bits}.{guesses}"] = simulated * MS
                found[f"{name}.missing.{bits}.{guesses}"] = saved.unexplained(guesses) * MS
                found[f"{name}.more.{bits}.{guesses}"] = -saved.unexplained(guesses) * MS
    shares = [100 * f.link / f.raw_link for f in result.machines]
    copies = found[f"{DESKTOP}.saved.2"] / LAYERS / found[f"{DESKTOP}.copy"]
    return found | {"share.least": min(shares), "share.most": max(shares), f"{DESKTOP}.hidden-copies": copies}


def _t4_full_row(result: Table2) -> dict[str, float]:
    f, told = result.fitted(T4), published(2, "full", T4)
    short = f.overhead - 1 / told
    load = expert_bytes(result, 2)
    others = [100 * (x.alone_overhead / x.overhead - 1) for x in result.machines if x.machine != T4]
    return {
        "t4.alone-speed": 1 / f.overhead,
        "t4.below": 100 * (1 - 1 / f.overhead / told),
        "t4.full": told,
        "t4.short": short * MS,
        "t4.short-share": 100 * short / f.overhead,
        "t4.most-hits": largest_hit_ratio(*(1 / published(2, row, T4) for row in ("no-cache", "no-preload", "full"))),
        "hits.least": HIT_RANGE[4][0],
        "hits.most": HIT_RANGE[4][1],
        "t4.spare": (load / f.link - load / f.raw_link) * MS,
        "t4.halves": 100 * (f.alone_overhead / f.overhead - 1),
        "halves.least": min(others),
        "halves.most": max(others),
        "t4.plain-error": 100 * result.cell(3, "no-preload", T4).of("simulator").error,
    }


def _naive(result: Table2) -> dict[str, float]:
    two, told, below = published(2, "naive", DESKTOP), published(3, "naive", DESKTOP), published(3, "no-cache", DESKTOP)
    ratios = [published(3, "naive", m.name) / published(2, "naive", m.name) for m in MACHINES if m.name != DESKTOP]
    cells = [c for c in result.cells if c.row == "naive" and c.kind == "predicted"]
    shares = [100 * naive_share(result, c) for c in cells if c.bits == 2]
    needed = two * LAYERS * EXPERTS * expert_bytes(result, 2)
    found = {
        "misprint": told,
        "misprint.over": told / below,
        "misprint.below": below,
        "misprint.three": told / two,
        "misprint.two-bit": two,
        "misprint.least": min(ratios),
        "misprint.most": max(ratios),
        "slip": told - 1,
        "slip.three": (told - 1) / two,
        "naive.least-share": min(shares),
        "naive.most-share": max(shares),
        "naive.link": needed / 1e9,
        "naive.slot": 100 * needed / result.fitted(DESKTOP).raw_link,
    }
    for how in ("added", "hidden"):
        errors = [100 * c.of("two-term", f"overhead {how}").error for c in cells if c.machine != DESKTOP]
        found |= {f"naive.{how}.least": min(errors), f"naive.{how}.most": max(errors)}
    return found
