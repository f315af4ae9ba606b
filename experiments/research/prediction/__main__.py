"""Compare fitted predictors with what needs no fitting, on requests that neither fitted nor tuned them.

`python -m experiments.research.prediction FOLDER [--phone ROUTE.csv]` records (or finds) the traces in FOLDER,
fits what is not there yet, and prints the tables of docs/experiments.md. Everything is deterministic but the time a
prediction takes here.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

from experiments.research import markdown
from experiments.research.prediction.plan_times import Keys, Measured, foreseen, measure
from experiments.research.prediction.recordings import (
    SETTINGS,
    Parts,
    Setting,
    artefact_of,
    card_of,
    domain_of,
    parts_of,
)
from experiments.statistics.comparison import compare, judge
from experiments.statistics.ranking import in_words, rank_plans
from tracekit.edit import Selection, slice_trace
from tracekit.errors import TracekitError
from tracekit.trace import Trace

FITTED = ("routing", "token-popularity", "linear", "mlp", "recurrent")
UNFITTED = ("previous-token", "popular", "markov", "gate", "oracle")
SEEDS = (0, 1, 2)
BLOCK = 8
"""Decode steps that are one unit where there is but one request."""


def main() -> int:
    """Print the study; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.prediction", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where traces and predictors are, or are to be")
    parser.add_argument("--phone", type=Path, help="route.csv of the Qwen3-30B-A3B phone trace (bigmoe-csv)")
    parser.add_argument("--models", nargs="*", default=[s.model for s in SETTINGS], help="which reference models")
    given = parser.parse_args()
    try:
        given.folder.mkdir(parents=True, exist_ok=True)
        for setting in SETTINGS:
            if setting.model in given.models:
                study(setting, given.folder)
        if given.phone is not None:
            phone(given.phone, given.folder)
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def study(setting: Setting, folder: Path) -> None:
    """One reference model."""
    parts = parts_of(setting, folder)
    print(f"\n## {setting.model} at {setting.shape}'s shape, {setting.capacity}")
    print(f"test: {parts.test.manifest.requests} requests, {parts.test.tokens} tokens\n")
    predictors: dict[str, Keys] = {name: {"predictor": name} for name in UNFITTED}
    for name in FITTED:
        predictors[name] = {"predictor": "learned", "artefact": str(artefact_of(setting, parts, folder, name))}
    alone(setting, parts, predictors)
    seeds_and_domains(setting, parts, folder)
    combined(setting, parts, predictors, str(artefact_of(setting, parts, folder, "reuse-distance")))


def alone(setting: Setting, parts: Parts, predictors: dict[str, Keys]) -> None:
    """Every predictor under LRU: recall, hits, tokens per second with its own cost."""
    k = parts.test.top_k
    counts = (1, k, k + 1, 2 * k)
    columns = ["", *(f"recall at {m}" for m in counts), f"precision at {k}", "decode hits", "tokens/s", "if free"]
    found: dict[str, Measured] = {}
    rows = []
    for name, table in predictors.items():
        seen = [foreseen(parts.test, table, m) for m in counts]
        found[name] = measure(parts.test, setting, {}, {**table, "count": k})
        free = measure(parts.test, setting, {}, {**table, "count": k}, free=True) if name in FITTED else found[name]
        shares = [*(recall for recall, _ in seen), seen[1][1], found[name].hit_ratio, found[name].rate, free.rate]
        rows.append([name, *(f"{share:.3f}" for share in shares)])
    none = measure(parts.test, setting, {}, {})
    shown = [f"{share:.3f}" for share in (none.hit_ratio, none.rate, none.rate)]
    print(markdown.table(columns, [*rows, ["none", *["-"] * (len(counts) + 1), *shown]]))
    again = measure(parts.test, setting, {}, {**predictors["gate"], "count": k})
    same = np.array_equal(again.by_request, found["gate"].by_request)
    print(f"sentinel (gate once more): {'identical' if same else 'DIFFERENT'}")
    costs = {name: one.by_request.astype(np.float64) for name, one in found.items() if name != "oracle"}
    places, _ = rank_plans(costs | {"none": none.by_request.astype(np.float64)}, "tokens/s")
    print("ranking by tokens/s: " + "; ".join(in_words(places)))


def seeds_and_domains(setting: Setting, parts: Parts, folder: Path) -> None:
    """What a seed changes, a second layer ahead, a domain that was never seen."""
    k = parts.test.top_k

    def recall(path: Path, trace: Trace = parts.test, distance: int = 1) -> float:
        return foreseen(trace, {"predictor": "learned", "artefact": str(path)}, k, distance)[0]

    by_seed = [artefact_of(setting, parts, folder, "mlp", seed=seed) for seed in SEEDS]
    print(f"mlp, seeds {SEEDS}: recall at {k} " + ", ".join(f"{recall(path):.4f}" for path in by_seed))
    ahead = artefact_of(setting, parts, folder, "mlp", distance=2)
    gate = foreseen(parts.test, {"predictor": "gate"}, k, distance=2)[0]
    print(f"two layers ahead: recall at {k} mlp {recall(ahead, distance=2):.3f}, gate {gate:.3f}")
    path = folder / f"{setting.model}-code.trace"
    numbers = [str(n) for n in np.unique(parts.test.request).tolist() if domain_of(n) == "code"]
    code = Trace.open(path) if path.exists() else slice_trace(parts.test, Selection(requests=",".join(numbers)), path)
    unseen = artefact_of(setting, parts, folder, "mlp", without="code")
    gate = foreseen(code, {"predictor": "gate"}, k)[0]
    told = f"mlp {recall(by_seed[0], code):.3f}, fitted without code {recall(unseen, code):.3f}, gate {gate:.3f}"
    print(f"test requests of code alone: recall at {k} {told}")
    for name in (*FITTED, "reuse-distance"):
        card = card_of(artefact_of(setting, parts, folder, name))
        print(
            f"{name}: {card.parameters:,} parameters, {card.operations_per_row:,} operations a row, "
            f"{card.measured_ns_per_visit / 1000:.0f} us a visit when it was fitted; held out: "
            + ", ".join(f"{key} {value:.4f}" for key, value in card.held_out.items() if isinstance(value, float))
        )


