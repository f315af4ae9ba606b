"""Route traces of BigMoeOnEdge, a llama.cpp fork: one CSV line per (token, layer, slot) under a `#` preamble.

    # route_trace v1
    # model=... arch=... n_layer=48 n_expert=128 n_expert_used=6
    # layer=0 expert_bytes=3059712 dense_bytes=11953152
    ...
    turn,phase,step,layer,slot,expert,weight,residency,expert_bytes

`step` counts the tokens of a turn. The whole prompt (phase 0) is one forward pass; every generated token
(phase 1) is one. The engine computes the last layer's experts for the last prompt token only, so the other
prompt tokens have no lines there and their slots stay unused. `residency`, whether that engine's own cache held the
expert (0: no), becomes `Trace.recorded`. `dense_bytes`, if every layer states them, are what a modelled machine reads
of a layer beside its experts where no model shape says more.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.decoding import guarded
from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.saved import read_text
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, Manifest, ModelInfo
from tracekit.rows import PREFILL, UNUSED

_COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight", "residency", "expert_bytes")
_NEEDED = _COLUMNS[:7]
_PAIR = re.compile(r"(\w+)=(\S+)")
_INFLATION = 5
_NUMBERS = {"layer", "expert_bytes", "dense_bytes", "n_layer", "n_expert", "n_expert_used"}

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Preamble:
    model: str
    arch: str
    n_layer: int
    n_expert: int
    top_k: int
    expert_bytes: dict[int, int]  # by model layer
    dense_bytes: dict[int, int]  # of the rest of the layer


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a route trace: layers, experts and bytes per expert from the preamble, the rest from the lines."""
    data = read_text(source, _INFLATION)
    preamble = _read_preamble(source, data)
    lines, unread = _read_lines(source, data)
    layers = sorted(preamble.expert_bytes)
    _check_ranges(source, lines, preamble)
    token, request, step_of_turn, phase = _tokens(source, lines)

    experts = np.full((len(phase), len(layers), preamble.top_k), UNUSED, dtype=np.uint16)
    weights = np.zeros(experts.shape, dtype=np.float64)
    place = (token, np.searchsorted(layers, lines["layer"]), lines["slot"])
    if len(np.unique(np.ravel_multi_index(place, experts.shape))) != len(token):
        raise ImportFormatError(f"{source}: a (turn, step, layer, slot) has two lines")
    experts[place] = lines["expert"]
    weights[place] = lines["weight"]
    residency = np.zeros(experts.shape, dtype=np.uint8)
    residency[place] = lines.get("residency", 0)
    _check_whole(source, experts, phase, request, step_of_turn)

    same_prompt = (phase[1:] == PREFILL) & (phase[:-1] == PREFILL) & (request[1:] == request[:-1])
    step = np.concatenate([[0], np.cumsum(~same_prompt)])
    first = np.searchsorted(request, np.arange(request[-1] + 1))
    manifest = Manifest(
        source="import:bigmoe-csv",
        model=ModelInfo(id=options.model or preamble.model, family=preamble.arch),
        moe_layers=layers,
        model_layers=preamble.n_layer,
        experts_per_layer=[preamble.n_expert] * len(layers),
        top_k=preamble.top_k,
        expert_bytes=[preamble.expert_bytes[layer] for layer in layers],
        dense_bytes=[preamble.dense_bytes[layer] for layer in layers if layer in preamble.dense_bytes],
        notes=unread,
    )
    return Imported(
        manifest,
        {
            "step": step,
            "request": request,
            "position": np.arange(len(phase)) - first[request],
            "phase": phase,
            "experts": experts,
            "weights": weights,
            "residency": residency if "residency" in lines else None,
        },
    )


def _read_preamble(source: Path, data: bytes) -> _Preamble:
    head: dict[str, str] = {}
    expert_bytes: dict[int, int] = {}
    dense_bytes: dict[int, int] = {}
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace") as file:
        first = file.readline(200)
        if not first.startswith("# route_trace "):
            raise ImportFormatError(f"{source} is not a route trace: its first line is not '# route_trace v1'")
        if first.split() != ["#", "route_trace", "v1"]:
            raise ImportFormatError(f"{source} is of version {first[14:40].strip()!r}, this importer reads v1")
        while (line := file.readline(4096)).startswith("#"):
            pairs = dict(_PAIR.findall(line))
            if any(not re.fullmatch(r"[0-9]{1,15}", pairs[name]) for name in _NUMBERS & pairs.keys()):
                raise ImportFormatError(f"{source}: not a number in the preamble line {line[:100].strip()!r}")
            if "layer" in pairs and "expert_bytes" in pairs and len(expert_bytes) < MAX_LAYERS:
                layer = int(pairs["layer"])
                expert_bytes[layer] = int(pairs["expert_bytes"])
                dense_bytes[layer] = int(pairs.get("dense_bytes", 0))
            else:
                head |= pairs
    missing = {"n_layer", "n_expert", "n_expert_used"} - head.keys()
    if missing or not expert_bytes:
        what = ", ".join(sorted(missing)) or "layer lines with expert_bytes"
        raise ImportFormatError(f"{source}: the preamble lacks {what}")
    numbers = {name: int(head[name]) for name in ("n_layer", "n_expert", "n_expert_used")}
    for name, high in (("n_layer", MAX_LAYERS), ("n_expert", MAX_EXPERTS), ("n_expert_used", MAX_TOP_K)):
        if not 1 <= numbers[name] <= high:
            raise ImportFormatError(f"{source}: {name} is {numbers[name]}, expected 1 to {high}")
    # The model is a path on the recording machine; only its name says what it was.
    model = PureWindowsPath(PurePosixPath(head.get("model", "unknown")).name).stem
    return _Preamble(
        model=model,
        arch=head.get("arch", "unknown"),
        n_layer=numbers["n_layer"],
        n_expert=numbers["n_expert"],
        top_k=numbers["n_expert_used"],
        # A dense layer may be listed with no expert bytes.
        expert_bytes={layer: size for layer, size in expert_bytes.items() if size},
        dense_bytes=dense_bytes if all(dense_bytes.values()) else {},
    )


