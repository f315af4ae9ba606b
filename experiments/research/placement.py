"""Is a slot better pinned, or moving? Placements and splits made from some requests, judged on others.

`python -m experiments.research.placement FOLDER` records the reference models' requests in FOLDER (or finds them there:
they are those of `experiments.research.prediction`), makes placements and curves from the first half and replays the
second half, all plans at the same slots in all. It prints the table of docs/experiments.md.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engine.decisions.placing import place
from engine.plan.placement import Ways, save_placement
from experiments.research import markdown
from experiments.research.prediction.recordings import REQUESTS, SETTINGS, Setting, record_model
from experiments.statistics.comparison import Comparison, compare, judge
from experiments.study import study
from experiments.study.grid import plan_name
from experiments.study.study_file import study_from_dict
from tracekit.edit import Selection, slice_trace
from tracekit.errors import TracekitError
from tracekit.trace import Trace

SLOTS: Mapping[str, Sequence[int]] = {"mixtral-mini": (3, 4, 6), "qwen3-moe-mini": (8, 12, 16)}
"""Slots of each layer, or so many times the layers in all."""
SHARES = (0.25, 0.5)
"""Of the slots that are pinned beside LRU."""
BASE = "LRU"


def main() -> int:
    """Print the tables; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.placement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where traces are, or are to be")
    folder = parser.parse_args().folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for setting in SETTINGS:
            profile, test = halves(setting, folder)
            print(f"\n{setting.model}, {test.manifest.requests} requests, {test.tokens} tokens\n")
            family = [one for slots in SLOTS[setting.model] for one in contest(profile, test, slots)]
            print(table(judge(family)))
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def halves(setting: Setting, folder: Path) -> tuple[Trace, Trace]:
    """The requests that placements are made from, and those that judge them."""
    whole = folder / f"{setting.model}.trace"
    if not (whole / "manifest.json").exists() or not Trace.open(whole).manifest.complete:
        record_model(setting, folder, whole)
    found = []
    for name, requests in (("first", f"0:{REQUESTS // 2}"), ("second", f"{REQUESTS // 2}:{REQUESTS}")):
        path = folder / f"{setting.model}-{name}-half.trace"
        if not path.exists():
            slice_trace(Trace.open(whole), Selection(requests=requests), path)
        found.append(Trace.open(path))
    return found[0], found[1]


def contest(profile: Trace, test: Trace, slots: int) -> list[Comparison]:
    """Every way to use so many slots a layer against LRU in each layer: hit ratios of decode, paired by request."""
    with TemporaryDirectory() as folder:
        plans = dict(ways(profile, slots, Path(folder)))
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, grid in plans.items():
            given = {"traces": str(test.path.absolute()), "bounds": False, "regret": 0, "grid": grid}
            asked = study_from_dict(given, folder=Path(folder))
            rows = study(asked, Path(folder) / f"study-{len(found)}").results
            row = rows.filter(rows["plan"] == plan_name(asked.plans[0])).row(0, named=True)
            if row["error"] is not None:
                raise TracekitError(f"{name}: {row['error']}")
            found[name] = np.array(row["request_misses"], np.float64), np.array(row["request_lookups"], np.float64)
    ours, lookups = found.pop(BASE)
    return [
        compare((f"{name}, {slots}", misses), (f"{BASE}, {slots}", ours), "hit ratio", lookups=lookups)
        for name, (misses, _) in found.items()
    ]


def ways(profile: Trace, slots: int, folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Grids of one plan each, all of the same slots: name, and the grid."""
    known = str(profile.path.absolute())

    def pinned(count: int, by: Ways) -> str:
        path = folder / f"{by}-{count}.placement.toml"
        beside = f"{slots - count}/layer" if by == "marginal" else None
        save_placement(place(profile, f"{count}/layer", by=by, beside=beside), path)
        return str(path)

    each, curve = {"capacity": f"{slots}/layer"}, {"split": "curve", "split_from": known}
    yield BASE, {**each}
    yield "all pinned by popularity", {**each, "placement": pinned(slots, "popularity")}
    for share in SHARES:
        count = max(1, round(share * slots))
        for by in ("popularity", "marginal", "even"):
            yield f"LRU beside {count} pinned, {by}", {**each, "placement": pinned(count, by)}
    yield "LRU split by curve", {**each, **curve}
    count = max(1, round(SHARES[0] * slots))
    yield (
        f"LRU split by curve beside {count} pinned, marginal",
        {
            **each,
            **curve,
            "placement": pinned(count, "marginal"),
        },
    )


def table(family: Sequence[Comparison]) -> str:
    """A row for each comparison; the effect is in points of the hit ratio."""
    rows = []
    for one in family:
        name, _, slots = one.first.rpartition(", ")
        ends = "" if one.low is None or one.high is None else f"{100 * one.low:+.2f} to {100 * one.high:+.2f}"
        rows.append([name, slots, f"{100 * one.effect:+.2f}", ends, f"{one.corrected:.3f}", one.outcome])
    return markdown.table(["against LRU", "slots a layer", "points", "95 % interval", "Holm p", "outcome"], rows)


if __name__ == "__main__":
    sys.exit(main())
