"""Traces drawn from a prior: a prompt in one step, then tokens, a step each."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tracekit.caution import MARK, PRIOR
from tracekit.durable import whole_or_nothing
from tracekit.errors import TraceError
from tracekit.manifest import MAX_COUNT, MAX_EXPERTS, MAX_LAYERS, Manifest, ModelInfo
from tracekit.priors.family import LEVELS, Family, Level, family_of
from tracekit.priors.gate import Gate
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

SIZES = ("moe_layers", "model_layers", "expert_params", "expert_bytes", "dense_bytes")
MOST_CHOSEN = 1 << 28
"""Experts chosen in one prompt, which is one step and written at once."""
_SHARD = 1 << 22  # experts chosen: as many are gathered before they are written


def prior_trace(
    path: str | Path,
    experts_per_layer: Sequence[int],
    top_k: int,
    *,
    level: Level = "likely",
    tokens: int,
    prompt_tokens: int = 0,
    requests: int = 1,
    seed: int = 0,
    name: str | None = None,
    family: Family | None = None,
    sizes: Manifest | None = None,
    progress: Callable[[int], object] = lambda tokens: None,
) -> Trace:
    """Draw a trace of one locality, write it to `path`, which must not exist, and open it.

    Args:
        experts_per_layer, top_k: of the model that it stands for, over its MoE layers.
        level: the locality of the least local known model, of a likely one, or of the most local.
        tokens: generated tokens in all, shared by the requests as evenly as can be.
        prompt_tokens: of each request, one step.
        seed: another one, another trace; the three levels of a seed differ by locality alone.
        name: the model that it stands for; None: the family.
        family: None takes the nearest (`family_of`).
        sizes: what it says of the layers and their bytes goes into the trace, for replays without a model's shape.
        progress: told of the tokens written.

    The same arguments give the same trace. It is marked as synthetic and as a prior. Layers are drawn independently,
    and so are requests but for what is popular: a prior says nothing of prediction across layers.

    Raises TraceError for what cannot be drawn, or when writing fails.
    """
    if not experts_per_layer or len(experts_per_layer) > MAX_LAYERS:
        raise TraceError(f"a prior of {len(experts_per_layer)} MoE layers: give 1 to {MAX_LAYERS}")
    most = max(experts_per_layer)
    if not 1 <= min(experts_per_layer) <= most <= MAX_EXPERTS or not 1 <= top_k <= most:
        raise TraceError(f"a prior of top-{top_k} of {min(experts_per_layer)} to {most} experts: nothing can be chosen")
    for what, value, least in (("tokens", tokens, 1), ("prompt tokens", prompt_tokens, 0), ("requests", requests, 1)):
        if not least <= value <= MAX_COUNT:
            raise TraceError(f"a prior of {value} {what}: give {least} to {MAX_COUNT}")
    if requests > tokens or tokens + requests * prompt_tokens > MAX_COUNT:
        raise TraceError(f"a prior of {requests} requests: give 1 to {tokens}, a generated token each, at most")
    if prompt_tokens * len(experts_per_layer) * top_k > MOST_CHOSEN:
        limit = MOST_CHOSEN // (len(experts_per_layer) * top_k)
        raise TraceError(f"a prior of {prompt_tokens} prompt tokens: give {limit} at most for this model")
    if not 0 <= seed < 2**63:
        raise TraceError(f"seed is {seed}, expected 0 to 2**63 - 1")
    family = family or family_of(most, top_k)
    manifest = _manifest(family, level, list(experts_per_layer), top_k, name, seed)
    if sizes is not None:
        manifest = msgspec.structs.replace(manifest, **{key: getattr(sizes, key) for key in SIZES})
    shard = max(1, _SHARD // (len(experts_per_layer) * top_k))
    gate = Gate(family.locality(level), experts_per_layer, top_k, seed)
    with whole_or_nothing(Path(path)) as place, TraceWriter(place, manifest) as writer:
        pending = 0
        for rows in _blocks(gate, tokens, prompt_tokens, requests):
            writer.append(**rows)
            pending += len(rows["phase"])
            if rows["phase"][-1] == DECODE and pending >= shard:  # a step may not continue in another shard
                writer.flush()
                pending = 0
            progress(len(rows["phase"]))
    return Trace.open(path)


def prior_traces(
    experts_per_layer: Sequence[int],
    top_k: int,
    *,
    tokens: int,
    prompt_tokens: int = 0,
    requests: int = 1,
    seed: int = 0,
    folder: Path,
    name: str | None = None,
    family: Family | None = None,
    sizes: Manifest | None = None,
    progress: Callable[[int], object] = lambda tokens: None,
) -> dict[Level, Trace]:
    """`prior_trace` for each level, least local first, as `LEVEL.trace` in `folder`, which exists."""
    return {
        level: prior_trace(
            folder / f"{level}.trace",
            experts_per_layer,
            top_k,
            level=level,
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            requests=requests,
            seed=seed,
            name=name,
            family=family,
            sizes=sizes,
            progress=progress,
        )
        for level in LEVELS
    }


def is_prior(trace: Trace) -> bool:
    """Whether a trace was drawn from a prior."""
    return trace.manifest.source == PRIOR


def _blocks(gate: Gate, tokens: int, prompt: int, requests: int) -> Iterator[dict[str, Any]]:
    """Rows as `TraceWriter.append` takes them: of each request its prompt in one step, then a step for each token."""
    step = 0
    for request in range(requests):
        length = prompt + tokens // requests + (request < tokens % requests)
        gate.begin()
        for first in range(0, length, gate.block):
            position = np.arange(first, min(first + gate.block, length))
            decode = position >= prompt
            yield {
                "step": step + np.where(decode, position - prompt + (prompt > 0), 0),
                "request": request,
                "position": position,
                "phase": np.where(decode, DECODE, PREFILL),
                "experts": gate.next(len(position)),
            }
        step += length - prompt + (prompt > 0)


def _manifest(
    family: Family, level: Level, experts_per_layer: list[int], top_k: int, name: str | None, seed: int
) -> Manifest:
    layers = len(experts_per_layer)
    fitted = hashlib.sha256(msgspec.json.encode(family, order="deterministic")).hexdigest()
    return Manifest(
        source=PRIOR,
        model=ModelInfo(id=f"prior/{name or family.name}", family="prior"),
        moe_layers=list(range(layers)),
        model_layers=layers,
        experts_per_layer=experts_per_layer,
        top_k=top_k,
        sampling={"generator": "prior", "family": family.name, "family_sha256": fitted, "level": level},
        seed=seed,
        notes=[f"{MARK}: {level} locality of the family {family.name}, {family.notice(max(experts_per_layer), top_k)}"],
    )
