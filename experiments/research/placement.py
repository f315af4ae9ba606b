"""Is a slot better pinned, or moving? Placements and splits made from some requests, judged on others.

`python -m experiments.research.placement FOLDER` routes held-out text by the reference models, in FOLDER (or finds the
traces there), makes placements and curves from the first half of the requests and replays the second half, all plans
at the same slots in all. It prints the tables of docs/experiments.md. Text is given, not generated: each of its tokens
but the first ones is a decode step, as if the model had written it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engine.decisions.evidence import digests_of
from engine.decisions.placing import place
from engine.plan.placement import Ways, save_placement
from experiments.demo.reference_models import CHECKPOINTS
from experiments.demo.stdlib_text import prompts
from experiments.research import markdown
from experiments.statistics.comparison import Comparison, compare, judge
from experiments.study import study
from experiments.study.grid import plan_name
from experiments.study.study_file import study_from_dict
from tracekit.edit import Selection, slice_trace
from tracekit.errors import TracekitError
from tracekit.requests import known_requests
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

REQUESTS, PROMPT = 300, 16
"""Texts of about 40 to 120 tokens, of three domains in turn; so many tokens of each are its prompt."""
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
        for model, sizes in SLOTS.items():
            profile, test = halves(model, folder)
            print(f"\n{model}, {test.manifest.requests} requests, {test.tokens} tokens\n", flush=True)
            found = {slots: contest(profile, test, slots) for slots in sizes}
            for slots, (ratio, _) in found.items():
                print(f"- {slots} slots of {test.num_experts} in each of {test.layers} layers: LRU hits {ratio:.2%}")
            print("\n" + table(judge([one for _, family in found.values() for one in family])), flush=True)
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def halves(model: str, folder: Path) -> tuple[Trace, Trace]:
    """The requests that placements are made from, and those that judge them, of which none is known from there."""
    whole = folder / f"{model}.trace"
    if not whole.exists():
        one_token_a_step(routed(model, folder), whole)
    first = _part(whole, folder / f"{model}-first.trace", range(REQUESTS // 2))
    known = known_requests(Trace.open(whole), digests_of(first))
    others = [number for number in range(REQUESTS) if number not in known]
    return first, _part(whole, folder / f"{model}-others.trace", others)


def _part(whole: Path, path: Path, requests: Sequence[int]) -> Trace:
    if not path.exists():
        slice_trace(Trace.open(whole), Selection(requests=",".join(map(str, requests))), path)
    return Trace.open(path)


def routed(model: str, folder: Path) -> Trace:
    """How the model routes the texts, each read at once."""
    from tracekit.recorder.models import load_model
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import read_prompts
    from tracekit.recorder.recorder import record

    path = folder / f"{model}-read.trace"
    if not path.exists():
        file = folder / "texts.jsonl"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts(REQUESTS)))
        loaded, tokenizer = load_model(CHECKPOINTS / model, "float32", "cpu")
        record(loaded, tokenizer, read_prompts(file), path, RecordOptions(score=True))
    return Trace.open(path)


def one_token_a_step(read: Trace, path: Path) -> Trace:
    """The same tokens, of which each one behind its request's prompt is a step of its own."""
    prompt = read.position < PROMPT
    step = np.cumsum(~prompt | (read.position == 0)) - 1
    manifest = read.manifest.without_rows([*read.manifest.notes, f"tokens from {PROMPT} on were made decode steps"])
    with TraceWriter(path, manifest) as writer:
        writer.append(
            step=step,
            request=read.request,
            position=read.position,
            phase=np.where(prompt, PREFILL, DECODE),
            token_id=read.token_id,
            experts=read.experts,
            weights=read.weights,
        )
    return Trace.open(path)


def contest(profile: Trace, test: Trace, slots: int) -> tuple[float, list[Comparison]]:
    """LRU's hit ratio of decode, and every other way to use so many slots a layer against it, paired by request."""
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
    return 1 - float(ours.sum() / lookups.sum()), [
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
