"""Routing logs of mbolt, a patch of llama.cpp (`MBOLT_TRACE=route.bin`): little-endian integers of 32 bits.

    "MBLT", version 1, experts per layer
    layer, k, tokens, then the ids of the tokens, k each        for each layer of each micro-batch, in order

Each micro-batch is a forward pass. Nothing tells requests apart: a server's log is one request, whose passes may be a
batch's. What is cut off at the end, where the engine was stopped, is left out with a note. Weights are not recorded.
Source: doramirdor/mbolt, patches/llama.cpp-mbolt-trace.patch and src/mbolt/trace.py.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.microbatches import Groups, tokens_of
from tracekit.importers.passes import phases_of
from tracekit.importers.sequences import Sequence, assemble
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K
from tracekit.opening import read_file
from tracekit.shards import installed_memory

_MAGIC = b"MBLT"
_INFLATION = 4
_NO_PHASES = "phases are inferred from how many tokens passes have; requests are not told apart"


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a routing log, see the module's text; ImportFormatError when it is none."""
    size = source.stat().st_size
    if size * _INFLATION > installed_memory():
        raise ImportFormatError(f"{source} has {size >> 20} MiB, too large to import on this machine: split it")
    data = read_file(source, installed_memory() // _INFLATION)
    if not data.startswith(_MAGIC):
        raise ImportFormatError(f"{source} is not a log of mbolt: it does not begin with MBLT")
    words = np.frombuffer(data[: len(data) // 4 * 4], "<i4")
    if len(words) < 3 or words[1] != 1 or not 0 <= words[2] <= MAX_EXPERTS:
        raise ImportFormatError(f"{source} is of version {words[1:2].tolist()}, this importer reads 1")
    groups, top_k = _groups(source, words)
    layers = sorted(set(groups.layers))
    whole = len(groups) // max(1, len(layers)) * len(layers)
    groups.cut(whole)
    lost = len(data) != 4 * (3 + 3 * whole + int(groups.sizes.sum()))
    if not whole:
        raise ImportFormatError(f"{source} holds no whole micro-batch")
    experts, step = tokens_of(source, "the log", groups, layers, top_k)
    sequence = Sequence("the log", experts, steps=step, phase=phases_of(step, experts, alone=False))
    notes = [_NO_PHASES, *(["what was cut off at the end was left out"] if lost else [])]
    stated = int(words[2]) or None
    return assemble(source, "mbolt", [sequence], options, moe_layers=layers, stated=stated, notes=notes)


def _groups(source: Path, words: NDArray[np.int32]) -> tuple[Groups, int]:
    """The whole records, and how many experts a token has."""
    groups = Groups(words)
    top_k = 0
    at = 3
    while at + 3 <= len(words):
        layer, k, tokens = words[at : at + 3].tolist()
        top_k = top_k or k
        if not (0 <= layer < MAX_LAYERS and 1 <= k <= MAX_TOP_K and k == top_k and tokens >= 1):
            raise ImportFormatError(
                f"{source}: the record at byte {4 * at} has layer {layer}, top-{k}, {tokens} tokens: damaged"
            )
        at += 3
        if at + tokens * k > len(words):
            break
        groups.add(layer, at, at + tokens * k)
        at += tokens * k
    return groups, top_k