def combined(setting: Setting, parts: Parts, predictors: dict[str, Keys], reuse: str) -> None:
    """Plans tuned on the tuning requests, judged on the test requests against LRU with gate prefetching."""
    k = parts.test.top_k
    evictions: dict[str, Keys] = {
        "lru": {},
        "layer-aware": {"policy": "layer-aware"},
        "score": {"policy": "score"},
        "learned": {"policy": "learned", "artefact": reuse, "aging": 0.3},
        "learned, bypass": {"policy": "learned", "artefact": reuse, "aging": 0.3, "bypass": True},
    }
    mlp, gate = predictors["mlp"], predictors["gate"]
    prefetches: dict[str, Keys] = {
        f"gate {k}": {**gate, "count": k},
        "gate 1": {**gate, "count": 1},
        "gate-adaptive": {"predictor": "gate-adaptive", "count": k},
        f"mlp {k}": {**mlp, "count": k},
        f"mlp {k + 1} if 0.2": {**mlp, "count": k + 1, "least": 0.2},
        f"mlp {2 * k} if 0.2": {**mlp, "count": 2 * k, "least": 0.2},
        "mlp adaptive": {**mlp, "predictor": "learned-adaptive", "count": 2 * k, "worth": 0.3},
    }

    def run(trace: Trace, plan: tuple[str, str]) -> Measured:
        return measure(trace, setting, evictions[plan[0]], prefetches[plan[1]])

    tuned = {plan: run(parts.tune, plan).rate for plan in itertools.product(evictions, prefetches)}
    rows = [[name, *(f"{tuned[name, ahead]:.3f}" for ahead in prefetches)] for name in evictions]
    print(f"\ntuning requests, tokens/s:\n\n{markdown.table(['', *prefetches], rows)}")
    base = max((plan for plan in tuned if plan[0] == "lru" and plan[1].startswith("gate ")), key=tuned.__getitem__)
    chosen = {
        max(tuned, key=tuned.__getitem__),
        max((p for p in tuned if p[0] == "lru" and p[1].startswith("mlp")), key=tuned.__getitem__),
        max((p for p in tuned if p[0].startswith("learned")), key=tuned.__getitem__),
        max((p for p in tuned if "gate" in p[1] and not p[0].startswith("learned")), key=tuned.__getitem__),
    }
    rivals = [plan for plan in tuned if plan in chosen and plan != base]
    theirs = run(parts.test, base).by_request.astype(np.float64)
    family = [
        compare(
            (" + ".join(plan), run(parts.test, plan).by_request.astype(np.float64)),
            (" + ".join(base), theirs),
            "tokens/s",
            family=len(rivals),
        )
        for plan in rivals
    ]
    print(f"\ntest requests, against {' + '.join(base)}:")
    for one in judge(family):
        print(f"- {one.verdict} (Holm p {one.corrected:.4f}; better on {one.wins} of {one.requests} requests)")


def phone(route: Path, folder: Path) -> None:
    """One request of 156 tokens without lookahead: nothing is fitted on it, since nothing could be held out."""
    from tracekit.importers import import_trace

    path = folder / "phone.trace"
    trace = Trace.open(path) if path.exists() else import_trace("bigmoe-csv", route, path)
    print("\n## Qwen3-30B-A3B on a phone: one request, so verdicts are of blocks of its steps, not of requests")
    evictions = ("lru", "layer-aware", "score", "lfu-perfect")
    prefetches = ("none", "previous-token", "markov", "history")
    for capacity in ("768", "1536"):  # slots of 48 layers of 128 experts, in one global cache
        setting = Setting("qwen3-30b-a3b", "qwen3-30b-a3b", capacity, "hqq-4bit")
        found = {
            (e, p): measure(trace, setting, {"policy": e}, {"predictor": p, "count": trace.top_k})
            for e, p in itertools.product(evictions, prefetches)
        }
        rows = [[e, *(f"{found[e, p].rate:.3f}" for p in prefetches)] for e in evictions]
        print(f"\n{capacity} slots, tokens/s:\n\n{markdown.table(['', *prefetches], rows)}")
        base = max((plan for plan in found if plan[0] == "lru"), key=lambda plan: found[plan].rate)
        best = max(found, key=lambda plan: found[plan].rate)
        ours, theirs = (blocks(found[plan].by_step) for plan in (best, base))
        (one,) = judge([compare((" + ".join(best), ours), (" + ".join(base), theirs), "tokens/s")])
        words = f"{one.verdict} (p {one.p:.4f}, {one.requests} blocks of {BLOCK} steps"
        print(f"\n- {words}; the best was chosen on the same blocks)")


def blocks(of_step: np.ndarray) -> np.ndarray:
    """Sums over BLOCK steps in a row, the last ones left out if they are fewer."""
    whole = len(of_step) // BLOCK * BLOCK
    sums: np.ndarray = of_step[:whole].reshape(-1, BLOCK).sum(axis=1)
    return sums.astype(np.float64)


if __name__ == "__main__":
    sys.exit(main())
