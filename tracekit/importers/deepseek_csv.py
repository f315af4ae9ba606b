"""Expert activations of DeepSeek models as MoE-Beyond's scripts log them: a CSV file per prompt.

    Layer ID,Batch Number,Token,Activated Expert IDs
    1,0,<token text>,"[8, 26, 56, 57, 60, 43]"

A line per layer, sequence of the batch, and token; `Layer ID` is the model's layer (dense layers have no lines), and
tokens have no numbers: they are in order within a layer and sequence, and their texts must be the same at every layer.
Each file is one forward pass over its whole prompts, so every token is prefill; `--as decode` takes them as generated
one by one, a forward pass each. Tokens are pieces of the vocabulary (as `convert_ids_to_tokens` of transformers says
them), so a tokenizer (`--tokenizer`) gives their ids back. A folder of such files is read in the order of the numbers
in their names (prompt_2_data.csv before prompt_10_data.csv), each a request.

Source: ngavhane/moe-beyond, expert_activation_scripts/generate_deepseek_logs_eamc.py and training_data_eamc/.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.defects import refuse_ragged
from tracekit.importers.lines import Lines
from tracekit.importers.saved import read_text
from tracekit.importers.sequences import Sequence, assemble
from tracekit.importers.vocabulary import Vocabulary
from tracekit.shards import installed_memory

_HEADER = ("layer id", "batch number", "token", "activated expert ids")
_LIST = re.compile(r"\[\s*[0-9]{1,6}(?:\s*,\s*[0-9]{1,6})*\s*\]")
_CSV = re.compile(r"\.csv(\.gz|\.zst)?$")
_NUMBERS = re.compile(r"[0-9]{1,6}")
_INFLATION = 8
_WHOLE = "whole prompts in one forward pass each: there are no generated tokens; --as decode takes each as generated"


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a prompt's file, or a folder of them; ImportFormatError when they are none."""
    files = _files(source) if source.is_dir() else [source]
    size = sum(file.stat().st_size for file in files)
    if size * _INFLATION > installed_memory():
        raise ImportFormatError(f"{source} has {size >> 20} MiB, too large to import on this machine: split it")
    sequences: list[Sequence] = []
    layers: list[int] | None = None
    vocabulary = None if options.tokenizer is None else Vocabulary(options.tokenizer)
    generated = options.rows_as == "decode"
    for file in files:
        found, its_layers = _prompt(file, vocabulary, generated)
        layers = layers or its_layers
        if its_layers != layers:
            raise ImportFormatError(f"{file} has layers {its_layers[0]} to {its_layers[-1]}, other files have others")
        sequences += found
    notes = ["rows taken as generated one by one, as --as asks: they were one forward pass"] if generated else [_WHOLE]
    if vocabulary is not None and vocabulary.unknown:
        notes.append(f"{vocabulary.unknown} tokens have no id in {options.tokenizer}: are they of another tokenizer?")
    return assemble(source, "deepseek-csv", sequences, options, moe_layers=layers, notes=notes)


def is_header(line: str) -> bool:
    """Whether a log begins with this line."""
    return tuple(field.strip().lower() for field in line.split(",")) == _HEADER


def is_log(path: Path) -> bool:
    """Whether a folder's entry is read."""
    return _CSV.search(path.name) is not None and path.is_file()


def _files(folder: Path) -> list[Path]:
    found = [entry for entry in folder.iterdir() if is_log(entry)]
    if not found:
        raise ImportFormatError(f"{folder} holds no .csv files")
    return sorted(found, key=lambda path: ([int(number) for number in _NUMBERS.findall(path.name)], path.name))


def _prompt(source: Path, vocabulary: Vocabulary | None, generated: bool) -> tuple[list[Sequence], list[int]]:
    """The sequences of one file, and its layers."""
    table = Lines(source)
    counts: dict[tuple[int, int], int] = {}  # tokens so far, by sequence and layer
    texts: dict[tuple[int, int], bytes] = {}  # digest of the token there
    ids: dict[bytes, int] = {}  # of tokens by their digests
    batches: dict[int, int] = {}
    for line, fields in _rows(source):
        if len(fields) != 4:
            raise ImportFormatError(f"{source}, line {line}: {len(fields)} fields, expected 4 (truncated?)")
        if not re.fullmatch(r"[0-9]{1,4}", fields[0]) or not re.fullmatch(r"[0-9]{1,6}", fields[1]):
            raise ImportFormatError(f"{source}, line {line}: layer {fields[0][:20]!r} of batch {fields[1][:20]!r}")
        if not _LIST.fullmatch(fields[3].strip()):
            raise ImportFormatError(f"{source}, line {line}: {fields[3][:40]!r} is not a list of expert ids")
        layer, batch = int(fields[0]), batches.setdefault(int(fields[1]), len(batches))
        token = counts.get((batch, layer), 0)
        counts[batch, layer] = token + 1
        text = hashlib.blake2b(fields[2].encode("utf-8", "replace"), digest_size=8).digest()
        if texts.setdefault((batch, token), text) != text:
            raise ImportFormatError(
                f"{source}, line {line}: token {token} of layer {layer} is not the token of the layers before: "
                "rows were dropped or are out of order; record again"
            )
        if vocabulary is not None and text not in ids:
            ids[text] = vocabulary.id_of(fields[2])
        experts = [int(number) for number in _NUMBERS.findall(fields[3])]
        table.add(line, batch, token, layer, experts, None, ids.get(text, -1))
    if not table.line:
        raise ImportFormatError(f"{source} holds no activations")
    seen = sorted({layer for _, layer in counts})
    for batch in batches.values():
        refuse_ragged(source, {layer: counts.get((batch, layer), 0) for layer in seen})
    names = [f"{source.name}, batch {batch}" for batch in batches]
    sequences, layers = table.sequences(names, np.full(len(names), np.iinfo(np.int32).max))
    joined = [
        Sequence(
            part.name,
            part.experts,
            0 if generated else len(part.experts),
            token_id=part.token_id,
            joins=number > 0 and not generated,
        )
        for number, part in enumerate(sequences)
    ]
    return joined, layers


def _rows(source: Path) -> Iterator[tuple[int, list[str]]]:
    text = io.TextIOWrapper(io.BytesIO(read_text(source, _INFLATION)), "utf-8", "replace", newline="")
    reader = csv.reader(text)
    try:
        header = [field.strip().lower() for field in next(reader, [])]
        if tuple(header) != _HEADER:
            raise ImportFormatError(
                f"{source} is not an activation log: its first line is {','.join(header)[:60]!r}, not "
                "Layer ID,Batch Number,Token,Activated Expert IDs"
            )
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ImportFormatError(f"{source}, line {reader.line_num}: {error}") from None
