"""Foreign logs read once more, slowly, in plain Python: what the importers are held against."""

import base64
import struct
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A token: its forward pass, request and place in it, phase (None where the log says none), experts by layer."""

    step: int
    request: int
    position: int
    phase: int | None
    experts: tuple[tuple[int, ...], ...]


def dump(lines: list[dict[str, Any]], says: str) -> list[Row]:
    """The tokens of a router dump that says its passes by "step", "lists", "restarts", "order" or "phase"."""
    requests: list[Any] = []
    chosen: dict[tuple[int, int, int], dict[int, tuple[int, ...]]] = {}  # by pass, request, place in the pass
    numbers: dict[tuple[int, int, int], tuple[int, int | None]] = {}  # first number there, phase
    begun: dict[tuple[int, int], int] = {}
    visited: set[int] = set()
    before: int | None = None
    turn = 0
    passes: list[Any] = []  # in order of appearance
    for at, line in enumerate(lines):
        name, layer = line.get("request", 0), line["layer"]
        if name not in requests:
            requests.append(name)
        request = requests.index(name)
        if layer != before and layer in visited:
            turn, visited = turn + 1, set()
        visited, before = visited | {layer}, layer
        token = line.get("token")
        if says == "lists" or (says == "restarts" and token == 0):
            begun[request, layer] = begun.get((request, layer), -1) + 1
        key: Any = {
            "step": line.get("step"),
            "lists": (request, begun.get((request, layer))),
            "restarts": (request, begun.get((request, layer))),
            "order": turn,
            "phase": (request, "prompt" if line.get("phase") == 0 else token),
        }[says]
        if key not in passes:
            passes.append(key)
        step = passes.index(key)
        for offset, ids in enumerate(line["ids"] if says == "lists" else [line["ids"]]):
            place = (step, request, offset if says == "lists" else token)
            chosen.setdefault(place, {})[layer] = tuple(ids)
            numbers.setdefault(place, (at, line.get("phase")))
    layers = sorted({layer for held in chosen.values() for layer in held})
    rows, places = [], dict.fromkeys(range(len(requests)), 0)
    for step, request, token in sorted(chosen):
        phase = numbers[step, request, token][1]
        again = says in ("lists", "restarts", "step")
        position = places[request] if again else token
        places[request] = position + 1
        held = chosen[step, request, token]
        rows.append(Row(step, request, position, phase, tuple(held[layer] for layer in layers)))
    return rows


def sglang(response: dict[str, Any], layers: int, top_k: int, request: int, step: int) -> list[Row]:
    """The tokens of a response of SGLang's /generate."""
    meta = response["meta_info"]
    data = base64.b64decode(meta["routed_experts"])
    ids = struct.unpack(f"<{len(data) // 4}i", data)
    width = layers * top_k
    prompt, fed = meta["prompt_tokens"], meta["prompt_tokens"] + meta["completion_tokens"] - 1
    first = fed - len(ids) // width
    rows = []
    for position in range(first, fed):
        if position < meta["cached_tokens"]:
            continue
        flat = ids[(position - first) * width :][:width]
        experts = tuple(flat[layer * top_k : layer * top_k + top_k] for layer in range(layers))
        generated = position >= prompt
        any_prompt = max(first, meta["cached_tokens"]) < prompt
        rows.append(
            Row(step + (position - prompt + any_prompt if generated else 0), request, position, int(generated), experts)
        )
    return rows


def mbolt(data: bytes) -> list[Row]:
    """The tokens of a binary log of mbolt; 65535 where a layer has no row for them."""
    words = struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4])
    at, passes, last = 3, [], -1
    while at + 3 <= len(words) and at + 3 + words[at + 1] * words[at + 2] <= len(words):
        layer, k, tokens = words[at : at + 3]
        if layer <= last or not passes:
            passes.append({})
        ids = words[at + 3 : at + 3 + k * tokens]
        passes[-1][layer] = [ids[token * k : token * k + k] for token in range(tokens)]
        at, last = at + 3 + k * tokens, layer
    layers = sorted({layer for held in passes for layer in held})
    rows: list[Row] = []
    for step, held in enumerate(held for held in passes if len(held) == len(layers)):
        tokens = max(len(choices) for choices in held.values())
        for token in range(tokens):
            experts = []
            for layer in layers:
                missing = tokens - len(held[layer])
                k = len(held[layer][0])
                experts.append(tuple(held[layer][token - missing]) if token >= missing else (65535,) * k)
            rows.append(Row(step, 0, len(rows), None, tuple(experts)))
    return rows
