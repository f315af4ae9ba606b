"""Tables of the contest: admissions by places against copy-all LRU, and the best admission of each place."""

from collections.abc import Mapping, Sequence

from engine.hardware import HardwareProfile
from engine.plan.weights import WeightFormat
from engine.shapes import load_shape
from experiments.research import markdown
from experiments.research.domains import Found, against, effect
from experiments.research.hosts.contest import ADMISSIONS, BASE, WEIGHTS, WHERES, hit_ratio, time_on
from experiments.statistics.comparison import compare, judge


def against_base(own: Mapping[str, Found]) -> list[tuple[str, str]]:
    """Every other plan, and copy-all LRU."""
    return [(name, BASE) for name in own if name != BASE]


def matrices(found: Mapping[int, Mapping[str, Found]], machines: Sequence[str]) -> str:
    """Of every machine and number of slots: speed against copy-all LRU, admissions by places."""
    parts = []
    for number, machine in enumerate(machines):
        cells = {name: row for name, *row in against(found, against_base, time_on(number))}
        for column, (slots, own) in enumerate(found.items()):
            rows = [
                [name, *(cells[plan][column] if (plan := f"{where}, {name}") in cells else "0" for where in WHERES)]
                for name in ADMISSIONS
            ]
            hits = f"LRU hits {hit_ratio(own[BASE]):.1%}, admitting one of each layer and step "
            hits += f"{hit_ratio(own['host, 8 a step, even']):.1%}"
            title = f"host {machine}, {slots} slots: speed, per cent against copy-all LRU ({hits})"
            parts.append(f"{title}\n\n" + markdown.table(["admitted", *WHERES], rows))
    return "\n\n".join(parts)


def right(
    found: Mapping[int, Mapping[str, Found]], machines: Mapping[str, HardwareProfile], shape: str, steps: int
) -> str:
    """The best admission of each place, chosen on every other request and judged on the others against admitting all;
    and how many copies a step lasts under the best that leaves misses on the host."""
    model, parts = load_shape(shape), []
    for number, (title, machine) in enumerate(machines.items()):
        copy_ns = machine.copy_ns(model.expert_bytes(WeightFormat.parse(WEIGHTS)))
        rows, lasts = [], []
        for where in WHERES:
            family, names = [], []
            for own in found.values():
                known = {name: own[f"{where}, {name}"].ns[number] for name in ADMISSIONS}
                best = min(known, key=lambda name: float(known[name][::2].sum()))
                names.append(best)
                family.append(compare((best, known[best][1::2]), ("all", known["all"][1::2]), "tokens/s"))
                if where == "host":
                    lasts.append(f"{known[best].sum() / steps / copy_ns:.1f}")
            cells = [f"{name}: {effect(one)}" for name, one in zip(names, judge(family), strict=True)]
            rows.append([where, *cells])
        rows.append(["a step on the host, in copies", *lasts])
        about = f"host {title}: the best admission, and its speed in per cent against admitting all in the same place"
        parts.append(f"{about}\n\n" + markdown.table(["misses", *(f"{slots} slots" for slots in found)], rows))
    return "\n\n".join(parts)
