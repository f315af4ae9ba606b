"""Routed experts as vLLM returns them under `--enable-return-routed-experts`.

Responses of /v1/completions or /v1/chat/completions: one JSON object, a list of them, or one per line.

    vLLM 0.21: `prompt_routed_experts` [prompt tokens, layers, k] beside `choices`, and in each choice
    `routed_experts` [generated tokens, layers, k], both nested lists.
    From 0.22 on: in each choice `routed_experts`, base64 of an .npy file [tokens - 1, layers, k]: prompt and generated
    tokens but the last, which is never fed back; the first `routed_experts_prompt_start` of them left out if the
    request asked for that. `usage.prompt_tokens` says where the prompt ends.

Or the arrays of the Python interface: an .npy file of `routed_experts`, or an .npz file of `routed_experts` and, for
0.21, `prompt_routed_experts`; `prompt_tokens` (one integer) may say where the prompt ends.

Ids are of the router, before experts are placed on devices. A layer that is no MoE layer holds zeros, a token whose
keys came from the prefix cache may hold -1: both are left out, with a note. Weights are not returned. The routing of a
preempted request is lost (null): the choice is left out, with a note. Sources: docs/training/routed_experts_replay.md
of vLLM 0.21 and docs/training/routed_experts.md of later versions; vllm-project/router pull request 184.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.arrays import MAGIC, read_npy, read_npz
from tracekit.importers.responses import Document, choices_of, integer, read_documents, routed_array, token_ids
from tracekit.importers.sequences import Sequence, assemble

_ARRAYS = ("routed_experts", "prompt_routed_experts", "prompt_tokens")


def read(source: Path, options: ImportOptions) -> Imported:
    """Read responses or arrays, see the module's text; ImportFormatError when they are neither."""
    with source.open("rb") as file:
        head = file.read(len(MAGIC))
    if head == MAGIC:
        experts = read_npy(source)
        return assemble(source, "vllm", [Sequence("the array", experts)], options, notes=[_NO_PROMPT])
    if head.startswith(b"PK"):
        return _from_npz(source, options)
    return _from_responses(source, options)


_NO_PROMPT = "where the prompt ends is unknown: every token is taken as generated"


def _from_npz(source: Path, options: ImportOptions) -> Imported:
    arrays = read_npz(source, _ARRAYS)
    if "routed_experts" not in arrays:
        raise ImportFormatError(f"{source} has no array 'routed_experts' (it has: {', '.join(sorted(arrays))})")
    parts = [arrays[name] for name in ("prompt_routed_experts", "routed_experts") if name in arrays]
    if len({part.shape[1:] for part in parts}) > 1:
        raise ImportFormatError(f"{source}: prompt_routed_experts and routed_experts differ in layers or slots")
    told = arrays.get("prompt_tokens")
    if told is not None and (told.shape != () or told.dtype.kind not in "iu" or told < 0):
        raise ImportFormatError(f"{source}: prompt_tokens is {told.dtype} {list(told.shape)}, expected one integer")
    prompt = len(parts[0]) if len(parts) > 1 else 0
    prompt = prompt if told is None else int(told)
    notes = [] if prompt or told is not None else [_NO_PROMPT]
    for part in parts:
        if part.ndim != 3 or part.dtype.kind not in "iu":
            raise ImportFormatError(
                f"{source}: an array is {part.dtype} {list(part.shape)}, expected integers [tokens, layers, k]"
            )
    return assemble(source, "vllm", [Sequence("the arrays", np.concatenate(parts), prompt)], options, notes=notes)


def _from_responses(source: Path, options: ImportOptions) -> Imported:
    sequences: list[Sequence] = []
    lost = unknown = 0
    model = None
    for name, document in read_documents(source):
        model = model or document.get("model")
        for number, (choice_name, choice) in enumerate(choices_of(source, name, document)):
            if choice.get("routed_experts") is None:
                lost += 1
                continue
            sequence, known = _sequence(source, choice_name, document, choice, number == 0)
            unknown += not known
            sequences.append(sequence)
    notes = []
    if lost:
        notes.append(f"{lost} choices hold no routed experts (preempted, or not asked for) and were left out")
    if unknown:
        notes.append(f"{unknown} responses: {_NO_PROMPT}")
    named = model if isinstance(model, str) else None
    return assemble(source, "vllm", sequences, options, model=named, notes=notes)


def _sequence(source: Path, name: str, document: Document, choice: Document, first: bool) -> tuple[Sequence, bool]:
    """The request of one choice, and whether it is known where its prompt ends."""
    experts = routed_array(source, name, choice["routed_experts"])
    prompt = integer(document, "usage", "prompt_tokens")
    prompt_ids = token_ids(document, "prompt_token_ids") or token_ids(choice, "prompt_token_ids")
    generated_ids = token_ids(choice, "token_ids")
    if prompt is None and prompt_ids:
        prompt = len(prompt_ids)
    if document.get("prompt_routed_experts") is not None:
        before = routed_array(source, f"{name}, prompt", document["prompt_routed_experts"])
        if not first:  # the choices of a request share one pass over the prompt
            return _with_ids(Sequence(name, _known(source, name, experts), 0, len(before)), generated_ids), True
        if not len(experts):
            experts = before[:0]
        if before.ndim != 3 or experts.shape[1:] != before.shape[1:]:
            raise ImportFormatError(f"{source}: {name}: prompt and generated tokens differ in layers or slots")
        whole = np.concatenate([before, experts])
        return _with_ids(Sequence(name, whole, len(before)), prompt_ids + generated_ids), True
    experts = _known(source, name, experts)
    start = integer(document, "routed_experts_prompt_start") or 0
    if isinstance(choice["routed_experts"], dict):
        start = integer(choice["routed_experts"], "start") or start
    ids = (prompt_ids + generated_ids)[start : start + len(experts)] if prompt_ids and generated_ids else []
    inside = 0 if prompt is None else max(0, prompt - start)
    return _with_ids(Sequence(name, experts, inside, start), ids), prompt is not None


def _known(source: Path, name: str, experts: NDArray[Any]) -> NDArray[Any]:
    if experts.ndim != 3:
        raise ImportFormatError(f"{source}: {name} does not say its layers and slots: is it of SGLang? (import sglang)")
    return experts


def _with_ids(sequence: Sequence, ids: list[int]) -> Sequence:
    if len(ids) < len(sequence.experts):
        return sequence
    tokens = np.array(ids[: len(sequence.experts)], np.int64)
    return Sequence(sequence.name, sequence.experts, sequence.prompt, sequence.first, tokens)
