"""What weight formats cost in quality.

    python -m experiments.research.quality [--windows N] [--formats hqq-4bit,...] [DIR ...]

Bits per byte and perplexity per token of the held-out text of the reference models (or of checkpoints like them), with
experts stored in each format and read again: bit for bit what the offloading engine computes with.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from engine.plan.plan import WeightsPlan
from engine.runtime.storage.rounding import rounded
from engine.runtime.storage.slab_layout import layout_of
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import documents
from experiments.research.reference_model.tokenizer import CONTEXT, END_OF_TEXT_ID, token_streams
from tracekit.errors import PlanError, TracekitError
from tracekit.recorder.models import load_model
from tracekit.recorder.seam import moe_layers

FORMATS = ("bf16", "hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit-g16", "hqq-2bit-g16-m112")
BATCH = 16


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How well a model in one format predicts the held-out text, read in windows of `CONTEXT` tokens."""

    model: str
    format: str
    expert_bytes: int
    bits_per_parameter: float
    tokens: int
    bits_per_byte: float
    perplexity: float


def quality(checkpoint: Path, word: str, windows: int | None = None) -> Quality:
    """Read held-out text with experts stored as `word`; `windows` takes that many, evenly spaced (default all).

    Raises PlanError when the format cannot store the model's matrices.
    """
    loaded: Any
    loaded, tokenizer = load_model(checkpoint, "bfloat16" if word == "bf16" else "float32", "cpu")
    loaded = rounded(loaded, WeightsPlan(experts=word))
    layer = moe_layers(loaded)[0]
    size = layout_of(layer.experts, word).bytes
    loaded = loaded.float()
    loaded.set_experts_implementation("eager")
    rows, sizes = held_out(tokenizer, windows)
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = torch.from_numpy(rows[start : start + BATCH])
            targets = batch[:, 1:].flatten()
            logits = loaded(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1)
            nats += cross_entropy(logits, targets, ignore_index=END_OF_TEXT_ID, reduction="sum").item()
            tokens += int((targets != END_OF_TEXT_ID).sum())
    return Quality(
        model=checkpoint.name,
        format=word,
        expert_bytes=size,
        bits_per_parameter=8 * size / layer.expert_params,
        tokens=tokens,
        bits_per_byte=nats / math.log(2) / sizes,
        perplexity=math.exp(nats / tokens),
    )


def held_out(tokenizer: Any, windows: int | None) -> tuple[np.ndarray, int]:
    """Windows [windows, CONTEXT + 1] of the held-out text, and the bytes of text that they predict."""
    from experiments.research.reference_model.tokenizer import load_tokenizer

    streams = token_streams(load_tokenizer(Path(tokenizer.name_or_path)), documents("held-out"))
    cut = []
    for stream in streams.values():
        whole = np.concatenate([[END_OF_TEXT_ID], stream]).astype(np.int64)
        cut += [whole[i : i + CONTEXT + 1] for i in range(0, len(whole) - CONTEXT, CONTEXT)]
    rows = np.stack(cut)
    if windows is not None and windows < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, windows).astype(int)]
    texts = tokenizer.batch_decode([[token for token in row[1:] if token != END_OF_TEXT_ID] for row in rows])
    return rows, sum(len(text.encode(errors="replace")) for text in texts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[CHECKPOINTS / name for name in NAMES])
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--windows", type=int, help="windows of text, evenly spaced; default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: list[Quality] = []
    lines = ["| model | experts | bytes each | bits/parameter | bits/byte | perplexity |", "|---|---|--:|--:|--:|--:|"]
    for checkpoint in options.checkpoints:
        for word in options.formats.split(","):
            try:
                one = quality(checkpoint, word, options.windows)
            except PlanError as error:
                lines.append(f"| {checkpoint.name} | {word} | | | | {error} |")
                continue
            except TracekitError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            found.append(one)
            lines.append(
                f"| {one.model} | {one.format} | {one.expert_bytes:,} | {one.bits_per_parameter:.2f} "
                f"| {one.bits_per_byte:.4f} | {one.perplexity:.2f} |"
            )
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        print("\n".join(lines))
        if found:
            print(f"\n{found[0].tokens:,} tokens of held-out text each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
