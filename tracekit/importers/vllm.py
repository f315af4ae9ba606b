"""Routed experts as vLLM returns them under `--enable-return-routed-experts`.

Responses of /v1/completions or /v1/chat/completions: one JSON object, a list of them, one per line, or server-sent
events.

    vLLM 0.21: `prompt_routed_experts` [prompt tokens, layers, k] beside `choices`, and in each choice
    `routed_experts` [generated tokens, layers, k], both nested lists.
    From 0.22 on: in each choice `routed_experts`, base64 of an .npy file [tokens - 1, layers, k]: prompt and generated
    tokens but the last, which is never fed back; the first of them left out if the request asked for that
    (`routed_experts_prompt_start`, which the response need not repeat). `usage.prompt_tokens` says where the prompt
    ends, `usage.prompt_tokens_details.cached_tokens` which rows are those of an earlier request.

Or the arrays of the Python interface: an .npy file of `routed_experts`, or an .npz file of `routed_experts` and, for
0.21, `prompt_routed_experts`; `prompt_tokens` (one integer) may say where the prompt ends.

Ids are of the router, before experts are placed on devices. A layer that is no MoE layer holds zeros, a token whose
keys came from the prefix cache may hold -1: both are left out, with a note. Weights are not returned. The routing of a
preempted request is lost (null): the choice is left out, with a note. Sources: docs/training/routed_experts_replay.md
of vLLM 0.21 and docs/training/routed_experts.md of later versions; vllm-project/router pull request 184;
vllm-project/vllm issues 51906 and 57966.
"""

from pathlib import Path

import numpy as np

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.arrays import MAGIC, read_npy, read_npz
from tracekit.importers.placing import Part, place
from tracekit.importers.responses import Document, Documents, choices_of, integer, token_ids
from tracekit.importers.routed import routed_array
from tracekit.importers.sequences import Sequence, assemble
from tracekit.opening import open_file

_ARRAYS = ("routed_experts", "prompt_routed_experts", "prompt_tokens")


def read(source: Path, options: ImportOptions) -> Imported:
    """Read responses or arrays, see the module's text; ImportFormatError when they are neither."""
    with open_file(source) as file:
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
    documents = Documents(source, ("choices",))
    responses: list[list[Part]] = []
    lost, model = 0, None
    for name, document in documents:
        model = model or document.get("model")
        choices = choices_of(source, name, document)
        held = [
            (number, *choice) for number, choice in enumerate(choices) if choice[1].get("routed_experts") is not None
        ]
        lost += len(choices) - len(held)
        responses.append([_part(source, document, len(choices), *choice) for choice in held])
    notes = list(documents.notes)
    if lost:
        notes.append(f"{lost} choices hold no routed experts (preempted, or not asked for) and were left out")
    sequences, placed = place(source, responses)
    named = model if isinstance(model, str) else None
    return assemble(source, "vllm", sequences, options, model=named, notes=[*notes, *placed])


def _part(source: Path, document: Document, choices: int, number: int, name: str, choice: Document) -> Part:
    """One choice of a response, `number` of so many."""
    experts = routed_array(source, name, choice["routed_experts"])
    prompt_ids = token_ids(document, "prompt_token_ids") or token_ids(choice, "prompt_token_ids")
    generated_ids = token_ids(choice, "token_ids")
    prompt = integer(document, "usage", "prompt_tokens")
    prompt = len(prompt_ids) if prompt is None and prompt_ids else prompt
    completion = integer(document, "usage", "completion_tokens")
    # Usage counts all choices together; a choice of several says its own number by its ids alone.
    generated = completion if choices == 1 else len(generated_ids) or None
    start = integer(choice, "routed_experts_prompt_start")
    start = integer(document, "routed_experts_prompt_start") if start is None else start
    if isinstance(choice["routed_experts"], dict):
        told = integer(choice["routed_experts"], "start")
        start = start if told is None else told
    if document.get("prompt_routed_experts") is not None:  # 0.21: the prompt apart, once for all choices
        before = routed_array(source, f"{name}, prompt", document["prompt_routed_experts"])
        prompt = len(before)
        if number:
            start = prompt
        else:
            experts = before[:0] if not len(experts) else experts
            if before.ndim != 3 or experts.shape[1:] != before.shape[1:]:
                raise ImportFormatError(f"{source}: {name}: prompt and generated tokens differ in layers or slots")
            experts = np.concatenate([before, experts])
    if experts.ndim != 3:
        raise ImportFormatError(f"{source}: {name} does not say its layers and slots: is it of SGLang? (import sglang)")
    return Part(
        name,
        experts,
        prompt,
        generated,
        of_all=completion if choices > 1 and document.get("prompt_routed_experts") is None else None,
        start=start,
        cached=integer(document, "usage", "prompt_tokens_details", "cached_tokens") or 0,
        ids=np.array(prompt_ids + generated_ids if prompt_ids and generated_ids else [], np.int32),
    )
