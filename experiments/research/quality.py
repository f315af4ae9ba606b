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

import msgspec
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from engine.plan.plan import WeightsPlan
from engine.runtime.storage.rounding import rounded
from engine.runtime.storage.slab_layout import layout_of
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import documents
from experiments.research import markdown
from experiments.research.reference_model.evaluate import nats_of, text_windows
from experiments.research.reference_model.tokenizer import CONTEXT, END_OF_TEXT_ID, load_tokenizer, token_streams
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
    model, tokenizer = load_model(checkpoint, "bfloat16" if word == "bf16" else "float32", "cpu")
    model.set_experts_implementation("eager")
    loaded: nn.Module = rounded(model, WeightsPlan(experts=word))
    layer = moe_layers(loaded)[0]
    size = layout_of(layer.experts, word).bytes
    loaded = loaded.float()
    rows, sizes = held_out(tokenizer, windows)
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = torch.from_numpy(rows[start : start + BATCH])
            nats += nats_of(loaded(input_ids=batch[:, :-1], use_cache=False).logits, batch)
            tokens += int((batch[:, 1:] != END_OF_TEXT_ID).sum())
    return Quality(
        model=checkpoint.name,
        format=word,
        expert_bytes=size,
        bits_per_parameter=8 * size / layer.expert_params,
        tokens=tokens,
        bits_per_byte=nats / math.log(2) / sizes,
        perplexity=math.exp(nats / tokens),
    )


def held_out(tokenizer: PreTrainedTokenizerBase, windows: int | None) -> tuple[np.ndarray, int]:
    """Windows [windows, CONTEXT + 1] of the held-out text, and the bytes of text that they predict."""
    streams = token_streams(load_tokenizer(Path(tokenizer.name_or_path)), documents("held-out"))
    cuts = [cut for stream in streams.values() for cut in text_windows(stream)]
    rows = np.stack([cut for cut in cuts if len(cut) == CONTEXT + 1])
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
    columns = ["model", "experts", "bytes each", "bits/parameter", "bits/byte", "perplexity"]
    rows = []
    for checkpoint in options.checkpoints:
        for word in options.formats.split(","):
            try:
                one = quality(checkpoint, word, options.windows)
            except PlanError as error:
                rows.append([checkpoint.name, word, "", "", "", str(error)])
                continue
            except TracekitError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            found.append(one)
            measured = [f"{one.bits_per_parameter:.2f}", f"{one.bits_per_byte:.4f}", f"{one.perplexity:.2f}"]
            rows.append([one.model, one.format, f"{one.expert_bytes:,}", *measured])
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        print(markdown.table(columns, rows))
        if found:
            print(f"\n{found[0].tokens:,} tokens of held-out text each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
