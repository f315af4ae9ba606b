"""Three published claims on misses and slots, asked of the reference models and of drawn routing.

- 18.4 to 24.2 tokens/s (+31 %) by a cache of 48 slots a layer into which each layer takes two experts a step, all else
  computed on the host: https://github.com/ggml-org/llama.cpp/pull/27861.
- A cache below three times top-k slots a layer is slower than none: https://github.com/kekzl/imp/pull/1375. Its slots
  hold one of an expert's three matrices, so that is a cache of fewer experts than one token chooses.
- The memory of one whole layer is worth more as some 27 slots on every layer:
  https://github.com/kekzl/imp/pull/2069, whose slots are matrices as well, on 48 layers of 512 experts.
"""

from collections.abc import Mapping
from pathlib import Path

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from experiments.research import markdown
from experiments.research.domains import Found, cost, effect
from experiments.research.hosts.contest import WEIGHTS, contest, hit_ratio, modelled, sharing, with_host
from experiments.statistics.comparison import Comparison, compare, judge
from tracekit.priors import LEVELS
from tracekit.priors.traces import prior_trace
from tracekit.trace import Trace

BARE_COPY, BARE_HOST = "no cache, copied", "no cache, on the host"
COPIED, EACH, TWO = "copied", "on the host, one of each layer a step", "on the host, two a step"

LAYERS, EXPERTS, TOP_K, SLOTS = 48, 512, 10, 48
RESIDENT = 20
"""Of the first claim: 28 of 48 layers lie on the host."""
INSERTED, SHAPE = "q8_0", "qwen3-next-80b-a3b"
"""So stored, the shape's experts take 3.3 MB, as the source's do by its 4.1 GiB of slots."""
WITHOUT, WITH = 18.4, 24.2
"""Tokens/s without slots and with them, as published."""
REQUESTS, TOKENS = 24, 2400


def few_or_whole(trace: Trace, machines: Mapping[str, HardwareProfile], shape: str, path: Path) -> str:
    """What a cache of few slots is worth against none, and slots on every layer against whole layers."""
    found = contest(trace, plans(trace), machines, shape, path)
    few, whole = [], []
    for slots in sizes(trace):
        hits = f"{slots} ({slots / trace.top_k:g} top-k, {hit_ratio(found[f'{COPIED}, {slots}']):.0%})"
        few.append([f"{hits}: {COPIED}, against copying all", *_cells(found, f"{COPIED}, {slots}", BARE_COPY)])
        for where in (COPIED, EACH, TWO):
            few.append([f"{hits}: {where}", *_cells(found, f"{where}, {slots}", BARE_HOST)])
            for count in wholes(trace, slots):
                name = f"{slots} a layer, or {count} of {trace.layers} whole: {where}"
                whole.append([name, *_cells(found, f"{where}, {slots}", f"{where}, {slots}, {count} whole")])
    return "\n\n".join(
        f"{title}\n\n" + markdown.table(["slots a layer: misses", *machines], rows)
        for title, rows in (
            ("speed of a cache (hits by LRU), per cent against no cache and everything on the host", few),
            ("speed of slots on every layer, per cent against the same memory with whole layers pinned", whole),
        )
    )


def plans(trace: Trace) -> dict[str, Plan]:
    """Caches of every size, with as much of them as whole layers, and none."""
    ways: dict[str, dict[str, object]] = {
        COPIED: {},
        EACH: {"miss": "host", "admission": {"per_step": trace.layers, "per_layer": "even"}},
        TWO: {"miss": "host", "admission": {"per_step": 2}},
    }

    def plan(capacity: str, **more: object) -> Plan:
        return Plan(capacity, weights=WEIGHTS, **more)  # type: ignore[arg-type]

    found = {BARE_COPY: plan("0/layer"), BARE_HOST: plan("0/layer", miss="host")}
    for where, way in ways.items():
        for slots in sizes(trace):
            found[f"{where}, {slots}"] = plan(f"{slots}/layer", **way)
            for count in wholes(trace, slots):
                capacity, pinned = mixed(trace.layers, trace.num_experts, slots, count)
                found[f"{where}, {slots}, {count} whole"] = plan(capacity, placement=pinned, **way)
    return found


