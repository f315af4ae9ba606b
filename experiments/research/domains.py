"""Is it worth placing experts by the domain of the work? Placements made from some requests, judged on others.

`python -m experiments.research.domains FOLDER` routes held-out text of three domains by the reference models, in
FOLDER (or finds there what `experiments.research.placement` left). Placements are made from one half of the requests
and judged on the other, and the other way round, all plans at the same slots in all; what was found of each half is
kept in FOLDER and not found again. It prints the tables of docs/experiments.md.

Switching is charged: its copies are in the loads, and a request's time is that of all its steps, prompt included.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import numpy as np

from engine.decisions.evidence import check_evidence, digests_of
from engine.decisions.placing import place
from engine.hardware import HardwareProfile, load_hardware
from engine.plan.placement import save_placement
from engine.plan.plan import Plan
from engine.replay.passes import Steps, run
from engine.replay.setting import Setting
from engine.replay.switching import Switches
from engine.shapes import load_shape
from experiments.demo.stdlib_text import DOMAINS
from experiments.research import markdown
from experiments.research.placement import REQUESTS, one_token_a_step, routed
from experiments.statistics.comparison import Comparison, Quantity, compare, judge
from policies.events import ADMIT, HOST, LOAD, PREFETCH
from tracekit.batched import batched
from tracekit.errors import TracekitError
from tracekit.of_requests import of_requests, one_by_one
from tracekit.requests import known_requests
from tracekit.rows import DECODE
from tracekit.trace import Trace

SLOTS: Mapping[str, Sequence[int]] = {"mixtral-mini": (3, 4, 6), "qwen3-moe-mini": (8, 12, 16)}
SHAPES = {"mixtral-mini": "mixtral-8x7b", "qwen3-moe-mini": "qwen3-30b-a3b"}
"""Whose sizes experts have in time; of the second the routing is of fewer experts."""
MACHINES = ("t4", "rtx4090", "h100")
WEIGHTS = "hqq-4bit"
ORDERS = ("in turn", "in runs", "4 at once")
"""Requests of the three domains in turn; all of one domain, then of the next; in turn, four in flight."""
BASE = "LRU"
DETECT, CLUSTERS = 32, 3


class Found(NamedTuple):
    """What one plan's requests cost: [requests] each, but `ns` [machines, requests]; `switched` copies in all."""

    lookups: np.ndarray
    misses: np.ndarray
    copies: np.ndarray
    tokens: np.ndarray
    ns: np.ndarray
    switched: np.ndarray


def main() -> int:
    """Print the tables; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.domains", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where traces and results are, or are to be")
    folder = parser.parse_args().folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for model, sizes in SLOTS.items():
            for order in ORDERS:
                found = {slots: joined(model, slots, order, folder) for slots in sizes}
                print(f"\n{model}, requests {order}\n\n{tables(found)}", flush=True)
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def joined(model: str, slots: int, order: str, folder: Path) -> dict[str, Found]:
    """What every way's requests cost, those of both halves."""
    parts = []
    for number, (profile, test) in enumerate(folds(model, folder)):
        path = folder / f"{model}-{slots}-{order.replace(' ', '-')}-{number}.npz"
        if not path.exists():
            found = contest(profile, ordered(test, order), slots, SHAPES[model], say=told)
            keep(found, path)
        parts.append(kept(path))
    first, second = parts
    return {
        name: Found(*(np.concatenate(both, axis=-1) for both in zip(own, second[name], strict=True)))
        for name, own in first.items()
    }


def keep(found: Mapping[str, Found], path: Path) -> None:
    """Write what a contest found."""
    arrays = {f"{name}/{field}": array for name, own in found.items() for field, array in own._asdict().items()}
    with path.with_suffix(".part").open("wb") as file:
        np.savez_compressed(file, **arrays)
    path.with_suffix(".part").replace(path)


