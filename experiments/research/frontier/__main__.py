"""What may a token lose, and how much faster is it then? Formats, precision tiers and altered routing, side by side.

    python -m experiments.research.frontier FOLDER [--models mixtral-mini,qwen3-moe-mini] [--texts 40]

takes held-out text through the reference models under each plan, in the engine, a token at a time. The routing that a
plan makes is timed at the sizes of a large model on modelled machines; its loss is of the same pass. What is in FOLDER
is not made again. Prints the tables of docs/frontier.md and leaves FOLDER/frontier.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from experiments.demo.reference_models import CHECKPOINTS
from experiments.demo.stdlib_text import DOMAINS, by_domain, documents
from experiments.research.frontier.judged import judge_all
from experiments.research.frontier.page import Setting, picture, tables
from experiments.research.frontier.ways import SLOTS
from experiments.research.texts import prompt_of
from tracekit.errors import TracekitError
from tracekit.recorder.prompts import Prompt

CHARACTERS = 300
"""Of each text: about a hundred tokens."""


def held_out(count: int) -> list[Prompt]:
    """The beginnings of so many held-out documents, of each kind in turn."""
    kinds = by_domain(documents("held-out"))
    found = [kinds[domain][place] for place in range(count) for domain in DOMAINS if place < len(kinds[domain])]
    return [prompt_of(one, CHARACTERS) for one in found[:count]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 for what cannot be done, in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.research.frontier", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where passes are, or are to be")
    parser.add_argument("--models", default=",".join(SLOTS))
    parser.add_argument("--texts", type=int, default=40)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: list[Setting] = []
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        texts = held_out(options.texts)
        for model in options.models.split(","):
            for slots, bound, ways in judge_all(model, CHECKPOINTS / model, texts, options.folder, told):
                found.append(Setting(model, slots, bound, ways))
        (options.folder / "frontier.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
        (options.folder / "frontier.png").write_bytes(picture(found))
    except (TracekitError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables(found))
    return 0


def told(text: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
