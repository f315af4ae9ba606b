"""What pruned experts cost in quality, on held-out text of the reference models.

    python -m experiments.research.pruning --output DIR [--texts 51] [--characters 680] [--profile 120] [MODEL ...]

The profile is the routing of text that the models were trained on: beginnings of so many documents, recorded. Quality
is measured on beginnings of documents that they were not trained on (`tracekit quality`), as a killed run goes on with
it. Beside pruning by what tokens gave experts, at one strength: by how often they were chosen, and by lot.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from engine.plan.plan import Plan
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import Split, documents
from experiments.quality.measure import measure
from experiments.quality.measurement import Measurement, loss_text
from experiments.quality.text import read_documents
from experiments.quality.work import Options
from experiments.research import markdown
from experiments.research.texts import prompt_of, write_prompts
from tracekit.errors import TracekitError
from tracekit.popularity import popularity
from tracekit.progress import meter
from tracekit.recorder.models import load_model
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import read_prompts
from tracekit.recorder.recorder import record
from tracekit.trace import Trace

EIGHTHS = "7,6,5,4"
"""Of the experts that are left."""
COMPARED = 6
"""The eighths at which the ways to choose them are compared."""
WINDOW = 512


def beginnings(split: Split, count: int, characters: int, path: Path) -> Path:
    """A file of JSON lines with the beginnings of `count` documents, evenly spread, each named by its document."""
    found = documents(split)
    chosen = found[:: max(1, len(found) // count)][:count]
    return write_prompts((prompt_of(one, characters) for one in chosen), path)


def profiled(model: Path, prompts: Path, path: Path) -> Trace:
    """How the model routes the prompts, each read at once."""
    if not path.exists():
        loaded, tokenizer = load_model(model, "float32", "cpu")
        record(loaded, tokenizer, read_prompts(prompts), path, RecordOptions(score=True))
    return Trace.open(path)


def plans_of(profile: Trace, folder: Path, strengths: Sequence[int]) -> dict[str, Plan]:
    """Pruning by the profile at every strength, and otherwise at one, by what is left and how that was chosen."""
    per_layer = list(profile.manifest.experts_per_layer)
    often = popularity(profile.path, per_layer)
    by_lot = np.random.default_rng(0).permuted(np.tile(np.arange(per_layer[0]), (len(per_layer), 1)), axis=1)
    ways = {"": profile.path, " by counts": folder / "often.json", " by lot": folder / "lot.json"}
    for path, given in ((ways[" by counts"], often), (ways[" by lot"], by_lot)):
        path.write_text(json.dumps({"logical_count": given.tolist()}))
    return {
        f"{(keep := per_layer[0] * eighths // 8)} of {per_layer[0]}{way}": Plan(
            "auto", routing={"policy": "prune", "keep": keep, "profile": str(path)}
        )
        for way, path in ways.items()
        for eighths in (strengths if way == "" else [COMPARED])
    }


def table(found: Mapping[str, Measurement]) -> str:
    """A row for each plan of each model."""
    columns = ["model: experts left", "bits/byte", "perplexity", "loss", "greedy agree", "KL"]
    rows = []
    for model, one in found.items():
        plain = one.unaltered
        rows.append([f"{model}: all", f"{plain.bits_per_byte:.4f}", f"{plain.perplexity:.3f}", "", "", ""])
        rows += [
            [
                f"{model}: {plan.name}",
                f"{plan.bits_per_byte:.4f}",
                f"{plan.perplexity:.3f}",
                loss_text(plan.loss),
                f"{100 * plan.agreement.value:.1f} %",
                f"{plan.kl_divergence.value:.4f}",
            ]
            for plan in one.plans
        ]
    return markdown.table(columns, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[CHECKPOINTS / name for name in NAMES])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=51, help="documents that quality is measured on")
    parser.add_argument("--profile", type=int, default=120, help="documents of the profile")
    parser.add_argument("--characters", type=int, default=680, help="of each document's beginning")
    parser.add_argument("--eighths", default=EIGHTHS, help="of the experts, what is left")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = options.output
    found: dict[str, Measurement] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held_out = beginnings("held-out", options.texts, options.characters, folder / "held-out.jsonl")
        trained = beginnings("train", options.profile, options.characters, folder / "train.jsonl")
        texts, repeated = read_documents([held_out])
        for model in options.models:
            own = folder / model.name
            own.mkdir(exist_ok=True)
            profile = profiled(model, trained, own / "profile.trace")
            asked = Options(dtype="float32", device="cpu", window=WINDOW)
            with meter(f"reading with {model.name}") as progress:
                plans = plans_of(profile, own, [int(part) for part in options.eighths.split(",")])
                found[model.name] = measure(
                    model, texts, plans, own / "quality", asked, counted_once=repeated, progress=progress
                )
            print(f"profile of {model.name}: {profile.tokens:,} tokens", file=sys.stderr)
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    text = next(iter(found.values())).text
    print(f"\n{text.documents:,} documents, {text.tokens:,} tokens, {text.bytes:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