def _read_lines(source: Path, data: bytes) -> tuple[Columns, list[str]]:
    """The columns of the routing lines, and the note on those that are not read."""
    import polars as pl

    schema = dict.fromkeys(_COLUMNS, pl.Int64()) | {"weight": pl.Float64()}
    try:
        with guarded(source):
            frame = pl.read_csv(io.BytesIO(data), comment_prefix="#", schema_overrides=schema, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        first = (str(error).splitlines() or ["unreadable"])[0]
        raise ImportFormatError(f"{source} is not a readable route trace: {first[:200]}") from None
    if tuple(frame.columns[: len(_NEEDED)]) != _NEEDED:
        raise ImportFormatError(f"{source}: expected the columns {','.join(_COLUMNS)}, found {frame.columns[:12]}")
    if frame.height == 0:
        raise ImportFormatError(f"{source} holds no routing lines")
    holes = [name for name in frame.columns if frame[name].null_count()]
    if holes:
        row = int(frame[holes[0]].is_null().arg_max() or 0)
        raise ImportFormatError(f"{source} is truncated or damaged: routing line {row + 1} has no {holes[0]}")
    unread = [name[:40] for name in frame.columns if name not in _COLUMNS]
    notes = [f"fields not read: {', '.join(unread[:12])}"] if unread else []
    return {name: frame[name].to_numpy() for name in (*_NEEDED, "residency") if name in frame.columns}, notes


def _check_ranges(source: Path, lines: Columns, preamble: _Preamble) -> None:
    limits = {
        "turn": 2**31,
        "phase": 2,
        "step": 2**31,
        "layer": preamble.n_layer,
        "slot": preamble.top_k,
        "expert": preamble.n_expert,
    } | ({"residency": 256} if "residency" in lines else {})
    for name, limit in limits.items():
        wrong = (lines[name] < 0) | (lines[name] >= limit)
        if wrong.any():
            row = int(wrong.argmax())
            value = lines[name][row]
            raise ImportFormatError(f"{source}: routing line {row + 1} has {name} {value} of {limit}")
    unknown = ~np.isin(lines["layer"], list(preamble.expert_bytes))
    if unknown.any():
        layer = lines["layer"][int(unknown.argmax())]
        raise ImportFormatError(f"{source}: the preamble gives no expert_bytes for layer {layer}")
    # Bounds the arrays that follow by the size of the file: only the last layer may be left out.
    tokens = len(np.unique(lines["turn"] << 31 | lines["step"]))
    if len(lines["turn"]) < tokens * (len(preamble.expert_bytes) - 1) * preamble.top_k:
        raise ImportFormatError(f"{source} is incomplete: {len(lines['turn'])} lines for {tokens} tokens")


def _tokens(source: Path, lines: Columns) -> tuple[NDArray[np.int64], ...]:
    """Each line's token; then each token's request, step within its turn, and phase, in that order."""
    keys, at, token = np.unique(lines["turn"] << 31 | lines["step"], return_index=True, return_inverse=True)
    phase = lines["phase"][at]
    if (phase[token] != lines["phase"]).any():
        raise ImportFormatError(f"{source}: a token has lines of both phases")
    request = np.unique(keys >> 31, return_inverse=True)[1]
    if ((phase[1:] < phase[:-1]) & (request[1:] == request[:-1])).any():
        raise ImportFormatError(f"{source}: a prompt token comes after a generated one in the same turn")
    if ((np.diff(keys) != 1) & (np.diff(request) == 0)).any():
        raise ImportFormatError(f"{source} is incomplete: a turn skips a step")
    return token.reshape(-1), request.reshape(-1), keys & (2**31 - 1), phase


def _check_whole(
    source: Path,
    experts: NDArray[np.uint16],
    phase: NDArray[np.int64],
    request: NDArray[np.int64],
    step: NDArray[np.int64],
) -> None:
    """Every token must have all its lines, save a prompt token before the last, at the last layer."""
    used = (experts != UNUSED).sum(axis=2)
    whole = used == experts.shape[2]
    last_of_prompt = np.append((phase[1:] != PREFILL) | (request[1:] != request[:-1]), True)
    whole[:, -1] |= (used[:, -1] == 0) & (phase == PREFILL) & ~last_of_prompt
    if not whole.all():
        token, layer = np.argwhere(~whole)[0]
        found = f"{used[token, layer]} of {experts.shape[2]} experts at MoE layer {layer}"
        raise ImportFormatError(f"{source} is incomplete: step {step[token]} has {found}")
