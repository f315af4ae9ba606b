"""Evaluate checkpoints on the held-out text: python -m experiments.research.reference_model.evaluate [DIR ...]

Writes DIR/evaluation.json for each folder (unless told, the shipped checkpoints) and prints the README's
table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import DOMAINS, Document, Domain, by_domain, digest, documents
from experiments.research import markdown
from experiments.research.reference_model.gate_use import Experts, LayerRouting, describe
from experiments.research.reference_model.ngram import ByteModel
from experiments.research.reference_model.tokenizer import CONTEXT, END_OF_TEXT_ID, load_tokenizer, token_streams

BASELINES = {"byte_unigram": 0, "byte_order_3": 3}


@dataclass(frozen=True, slots=True)
class Reading:
    """A model's reading of one domain: the bits it needed for the text, and its routing window by window."""

    bits: float
    bytes: int
    windows: list[Experts]


def read(checkpoint: Path, text: Sequence[Document], batch: int = 8) -> dict[Domain, Reading]:
    """Run the model (in fp32) over each domain's text in windows of `CONTEXT` tokens, each read from scratch.

    The end-of-text tokens between documents are read but not scored.
    """
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, experts_implementation="grouped_mm", local_files_only=True
    )
    streams = token_streams(load_tokenizer(checkpoint), text)
    readings: dict[Domain, Reading] = {}
    for domain, group in by_domain(text).items():
        bits, windows = 0.0, []
        cuts = text_windows(streams[domain])
        full = [cut for cut in cuts if len(cut) == CONTEXT + 1]
        batches = [full[i : i + batch] for i in range(0, len(full), batch)] + [cuts[len(full) :]]
        for rows in filter(None, batches):
            more_bits, chosen = _read_batch(model, torch.from_numpy(np.stack(rows)))
            bits += more_bits
            windows += chosen
        size = sum(len(document.data) for document in group)
        readings[domain] = Reading(bits, size, windows)
    return readings


def text_windows(stream: npt.NDArray[np.uint16]) -> list[npt.NDArray[np.int64]]:
    """A stream of token ids in windows of `CONTEXT` tokens and the one before them; the last may be shorter."""
    whole = np.concatenate([[END_OF_TEXT_ID], stream]).astype(np.int64)
    return [whole[i : i + CONTEXT + 1] for i in range(0, len(whole) - 1, CONTEXT)]


def nats_of(logits: torch.Tensor, rows: torch.Tensor) -> float:
    """Nats that the tokens of `rows` [windows, tokens + 1] take, the first of each and ends of text left out."""
    targets = rows[:, 1:].flatten()
    return cross_entropy(logits.flatten(0, 1), targets, ignore_index=END_OF_TEXT_ID, reduction="sum").item()


@torch.inference_mode()
def _read_batch(model: PreTrainedModel, rows: torch.Tensor) -> tuple[float, list[Experts]]:
    """Bits that `rows` [windows, tokens + 1] took, and each window's experts [tokens, layers, top_k]."""
    output = model(input_ids=rows[:, :-1], output_router_logits=True, use_cache=False)
    top_k = model.config.num_experts_per_tok
    experts = torch.stack([logits.topk(top_k).indices for logits in output.router_logits], dim=1)
    return nats_of(output.logits, rows) / math.log(2), list(experts.reshape(len(rows), -1, *experts.shape[1:]).numpy())


class Evaluation(TypedDict):
    """What evaluation.json holds."""

    held_out_sha256: str
    held_out_bytes: int
    held_out_tokens: int
    bits_per_byte: dict[str, dict[str, float]]
    routing: dict[str, object]


def evaluate(checkpoint: Path) -> Evaluation:
    """Bits per held-out byte of the model and the baselines, and each layer's routing, ready for JSON."""
    held_out, train = documents("held-out"), documents("train")
    readings = read(checkpoint, held_out)
    bits_per_byte = {"model": _per_domain({d: r.bits for d, r in readings.items()}, readings)}
    seen = [document.data for document in train]
    for name, order in BASELINES.items():
        baseline = ByteModel.fit(seen, order)
        bits_per_byte[name] = _per_domain(
            {domain: baseline.bits([d.data for d in group]) for domain, group in by_domain(held_out).items()},
            readings,
        )
    experts = json.loads((checkpoint / "config.json").read_text())["num_local_experts"]
    layers = describe({domain: reading.windows for domain, reading in readings.items()}, experts)
    return {
        "held_out_sha256": digest(held_out),
        "held_out_bytes": sum(reading.bytes for reading in readings.values()),
        "held_out_tokens": sum(len(window) for reading in readings.values() for window in reading.windows),
        "bits_per_byte": bits_per_byte,
        "routing": {"mean": _mean(layers), "layers": [asdict(layer) for layer in layers]},
    }


def _per_domain(bits: dict[Domain, float], readings: dict[Domain, Reading]) -> dict[str, float]:
    """Bits per byte of each domain and of all text together."""
    result: dict[str, float] = {domain: bits[domain] / readings[domain].bytes for domain in DOMAINS}
    result["all"] = sum(bits.values()) / sum(reading.bytes for reading in readings.values())
    return result


def _mean(layers: Sequence[LayerRouting]) -> dict[str, float]:
    rows = [asdict(layer) for layer in layers]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def table(checkpoints: Path = CHECKPOINTS) -> str:
    """The README's table, from the training.json and evaluation.json of each shipped checkpoint."""
    columns = []
    for name in NAMES:
        training = json.loads((checkpoints / name / "training.json").read_text())
        result = json.loads((checkpoints / name / "evaluation.json").read_text())
        size = sum(file.stat().st_size for file in (checkpoints / name).iterdir())
        bits, routing = result["bits_per_byte"], result["routing"]
        layers = routing["layers"]
        column = {
            "trained tokens": f"{training['tokens']:,}",
            "training time on one thread": f"{training['seconds'] / 60:.0f} min",
            "size of the folder": f"{size / 1e6:.2f} MB",
        }
        column |= {f"bits/byte, {domain}": f"{bits['model'][domain]:.3f}" for domain in (*DOMAINS, "all")}
        column |= {
            "... order-3 byte context, all": f"{bits['byte_order_3']['all']:.3f}",
            "... byte unigram, all": f"{bits['byte_unigram']['all']:.3f}",
            "load entropy / log experts, mean": f"{routing['mean']['load_entropy']:.3f}",
            "... smallest of any layer": f"{min(layer['load_entropy'] for layer in layers):.3f}",
            "largest / mean load, mean": f"{routing['mean']['max_over_mean_load']:.2f}",
            "... largest of any layer": f"{max(layer['max_over_mean_load'] for layer in layers):.2f}",
            "unused experts, all layers": f"{sum(layer['unused_experts'] for layer in layers)}",
            "next-token expert overlap, mean": f"{routing['mean']['overlap']:.3f}",
            "... tokens shuffled": f"{routing['mean']['chance_overlap']:.3f}",
            "load distance between domains, mean": f"{routing['mean']['domain_distance']:.3f}",
        }
        columns.append(column)
    return markdown.table(["", *NAMES], [[row, *(column[row] for column in columns)] for row in columns[0]])


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[CHECKPOINTS / name for name in NAMES])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for checkpoint in options.checkpoints:
        result = evaluate(checkpoint)
        (checkpoint / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"{checkpoint}: {result['bits_per_byte']['model']['all']:.3f} bits/byte", file=sys.stderr)
    if all((CHECKPOINTS / name / "evaluation.json").exists() for name in NAMES):
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
