"""Routed experts as SGLang returns them (server: `--enable-return-routed-experts`, request: `return_routed_experts`).

Responses: one JSON object, a list of them, one per line, or server-sent events.

    /generate: `meta_info.routed_experts`, with `meta_info.prompt_tokens`, `meta_info.completion_tokens`,
    `meta_info.cached_tokens`, `output_ids`
    /v1/completions, /v1/chat/completions: `sglext.routed_experts` beside the choices (`sgl_ext` in the documentation,
    `meta_info` of a choice in consumers, `nvext` through NVIDIA Dynamo), with `usage.prompt_tokens`,
    `usage.completion_tokens` and `usage.prompt_tokens_details.cached_tokens`; beside several choices it belongs to the
    first alone

`routed_experts` is base64 of little-endian int32, flat, of logical shape [tokens - 1, layers, k]: prompt and generated
tokens but the last, which is never fed back, from position `routed_experts_start_len` on; nested lists are read as
well. Layers and slots are not in the response: give --layers (all layers of the model, dense ones included) and
--top-k, or they are inferred from the counts of tokens and from experts being distinct within a layer, with a note.

A layer that is no MoE layer holds zeros or -1 and is left out, with a note. Sources: SGLang's documentation "Returning
Routed Experts (MoE Models)", `SglExt` in its protocol.py, pull requests 12162 and 17434, issue 24851,
test/registered/rl/test_return_routed_experts.py; ai-dynamo/dynamo pull request 9657.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.placing import Part, place
from tracekit.importers.responses import Document, Documents, choices_of, integer, token_ids
from tracekit.importers.routed import routed_array
from tracekit.importers.sequences import assemble
from tracekit.manifest import MAX_LAYERS, MAX_TOP_K

_PLACES = ("meta_info", "sglext", "sgl_ext", "nvext")


@dataclass(frozen=True, slots=True)
class _Payload:
    """One text as the response gives it: a part whose rows may still be flat."""

    part: Part
    tokens: int | None  # that the rows are of, if all were returned


def read(source: Path, options: ImportOptions) -> Imported:
    """Read responses, see the module's text; ImportFormatError when they are none."""
    given = (options.layers, options.top_k) if options.layers and options.top_k else None
    documents = Documents(source, ("meta_info", "choices"))
    responses: list[list[_Payload]] = []
    lost, beside, model = 0, 0, None
    for name, document in documents:
        model = model or document.get("model")
        texts = [(name, document)] if "meta_info" in document else choices_of(source, name, document)
        held = [(text_name, text, _routing(text)) for text_name, text in texts]
        if "choices" in document and texts and not any(extra for _, _, extra in held):
            held[0] = (texts[0][0], texts[0][1], _routing(document))
            beside += len(texts) - 1 if held[0][2] else 0
        some = [(text_name, text, extra) for text_name, text, extra in held if extra]
        lost += 0 if some else 1
        responses.append([_payload(source, part, document, len(texts), given) for part in some])
    payloads = [payload for response in responses for payload in response]
    if not payloads and documents.names:
        has = ", ".join(documents.first)
        raise ImportFormatError(
            f"{source} holds no routed tokens: no routed_experts in {', '.join(_PLACES)} of a response or its choices "
            f"(the first has: {has}); was the engine told to return routed experts?"
        )
    notes = list(documents.notes)
    if lost:
        notes.append(f"{lost} responses hold no routed experts and were left out")
    if beside:
        notes.append(f"{beside} further choices have no routed experts of their own and were left out")
    shape, how = _shape(source, payloads, options)
    parts = [[_shaped(source, payload, shape) for payload in response] for response in responses]
    sequences, placed = place(source, parts)
    named = model if isinstance(model, str) else None
    return assemble(source, "sglang", sequences, options, model=named, notes=[*how, *notes, *placed])


def _routing(holder: Document) -> Document | None:
    """The first of the places in a response or choice that holds routed experts."""
    for place_name in _PLACES:
        extra = holder.get(place_name)
        if isinstance(extra, dict) and extra.get("routed_experts") is not None:
            return extra
    return None


