"""Table 2, fitted and predicted: the two-term model and the simulator against what was published."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from experiments.research.paper.bits import Reading, readings
from experiments.research.paper.published import (
    BITS,
    EXPERTS,
    FITTED,
    HIT_RANGE,
    HIT_RATIO,
    LAYERS,
    MACHINES,
    MISPRINTS,
    RECALL,
    RECALL_RANGE,
    ROWS,
    Bits,
    Machine,
    Row,
    published,
)
from experiments.research.paper.simulated import Simulated, fit_simulated
from experiments.research.paper.stated_routing import write_routing
from experiments.research.paper.two_terms import TwoTerms, fit, loads_per_token, preloaded_seconds
from tracekit.trace import Trace

TOKENS = 512
SEED = 2312_17238

Model = Literal["two-term", "simulator"]
Kind = Literal["fitted", "predicted", "misprint"]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One model's answer to one cell. `variant` says how the row was modelled; `error` is predicted / published - 1."""

    model: Model
    variant: str
    tokens_per_second: float
    error: float


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of Table 2."""

    bits: Bits
    row: Row
    machine: str
    published: float
    kind: Kind
    predictions: list[Prediction]

    def of(self, model: Model, variant: str = "") -> Prediction:
        """The prediction of a model in a variant."""
        return next(p for p in self.predictions if p.model == model and p.variant == variant)


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's two terms in each model. Link rates in bytes per second, overheads in seconds per token.

    `alone` are the terms that the same two rows of the 3-bit half give by themselves, a check of the first.
    """

    machine: str
    raw_link: float
    link: float
    overhead: float
    simulated_link: float
    simulated_overhead: float
    alone_link: float
    alone_overhead: float


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """The two-term fit under another assumption, and its largest error on the 3-bit rows without pre-loading."""

    assumption: str
    bits: dict[Bits, float]
    hit_ratio: dict[int, float]
    links: list[float]
    largest_error: float