def sizes(trace: Trace) -> list[int]:
    """Slots a layer: a half, one, two, three, four, six times top-k, and what one layer takes of all, short of all."""
    one = trace.num_experts // trace.layers
    found = {one, *(trace.top_k * halves // 2 for halves in (1, 2, 4, 6, 8, 12))}
    return sorted(slots for slots in found if 0 < slots < trace.num_experts)


def wholes(trace: Trace, slots: int) -> list[int]:
    """How many layers are pinned whole in the memory of so many slots a layer: one, and as many as it holds."""
    most = slots * trace.layers // trace.num_experts
    return sorted({1, most}) if most else []


def mixed(layers: int, experts: int, slots: int, whole: int) -> tuple[str, str]:
    """`slots` a layer in all, the first `whole` layers pinned, the rest shared evenly: the capacity, what is pinned."""
    few, more = divmod(slots * layers - whole * experts, layers - whole)
    parts = [f"{few}/layer", f"layers 0-{whole - 1}: {experts}"]
    if more:
        parts.append(f"layers {whole}-{whole + more - 1}: {few + 1}")
    return "; ".join(parts), f"layers 0-{whole - 1}"


def _cells(found: Mapping[str, Found], first: str, second: str) -> list[str]:
    """On each machine, judged together."""
    return [effect(one) for one in judge(_compared(found, first, second))]


def _compared(found: Mapping[str, Found], first: str, second: str) -> list[Comparison]:
    one, other = found[first], found[second]
    return [compare((first, mine), (second, theirs), "tokens/s") for mine, theirs in zip(one.ns, other.ns, strict=True)]


def bounded_inserts(folder: Path) -> str:
    """The first claim on routing drawn as of Qwen3-Next, also on hosts fitted to the row without slots."""
    machines = modelled(SHAPE, INSERTED)
    rows = []
    for level in LEVELS:
        path = folder / f"qwen3-next-{level}.trace"
        drawn = {"level": level, "tokens": TOKENS, "requests": REQUESTS}
        trace = Trace.open(path) if path.exists() else prior_trace(path, [EXPERTS] * LAYERS, TOP_K, **drawn)  # type: ignore[arg-type]
        alone = fitted(trace)
        host = {"fitted": with_host(SHAPE, alone, INSERTED)}
        host["fitted, memory shared"] = sharing(host["fitted"])
        found = contest(trace, inserted(), machines | host, SHAPE, folder / f"qwen3-next-{level}")
        for name in list(found)[1:]:
            own, judged = found[name], judge(_compared(found, name, BARE_HOST))
            fit = [
                f"{effect(one)}: {trace.tokens * 1e9 / own.ns[at].sum():.1f}"
                for at, one in enumerate(judged)
                if at >= len(machines)
            ]
            outside = hit_ratio(own) * LAYERS - RESIDENT
            hits = f"{outside / (LAYERS - RESIDENT):.0%}"
            rows.append([f"{level}, {name} ({hits})", *(effect(one) for one in judged[: len(machines)]), *fit])
    title = (
        f"{SLOTS} slots on {LAYERS - RESIDENT} of {LAYERS} layers of {EXPERTS} experts, top-{TOP_K}, others resident "
        f"(hits of the {LAYERS - RESIDENT}): decode, per cent against no slots; on hosts fitted to {WITHOUT} tokens/s "
        f"without slots (an expert takes {alone:.2f} copies) also tokens/s, published {WITH}"
    )
    return f"{title}\n\n" + markdown.table(["drawn locality, admitted", *machines, *host], rows)


def fitted(trace: Trace) -> float:
    """Copies that an expert takes on the host where `WITHOUT` tokens/s is what no slots give."""
    plan = inserted()[BARE_HOST]
    low, high = 0.05, 20.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        ns = cost(trace, plan, SHAPE, [with_host(SHAPE, middle, INSERTED)]).ns.sum()
        low, high = (low, middle) if trace.tokens * 1e9 / ns < WITHOUT else (middle, high)
    return low


def inserted() -> dict[str, Plan]:
    """No slots, then so many with one, two, four or all misses of each layer and step admitted."""
    pinned = f"layers 0-{RESIDENT - 1}"

    def plan(count: int, admission: str | dict[str, object]) -> Plan:
        capacity = f"{count}/layer; {pinned}: {EXPERTS}"
        return Plan(capacity, weights=INSERTED, miss="host", admission=admission, placement=pinned)

    found = {BARE_HOST: plan(0, "always")}
    for each in (1, 2, 4):
        found[f"{each} a layer"] = plan(SLOTS, {"per_step": each * LAYERS, "per_layer": "even"})
    return found | {"all": plan(SLOTS, "always")}
