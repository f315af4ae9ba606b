"""What weight formats cost in quality, on the held-out text of the reference models.

    python -m experiments.research.quality --output DIR [--every N] [--formats hqq-4bit,...] [MODEL ...]

measures each model (`tracekit quality`), as a killed run goes on with it, and prints the table of docs/quality.md. The
text, written to DIR/held-out.jsonl, is every document of the standard library that the models were not trained on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.plan.plan import Plan
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import documents
from experiments.quality.measure import measure
from experiments.quality.measurement import Measurement, loss_text
from experiments.quality.text import read_documents
from experiments.quality.work import Options
from experiments.research import markdown
from experiments.research.texts import prompt_of, write_prompts
from tracekit.errors import TracekitError
from tracekit.progress import meter

FORMATS = ("fp32", "hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit-g16", "hqq-2bit-g16-m112", "hqq-2bit-g64")


def held_out(path: Path, every: int = 1) -> None:
    """Write the held-out documents, or every so many of them, as JSON lines."""
    write_prompts(map(prompt_of, documents("held-out")[::every]), path)


def table(found: Sequence[Measurement]) -> str:
    """A row for each format of each model."""
    columns = ["model", "experts", "bits/parameter", "bits/byte", "perplexity", "loss", "greedy tokens agree", "KL"]
    rows = []
    for one in found:
        plain = one.unaltered
        figures = [f"{plain.bits_per_byte:.4f}", f"{plain.perplexity:.3f}"]
        rows.append([one.model.name, "as stored", "", *figures, "", "", ""])
        rows += [
            [
                one.model.name,
                plan.weights.experts or "",
                f"{plan.bits_per_parameter:.2f}",
                f"{plan.bits_per_byte:.4f}",
                f"{plan.perplexity:.3f}",
                loss_text(plan.loss),
                f"{100 * plan.agreement.value:.2f} %",
                f"{plan.kl_divergence.value:.5f}",
            ]
            for plan in one.plans
        ]
    return markdown.table(columns, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[CHECKPOINTS / name for name in NAMES])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--every", type=int, default=1, help="every so many of the documents")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = []
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        held_out(options.output / "held-out.jsonl", options.every)
        texts, repeated = read_documents([options.output / "held-out.jsonl"])
        plans = {word: Plan("auto", weights=word) for word in options.formats.split(",")}
        for model in options.models:
            with meter(f"reading with {model.name}") as progress:
                asked = Options(dtype="float32", device="cpu")
                folder = options.output / model.name
                found.append(measure(model, texts, plans, folder, asked, counted_once=repeated, progress=progress))
    except TracekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    print(f"\n{found[0].text.documents:,} documents, {found[0].text.tokens:,} tokens, {found[0].text.bytes:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
