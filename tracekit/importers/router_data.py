"""Router data of gpt-oss as its published expert activations hold it: JSON, a text each.

    {"original_prompt": ..., "router_data": [{"token_178": {"layer_0": {"selected_experts": [31, 21, 22, 6],
                                                                        "selected_probs": [0.48, ...]}, ...}}, ...]}

One such object, a list of them, or one per line; each is a request, and each entry of `router_data` a forward pass,
whose tokens are at the positions that their names say. The published files hold generated tokens only, from the end of
the prompt on. Other fields, `full_scores` among them, are named in a note. Source:
AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, data/ and cleaner.py (the files of the data set itself are pickles, and
refused: load and save them as JSON where they are trusted).
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.fields import Unread
from tracekit.importers.lines import Lines
from tracekit.importers.passes import find_passes
from tracekit.importers.responses import Document, Documents
from tracekit.importers.sequences import assemble

_TOKEN = re.compile(r"token_([0-9]{1,9})")
_READ = ("selected_experts", "selected_probs")
_LAYER = re.compile(r"layer_([0-9]{1,4})")


def read(source: Path, options: ImportOptions) -> Imported:
    """Read router data, see the module's text; ImportFormatError when it is none."""
    documents = Documents(source, ("router_data",))
    lines, step = Lines(source), []
    passes, unread = 0, Unread()
    for number, (name, document) in enumerate(documents):
        unread.names.update(dict.fromkeys(str(key)[:40] for key in document if key != "router_data"))
        entries = document["router_data"]
        if not isinstance(entries, msgspec.Raw):
            raise ImportFormatError(f"{source}: {name}: router_data is not a list of forward passes")
        for entry in msgspec.json.decode(entries, type=list[msgspec.Raw]):
            try:
                value = msgspec.json.decode(entry)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ImportFormatError(f"{source}: {name} is not JSON: {error}") from None
            rows = _pass(lines, f"{source}: {name}", number, value, unread)
            step += [passes] * rows
            passes += 1
    if not lines.line:
        raise ImportFormatError(f"{source} holds no routing")
    request, layer, token, line = (np.array(part) for part in (lines.request, lines.layer, lines.token, lines.line))
    unknown = np.full(len(line), -1, np.int8)
    found = find_passes(request, layer, token, line, np.array(step), unknown)
    names = documents.names
    sequences, layers = lines.sequences(names, None, found, unknown, alone=True)
    notes = [*documents.notes, *unread.notes()]
    return assemble(source, "router-data", sequences, options, moe_layers=layers, notes=notes)


def _pass(lines: Lines, where: str, number: int, entry: Any, unread: Unread) -> int:
    """Add the tokens of one forward pass; how many choices there were."""
    if not isinstance(entry, dict):
        raise ImportFormatError(f"{where}: an entry of router_data is not an object of tokens")
    rows = 0
    for token_name, layers in entry.items():
        token = _TOKEN.fullmatch(str(token_name))
        if token is None or not isinstance(layers, dict):
            raise ImportFormatError(f"{where}: {str(token_name)[:40]!r} is not a token of layers")
        for layer_name, choice in layers.items():
            layer = _LAYER.fullmatch(str(layer_name))
            if layer is None or not isinstance(choice, dict):
                raise ImportFormatError(f"{where}, {token_name}: {str(layer_name)[:40]!r} is not a layer's choice")
            unread.names.update(dict.fromkeys(str(key)[:40] for key in choice if key not in _READ))
            ids, weights = _choice(f"{where}, {token_name}, {layer_name}", choice)
            lines.add(len(lines.line) + 1, number, int(token[1]), int(layer[1]), ids, weights)
            rows += 1
    return rows


def _choice(where: str, choice: Document) -> tuple[list[int], list[float] | None]:
    ids, weights = choice.get("selected_experts"), choice.get("selected_probs")
    if not isinstance(ids, list) or any(type(expert) is not int for expert in ids):
        raise ImportFormatError(f"{where}: selected_experts is not a list of expert ids")
    if weights is None:
        return ids, None
    if not isinstance(weights, list) or any(type(weight) not in (int, float) for weight in weights):
        raise ImportFormatError(f"{where}: selected_probs is not a list of numbers")
    return ids, [float(weight) for weight in weights]