def kept(path: Path) -> dict[str, Found]:
    """What `keep` wrote."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            name, _, field = key.rpartition("/")
            found.setdefault(name, {})[field] = arrays[key]
    return {name: Found(**own) for name, own in found.items()}


def told(text: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def folds(model: str, folder: Path) -> Iterator[tuple[Trace, Trace]]:
    """(what placements are made from, what judges them): each half of the requests for the other; of the judges none
    begins as one that was seen."""
    path = folder / f"{model}.trace"
    whole = Trace.open(path) if path.exists() else one_token_a_step(routed(model, folder), path)
    labels = [DOMAINS[number % len(DOMAINS)] for number in range(REQUESTS)]  # as `prompts` takes them in turn
    whole = whole.with_manifest(msgspec.structs.replace(whole.manifest, domains=list(labels)))
    halves = [range(REQUESTS // 2), range(REQUESTS // 2, REQUESTS)]
    for profile, test in ((halves[0], halves[1]), (halves[1], halves[0])):
        seen = of_requests(whole, profile)
        known = set(known_requests(whole, digests_of(seen)))
        yield seen, of_requests(whole, [number for number in test if number not in known])


def ordered(trace: Trace, order: str) -> Trace:
    """The requests in another order, or several at once."""
    if order == "4 at once":
        return batched(trace, 4)
    if order == "in turn":
        return trace
    labels = trace.manifest.domains
    numbers = np.unique(trace.request).tolist()
    return one_by_one(trace, sorted(numbers, key=lambda number: (labels[number], number)))


def contest(
    profile: Trace,
    test: Trace,
    slots: int,
    shape: str | None = None,
    *,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Found]:
    """What the requests of `test` cost under every way to use so many slots a layer, made from those of `profile`.

    Raises PlanError where a request of `test` is one of `profile`'s.
    """
    with TemporaryDirectory() as folder:
        found, weights = {}, None if shape is None else WEIGHTS
        for name, plan in ways(profile, test, slots, Path(folder), weights).items():
            say(f"{test.manifest.model.id}, {slots} slots: {name}")
            check_evidence(test, plan)
            found[name] = cost(test, plan, shape)
        return found


def cost(
    trace: Trace, plan: Plan, shape: str | None = None, machines: Sequence[str | HardwareProfile] = MACHINES
) -> Found:
    """What each request costs: the tokens of a step share evenly what it does. The plan decides alike on `machines`."""
    sized = None if shape is None else load_shape(shape)
    settings = [
        Setting.of(trace.manifest, plan, load_hardware(name), sized, reshape=None if sized is None else "sizes")
        for name in (machines if sized is not None else ())
    ] or [Setting.of(trace.manifest, plan)]
    spec = settings[0].spec
    switches = Switches(spec.layers, spec.experts)
    done = run(trace, spec, [setting.target for setting in settings], on_switch=switches.add)
    steps = Steps.of(trace)
    rows = np.diff(steps.starts)
    step = np.repeat(np.arange(len(rows)), rows)
    numbers, who = np.unique(trace.request, return_inverse=True)

    def of_each(of_step: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(who.reshape(-1), (of_step / rows)[step], minlength=len(numbers))
        return found

    kinds, decode = done[0].step_kinds, steps.phase == DECODE
    missed = kinds[:, HOST : ADMIT + 1].sum(axis=1)
    copied = kinds[:, LOAD : PREFETCH + 1].sum(axis=1)
    return Found(
        lookups=of_each(decode * kinds[:, : ADMIT + 1].sum(axis=1)),
        misses=of_each(decode * missed),
        copies=of_each(copied),
        tokens=of_each(rows),
        ns=np.stack([of_each(one.step_ns) for one in done if len(one.step_ns)] or [np.zeros(len(numbers))]),
        switched=np.array([switches.found(()).copies]),
    )


def ways(profile: Trace, test: Trace, slots: int, folder: Path, weights: str | None) -> dict[str, Plan]:
    """Plans of the same slots by name."""
    shuffled = np.random.default_rng(0).permutation(profile.manifest.domains).tolist()
    quarter = max(1, round(0.25 * slots))

    def placed(name: str, count: int, **how: object) -> str:
        path = folder / f"{name}-{count}.placement.toml"
        if not path.exists():
            beside = f"{slots - count}/layer" if count < slots else None
            by = "popularity" if beside is None else "marginal"
            save_placement(place(profile, f"{count}/layer", by=by, beside=beside, **how), path)  # type: ignore[arg-type]
        return str(path)

    def pinned(count: int, name: str, by: Mapping[str, object], **how: object) -> Plan:
        return plan(placement={"pinned": placed(name, count, **how), **by})

    def plan(**more: object) -> Plan:
        return Plan(f"{slots}/layer", weights=weights, **more)  # type: ignore[arg-type]

    label, detect = {"by": "label"}, {"detect": DETECT}
    own = {"labels": profile.manifest.domains}
    found = {
        BASE: plan(),
        "all pinned": pinned(slots, "pooled", {}),
        "all pinned by domain, label": pinned(slots, "domain", label, **own),
        f"all pinned by domain, {DETECT} tokens": pinned(slots, "domain", detect, **own),
    }
    for share, count in (("a quarter", quarter), ("half", round(slots / 2))):
        found |= {
            f"LRU beside {share} pinned": pinned(count, "pooled", {}),
            f"LRU beside {share} pinned by domain, label": pinned(count, "domain", label, **own),
        }
    found |= {
        f"LRU beside a quarter pinned by domain, {DETECT} tokens": pinned(quarter, "domain", detect, **own),
        f"LRU beside a quarter pinned by {CLUSTERS} clusters, {DETECT} tokens": pinned(
            quarter, "clusters", detect, clusters=CLUSTERS
        ),
        "LRU beside a quarter pinned, labels shuffled": pinned(quarter, "shuffled", label, labels=shuffled),
        "LRU, warm by domain": plan(warm=placed("domain", slots, **own), placement=label),
    }
    if test.batching is None:
        found["LRU, each request alone"] = plan(warm="reset")
    return found


def tables(found: Mapping[int, Mapping[str, Found]]) -> str:
    """Of every way and number of slots: hit ratio of decode against LRU in points, tokens (of prompts, too) by time
    against LRU in per cent on each machine, copies a token; then what domains win over one placement for all."""
    timed = range(len(next(iter(found.values()))[BASE].ns))
    parts = [("hit ratio of decode, points against LRU", against(found, _others, hits))]
    parts += [(f"speed on {MACHINES[one]}, per cent against LRU", against(found, _others, _time(one))) for one in timed]
    parts.append(("hit ratio of decode, points against the same without domains", against(found, _pooled, hits)))
    if len(timed) > 1:
        title = f"speed on {MACHINES[1]}, per cent against the same without domains"
        parts.append((title, against(found, _pooled, _time(1))))
    first = next(iter(found.values()))
    rows = [[name, *(per_token(own[name]) for own in found.values())] for name in first]
    parts.append(("copies a token (of them by switching)", rows))
    return "\n\n".join(f"{title}\n\n" + markdown.table(["", *map(str, found)], rows) for title, rows in parts)


def against(
    found: Mapping[int, Mapping[str, Found]],
    pairs: Callable[[Mapping[str, Found]], list[tuple[str, str]]],
    costs: Callable[[Found], np.ndarray],
) -> list[list[str]]:
    """A row for each of the `pairs`, judged together over all numbers of slots."""
    quantity: Quantity = "hit ratio" if costs is hits else "tokens/s"
    family = [
        compare(
            (name, costs(own[name])),
            (other, costs(own[other])),
            quantity,
            lookups=own[name].lookups if costs is hits else None,
        )
        for own in found.values()
        for name, other in pairs(own)
    ]
    cells = np.array([effect(one) for one in judge(family)]).reshape(len(found), -1)
    names = [name for name, _ in pairs(next(iter(found.values())))]
    return [[name, *cells[:, row].tolist()] for row, name in enumerate(names)]


def hits(one: Found) -> np.ndarray:
    """What a hit ratio costs."""
    return one.misses


def _time(machine: int) -> Callable[[Found], np.ndarray]:
    return lambda one: one.ns[machine]


def _others(own: Mapping[str, Found]) -> list[tuple[str, str]]:
    return [(name, BASE) for name in own if name != BASE]


def _pooled(own: Mapping[str, Found]) -> list[tuple[str, str]]:
    """What is placed by domain, and the same placed from all requests together."""
    found = [(name, re.split(r" by |, labels", name)[0]) for name in own]
    return [(name, other) for name, other in found if other not in (name, BASE) and other in own]


def effect(one: Comparison) -> str:
    """An effect with its interval, and `*` where it counts."""
    ends = "" if one.low is None or one.high is None else f" [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    return f"{100 * one.effect:+.1f}{ends}{' *' if one.outcome in ('better', 'worse') else ''}"


def per_token(one: Found) -> str:
    """Copies a token, and those by switching."""
    tokens = float(one.tokens.sum())
    return f"{one.copies.sum() / tokens:.2f} ({one.switched.sum() / tokens:.2f})"


if __name__ == "__main__":
    sys.exit(main())