class Table2(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the command prints, for machines."""

    bits: dict[Bits, float]
    hit_ratio: dict[int, float]
    recall: dict[int, float]
    machines: list[Fitted]
    cells: list[Cell]
    sensitivity: list[Sensitivity]

    def cell(self, bits: Bits, row: Row, machine: str) -> Cell:
        """One cell."""
        return next(c for c in self.cells if (c.bits, c.row, c.machine) == (bits, row, machine))

    def fitted(self, machine: str) -> Fitted:
        """One machine's terms."""
        return next(f for f in self.machines if f.machine == machine)


def reproduce() -> Table2:
    """Fit every machine in both models and predict the rest of the table. Takes seconds; deterministic."""
    reading = readings()[0]
    with routings() as traces:
        simulated = {m.name: fit_simulated(traces[RECALL[2]], m, _rows(m, FITTED)) for m in MACHINES}
        cells = [
            _cell(bits, row, m, reading, two_terms(m, reading), simulated[m.name], traces)
            for bits in BITS
            for row in ROWS
            for m in MACHINES
        ]
    return Table2(
        bits=reading.bits,
        hit_ratio=HIT_RATIO,
        recall=RECALL,
        machines=[_fitted(m, reading, simulated[m.name]) for m in MACHINES],
        cells=cells,
        sensitivity=_sensitivity(),
    )


@contextmanager
def routings() -> Iterator[dict[float, Trace]]:
    """Synthetic routing by its recall at two guesses: the stated one and the ends of its range."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for recall in (RECALL[2], *RECALL_RANGE[2]):
            found[recall] = write_routing(
                Path(folder) / f"{recall}.trace",
                hit_ratio=HIT_RATIO,
                recall={**RECALL, 2: recall},
                tokens=TOKENS,
                layers=LAYERS,
                experts=EXPERTS,
                seed=SEED,
            )
        yield found


def two_terms(
    machine: Machine,
    reading: Reading,
    rows: tuple[tuple[Bits, Row], ...] = FITTED,
    hit_ratio: dict[int, float] = HIT_RATIO,
) -> TwoTerms:
    """The two-term fit of a machine to `rows`."""
    loads = [loads_per_token(row, hit_ratio[machine.cache]) * reading.expert_bytes(bits) for bits, row in rows]
    return fit(loads, [1 / speed for speed in _rows(machine, rows).values()])


def _rows(machine: Machine, rows: tuple[tuple[Bits, Row], ...]) -> dict[tuple[Bits, Row], float]:
    return {(bits, row): published(bits, row, machine.name) for bits, row in rows}


def _cell(
    bits: Bits,
    row: Row,
    machine: Machine,
    reading: Reading,
    terms: TwoTerms,
    simulated: Simulated,
    traces: dict[float, Trace],
) -> Cell:
    told = published(bits, row, machine.name)
    found: list[Prediction] = []

    def add(model: Model, speed: float, variant: str = "") -> None:
        found.append(Prediction(model=model, variant=variant, tokens_per_second=speed, error=speed / told - 1))

    size, hits = reading.expert_bytes(bits), machine.expected_hits
    loads = loads_per_token(row, hits)
    if row == "full":
        for guesses, recall in RECALL.items():
            seconds = preloaded_seconds(
                terms, size, hit_ratio=hits, cache=machine.cache, guesses=guesses, recall=recall
            )
            add("two-term", 1 / seconds, f"{guesses} guessed")
            add("simulator", simulated.tokens_per_second(traces[RECALL[2]], bits, row, guesses), f"{guesses} guessed")
        for recall in RECALL_RANGE[2]:
            add("simulator", simulated.tokens_per_second(traces[recall], bits, row), f"recall {recall:.2f}")
    elif row == "naive":
        add("two-term", 1 / terms.seconds(loads, size), "overhead added")
        add("two-term", terms.link / (loads * size), "overhead hidden")
    else:
        add("two-term", 1 / terms.seconds(loads, size))
        add("simulator", simulated.tokens_per_second(traces[RECALL[2]], bits, row))
    kind: Kind = "fitted" if (bits, row) in FITTED else "predicted"
    if (bits, row, machine.name) in MISPRINTS:
        kind = "misprint"
    return Cell(bits=bits, row=row, machine=machine.name, published=told, kind=kind, predictions=found)


def _fitted(machine: Machine, reading: Reading, simulated: Simulated) -> Fitted:
    terms = two_terms(machine, reading)
    alone = two_terms(machine, reading, ((3, "no-preload"), (3, "no-cache")))
    return Fitted(
        machine=machine.name,
        raw_link=machine.raw_link,
        link=terms.link,
        overhead=terms.overhead,
        simulated_link=simulated.link,
        simulated_overhead=simulated.overhead * LAYERS,
        alone_link=alone.link,
        alone_overhead=alone.overhead,
    )


def _sensitivity() -> list[Sensitivity]:
    used, *others = readings()
    cases = [(r.title, r, HIT_RATIO) for r in (used, *others)]
    for end, name in enumerate(("lowest", "highest")):
        cases.append((f"{name} hit ratios", used, {k: ends[end] for k, ends in HIT_RANGE.items()}))
    found = []
    for assumption, reading, hits in cases:
        terms = {m.name: two_terms(m, reading, hit_ratio=hits) for m in MACHINES}
        errors = [
            1 / terms[m.name].seconds(loads_per_token(row, hits[m.cache]), reading.expert_bytes(3))
            / published(3, row, m.name)
            - 1
            for m in MACHINES
            for row in ("no-preload", "no-cache")
        ]  # fmt: skip
        found.append(
            Sensitivity(
                assumption=assumption,
                bits=reading.bits,
                hit_ratio=hits,
                links=[terms[m.name].link for m in MACHINES],
                largest_error=max(errors, key=abs),
            )
        )
    return found
