"""Routed experts as SGLang returns them (server: `--enable-return-routed-experts`, request: `return_routed_experts`).

Responses: one JSON object, a list of them, or one per line.

    /generate: `meta_info.routed_experts`, with `meta_info.prompt_tokens`, `meta_info.completion_tokens`, `output_ids`
    /v1/completions, /v1/chat/completions: `sgl_ext.routed_experts` in each choice (or beside the choices), with
    `usage.prompt_tokens` and `usage.completion_tokens`

`routed_experts` is base64 of little-endian int32, flat, of logical shape [tokens - 1, layers, k]: prompt and generated
tokens but the last, which is never fed back, from position `routed_experts_start_len` on; nested lists are read as
well. Layers and slots are not in the response: give --layers (all layers of the model, dense ones included) and
--top-k, or they are inferred from the counts of tokens and from experts being distinct within a layer, with a note.

A layer that is no MoE layer holds zeros or -1 and is left out, with a note. Sources: SGLang's documentation "Returning
Routed Experts (MoE Models)", pull requests 12162 and 17434, and test/registered/rl/test_return_routed_experts.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.responses import Document, choices_of, integer, read_documents, routed_array, token_ids
from tracekit.importers.sequences import Sequence, assemble
from tracekit.manifest import MAX_LAYERS, MAX_TOP_K


@dataclass(frozen=True, slots=True)
class _Payload:
    name: str
    routed: NDArray[Any]  # flat, or [tokens, layers, k]
    prompt: int | None
    generated: int | None
    start: int
    ids: list[int]  # of the prompt and what was generated, from position 0; empty when unknown


def read(source: Path, options: ImportOptions) -> Imported:
    """Read responses, see the module's text; ImportFormatError when they are none."""
    given = (options.layers, options.top_k) if options.layers and options.top_k else None
    payloads: list[_Payload] = []
    lost, model = 0, None
    for name, document in read_documents(source):
        model = model or document.get("model")
        for part_name, part, extra, counts in _parts(source, name, document):
            value = extra.get("routed_experts") if isinstance(extra, dict) else None
            if value is None:
                lost += 1
                continue
            payloads.append(_payload(part_name, routed_array(source, part_name, value, given), part, extra, counts))
    notes = [f"{lost} responses hold no routed experts and were left out"] if lost else []
    shape, how = _shape(source, payloads, options)
    sequences = [_sequence(source, payload, shape) for payload in payloads]
    if any(payload.prompt is None for payload in payloads):
        notes.append("where some prompts end is unknown: their tokens are taken as generated")
    named = model if isinstance(model, str) else None
    return assemble(source, "sglang", sequences, options, model=named, notes=[*how, *notes])


def _parts(source: Path, name: str, document: Document) -> list[tuple[str, Document, Any, Document]]:
    """What each generated text of a response brings: its name, itself, where the routing is, and the counts."""
    if "meta_info" in document:
        return [(name, document, document["meta_info"], {"usage": document["meta_info"]})]
    if "choices" not in document:
        raise ImportFormatError(f"{source}: {name} has neither meta_info nor choices: expected SGLang's responses")
    choices = choices_of(source, name, document)
    return [
        (part_name, choice, choice.get("sgl_ext") or document.get("sgl_ext"), document) for part_name, choice in choices
    ]


def _payload(name: str, routed: NDArray[Any], part: Document, extra: Document, counts: Document) -> _Payload:
    prompt_ids, output_ids = token_ids(part, "prompt_token_ids"), token_ids(part, "output_ids")
    return _Payload(
        name,
        routed,
        integer(counts, "usage", "prompt_tokens"),
        integer(counts, "usage", "completion_tokens"),
        integer(extra, "routed_experts_start_len") or 0,
        prompt_ids + output_ids if prompt_ids else [],
    )


def _shape(source: Path, payloads: list[_Payload], options: ImportOptions) -> tuple[tuple[int, int], list[str]]:
    """Layers and slots of the flat arrays, and how they are known."""
    for payload in payloads:
        if payload.routed.ndim == 3:
            return (payload.routed.shape[1], payload.routed.shape[2]), []
    if not payloads or (options.layers and options.top_k):
        return (options.layers or 1, options.top_k or 1), []
    flat = [payload for payload in payloads if payload.routed.size]
    widths = [_width(payload) for payload in flat]
    width = next((width for width in widths if width is not None), None)
    if not flat or width is None:
        raise ImportFormatError(
            f"{source} does not say how many layers and experts per token there are: give --layers and --top-k"
        )
    fitting = [
        (width // k, k)
        for k in range(min(width, MAX_TOP_K), 0, -1)
        if width % k == 0 and width // k <= MAX_LAYERS and _fits(options, width // k, k)
    ]
    for layers, top_k in fitting:
        if all(payload.routed.size % width == 0 and _distinct(payload.routed, top_k) for payload in flat):
            how = f"{layers} layers of top-{top_k} inferred from the ids; --layers and --top-k say it for certain"
            return (layers, top_k), [] if options.layers or options.top_k else [how]
    raise ImportFormatError(f"{source}: no number of layers and experts per token fits: give --layers and --top-k")


def _fits(options: ImportOptions, layers: int, top_k: int) -> bool:
    return options.layers in (None, layers) and options.top_k in (None, top_k)


def _width(payload: _Payload) -> int | None:
    """Ids per token, where the counts of tokens say it."""
    if payload.prompt is None or payload.generated is None:
        return None
    for last in (1, 0):  # the last token has no routing, unless the engine counts otherwise
        tokens = payload.prompt + payload.generated - last - payload.start
        if tokens > 0 and payload.routed.size % tokens == 0:
            return payload.routed.size // tokens
    return None


def _distinct(flat: NDArray[Any], top_k: int) -> bool:
    """Whether the ids, taken `top_k` at a time, are each time distinct (or all the same filler)."""
    groups = np.sort(flat[: (1 << 20) // top_k * top_k].reshape(-1, top_k), axis=1)
    filler = (groups == groups[:, :1]).all(axis=1) & (groups[:, 0] <= 0)
    return bool(((np.diff(groups, axis=1) != 0).all(axis=1) | filler).all())


def _sequence(source: Path, payload: _Payload, shape: tuple[int, int]) -> Sequence:
    routed = payload.routed
    if routed.ndim == 1:
        width = shape[0] * shape[1]
        if routed.size % width:
            raise ImportFormatError(
                f"{source}: {payload.name} holds {routed.size} ids, not a multiple of {shape[0]} layers x {shape[1]} "
                "experts: truncated, or wrong --layers or --top-k"
            )
        routed = routed.reshape(-1, *shape)
    ids = payload.ids[payload.start : payload.start + len(routed)]
    return Sequence(
        payload.name,
        routed,
        max(0, (payload.prompt or 0) - payload.start),
        payload.start,
        np.array(ids, np.int64) if len(ids) == len(routed) and ids else None,
    )