def _payload(
    source: Path,
    text: tuple[str, Document, Document],
    document: Document,
    texts: int,
    given: tuple[int, int] | None,
) -> _Payload:
    name, holder, extra = text

    def count(*path: str) -> int | None:
        for place_of_counts in (extra, holder.get("meta_info"), document.get("usage")):
            if (value := integer(place_of_counts, *path)) is not None:
                return value
        return None

    prompt_ids, output_ids = token_ids(holder, "prompt_token_ids"), token_ids(holder, "output_ids")
    prompt, generated = count("prompt_tokens"), count("completion_tokens")
    own = texts == 1 or integer(holder.get("meta_info"), "completion_tokens") is not None
    start = integer(extra, "routed_experts_start_len")
    cached = count("cached_tokens")
    part = Part(
        name,
        routed_array(source, name, extra["routed_experts"], given),
        prompt,
        generated if own else None,
        of_all=None if own else generated,
        start=start,
        cached=cached if cached is not None else count("prompt_tokens_details", "cached_tokens") or 0,
        ids=np.array(prompt_ids + output_ids if prompt_ids else [], np.int32),
    )
    known = prompt is not None and part.generated is not None
    return _Payload(part, (prompt or 0) + (part.generated or 0) - (start or 0) if known else None)


def _shape(source: Path, payloads: list[_Payload], options: ImportOptions) -> tuple[tuple[int, int], list[str]]:
    """Layers and slots of the flat arrays, and how they are known."""
    for payload in payloads:
        if payload.part.routed.ndim == 3:
            return (payload.part.routed.shape[1], payload.part.routed.shape[2]), []
    if not payloads or (options.layers and options.top_k):
        return (options.layers or 1, options.top_k or 1), []
    flat = [payload for payload in payloads if payload.part.routed.size]
    widths = [_width(payload) for payload in flat]
    # Rows left out of some responses make theirs look wider or narrower: most have them all.
    width = next((width for width, _ in Counter(width for width in widths if width).most_common(1)), None)
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
        if all(payload.part.routed.size % width == 0 and _distinct(payload.part.routed, top_k) for payload in flat):
            how = f"{layers} layers of top-{top_k} inferred from the ids; --layers and --top-k say it for certain"
            return (layers, top_k), [] if options.layers or options.top_k else [how]
    raise ImportFormatError(f"{source}: no number of layers and experts per token fits: give --layers and --top-k")


def _fits(options: ImportOptions, layers: int, top_k: int) -> bool:
    return options.layers in (None, layers) and options.top_k in (None, top_k)


def _width(payload: _Payload) -> int | None:
    """Ids per token, where the counts of tokens say it."""
    for last in (1, 0):  # the last token has no routing, unless the engine counts otherwise
        tokens = (payload.tokens or 0) - last
        if tokens > 0 and payload.part.routed.size % tokens == 0:
            return int(payload.part.routed.size) // tokens
    return None


def _distinct(flat: NDArray[Any], top_k: int) -> bool:
    """Whether the ids, taken `top_k` at a time, are each time distinct (or all the same filler)."""
    groups = np.sort(flat[: (1 << 20) // top_k * top_k].reshape(-1, top_k), axis=1)
    filler = (groups == groups[:, :1]).all(axis=1) & (groups[:, 0] <= 0)
    return bool(((np.diff(groups, axis=1) != 0).all(axis=1) | filler).all())


def _shaped(source: Path, payload: _Payload, shape: tuple[int, int]) -> Part:
    routed = payload.part.routed
    if routed.ndim != 1:
        return payload.part
    width = shape[0] * shape[1]
    if routed.size % width:
        raise ImportFormatError(
            f"{source}: {payload.part.name} holds {routed.size} ids, not a multiple of {shape[0]} layers x {shape[1]} "
            "experts: truncated, or wrong --layers or --top-k"
        )
    return replace(payload.part, routed=routed.reshape(-1, *shape))
