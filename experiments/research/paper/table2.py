"""Table 2, fitted and predicted: the two-term model and the simulator against what was published."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from engine.curves.curve import curve
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
    TOP_K,
    Bits,
    Machine,
    Row,
    published,
)
from experiments.research.paper.recall import recalls
from experiments.research.paper.simulated import Simulated, fit_simulated
from experiments.research.paper.stated_routing import write_routing
from experiments.research.paper.two_terms import TwoTerms, fit, loads_per_token, preloaded_seconds
from tracekit.errors import StudyError
from tracekit.rows import DECODE
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
    routing: str | None = None
    """Whose routing it is: a trace, or None for synthetic routing with the stated statistics."""

    def cell(self, bits: Bits, row: Row, machine: str) -> Cell:
        """One cell."""
        return next(c for c in self.cells if (c.bits, c.row, c.machine) == (bits, row, machine))

    def fitted(self, machine: str) -> Fitted:
        """One machine's terms."""
        return next(f for f in self.machines if f.machine == machine)


@dataclass(frozen=True, slots=True)
class Routing:
    """What is routed: hit ratios by cache size and recall by guesses, and traces by recall at two guesses.

    `stated` is the first of these; the others are for the ends of what recall may be, if it is not known.
    """

    hit_ratio: dict[int, float]
    recall: dict[int, float]
    traces: dict[float, Trace]

    @property
    def stated(self) -> Trace:
        return self.traces[self.recall[2]]

    @property
    def ends(self) -> dict[float, Trace]:
        return {recall: trace for recall, trace in self.traces.items() if recall != self.recall[2]}


def reproduce(own: Trace | None = None) -> Table2:
    """Fit every machine in both models and predict the rest of the table. Takes seconds; deterministic.

    Args:
        own: Mixtral's routing, recorded with lookahead 1; without it synthetic routing with the stated statistics.
    """
    reading = readings()[0]
    with routings() if own is None else nullcontext(routing_of(own)) as routing:
        simulated = {m.name: fit_simulated(routing.stated, m, _rows(m, FITTED)) for m in MACHINES}
        cells = [
            _cell(bits, row, m, reading, simulated[m.name], routing) for bits in BITS for row in ROWS for m in MACHINES
        ]
    return Table2(
        bits=reading.bits,
        hit_ratio=routing.hit_ratio,
        recall=routing.recall,
        machines=[_fitted(m, reading, simulated[m.name], routing.hit_ratio) for m in MACHINES],
        cells=cells,
        sensitivity=_sensitivity(routing.hit_ratio, HIT_RANGE if own is None else {}),
        routing=None if own is None else str(own.path),
    )


def routing_of(trace: Trace) -> Routing:
    """A trace with its own hit ratios and recall, both of decode. Raises StudyError if it is not Mixtral's routing."""
    manifest = trace.manifest
    shape = (trace.layers, set(manifest.experts_per_layer), trace.top_k)
    if shape != (LAYERS, {EXPERTS}, TOP_K):
        raise StudyError(
            f"{trace.path} routes top-{trace.top_k} of {trace.num_experts} experts in {trace.layers} MoE layers, "
            f"Table 2 is of Mixtral-8x7B: top-{TOP_K} of {EXPERTS} in {LAYERS}"
        )
    if 1 not in trace.lookahead_distances:
        raise StudyError(f"{trace.path} holds no lookahead at distance 1, which pre-loading reads: --lookahead 1")
    if not (trace.phase == DECODE).any():
        raise StudyError(f"{trace.path} has no decode steps: no tokens per second")
    sizes = sorted({m.cache for m in MACHINES})
    points = curve(trace, ["lru"], scope="layer", slots=sizes)
    found = {point.fetched: point.recall for point in recalls(trace, []) if point.distance == 1}
    recall = {guesses: found[guesses] for guesses in RECALL}
    hits = {size: point.decode_hit_ratio for size, point in zip(sizes, points, strict=True)}
    return Routing(hits, recall, {recall[2]: trace})


@contextmanager
def routings() -> Iterator[Routing]:
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
        yield Routing(HIT_RATIO, RECALL, found)


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
    simulated: Simulated,
    routing: Routing,
) -> Cell:
    stated = published(bits, row, machine.name)
    found: list[Prediction] = []

    def add(model: Model, speed: float, variant: str = "") -> None:
        found.append(Prediction(model=model, variant=variant, tokens_per_second=speed, error=speed / stated - 1))

    size, hits = reading.expert_bytes(bits), routing.hit_ratio[machine.cache]
    terms = two_terms(machine, reading, hit_ratio=routing.hit_ratio)
    loads = loads_per_token(row, hits)
    if row == "full":
        for guesses, recall in routing.recall.items():
            seconds = preloaded_seconds(
                terms, size, hit_ratio=hits, cache=machine.cache, guesses=guesses, recall=recall
            )
            add("two-term", 1 / seconds, f"{guesses} guessed")
            add("simulator", simulated.tokens_per_second(routing.stated, bits, row, guesses), f"{guesses} guessed")
        for recall, trace in routing.ends.items():
            add("simulator", simulated.tokens_per_second(trace, bits, row), f"recall {recall:.2f}")
    elif row == "naive":
        add("two-term", 1 / terms.seconds(loads, size), "overhead added")
        add("two-term", terms.link / (loads * size), "overhead hidden")
    else:
        add("two-term", 1 / terms.seconds(loads, size))
        add("simulator", simulated.tokens_per_second(routing.stated, bits, row))
    kind: Kind = "fitted" if (bits, row) in FITTED else "predicted"
    if (bits, row, machine.name) in MISPRINTS:
        kind = "misprint"
    return Cell(bits=bits, row=row, machine=machine.name, published=stated, kind=kind, predictions=found)


def _fitted(machine: Machine, reading: Reading, simulated: Simulated, hits: dict[int, float]) -> Fitted:
    terms = two_terms(machine, reading, hit_ratio=hits)
    alone = two_terms(machine, reading, ((3, "no-preload"), (3, "no-cache")), hits)
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


def _sensitivity(hit_ratio: dict[int, float], limits: dict[int, tuple[float, float]]) -> list[Sensitivity]:
    """`limits`: what the hit ratios may be at least and at most, if they are not known."""
    used, *others = readings()
    cases = [(r.title, r, hit_ratio) for r in (used, *others)]
    for end, name in enumerate(("lowest", "highest") if limits else ()):
        cases.append((f"{name} hit ratios", used, {k: ends[end] for k, ends in limits.items()}))
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
