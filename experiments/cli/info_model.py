"""`tracekit info MODEL`: what a model is and takes, where it fits, how fast it could be, before it is fetched."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from experiments.cli import console
from experiments.cli.console import percent
from experiments.statistics.speeds import MODELLED, basis

if TYPE_CHECKING:
    from engine.replay.prospect import Prospect
    from engine.shapes import ModelShape

FORMATS = ("bf16", "fp8", "q8_0", "q6_k", "q4_k", "mxfp4", "q2_k", "hqq-4bit", "hqq-2bit")
CONTEXTS = (4096, 16384, 65536, 131072)
GIB = 1 << 30


def tell_model(
    name: str,
    *,
    hardware: list[str],
    engine: str | None,
    weights: str | None,
    context: int,
    batch: int,
    kv_cache: str | None,
    json: bool,
) -> int:
    """Print it; 1 where the model fits none of the machines, so that scripts can ask."""
    from engine.hardware import hardware_names, load_hardware
    from engine.plan.plan import Plan
    from engine.plan.weights import WeightFormat
    from engine.replay.prospect import prospect
    from engine.shapes import load_shape
    from engine.shapes.sizes import kv_bytes

    shape = load_shape(name)
    word = weights or "q4_k"
    serve = {"context": context, "batch": batch} | ({} if kv_cache is None else {"kv_cache": kv_cache})
    plan = Plan("auto", weights=word, serve=serve)
    machines = [load_hardware(one, engine) for one in hardware or hardware_names()]
    found = [prospect(shape, machine, plan) for machine in machines]
    measured = {machine.name for machine in machines if machine.measured}
    sizes = _sizes(shape)
    kv = WeightFormat.parse(kv_cache or "bf16")
    caches = {tokens: kv_bytes(shape, tokens, kv) for tokens in sorted({*CONTEXTS, context})}
    if json:
        console.emit_json(
            {
                "basis": basis(calibrated=len(measured) == len(machines)),
                "model": shape.name,
                "source": shape.source,
                "layers": shape.layers,
                "moe_layers": len(shape.moe_layers),
                "experts": shape.experts,
                "top_k": shape.top_k,
                "total_params": shape.total_params,
                "active_params": shape.active_params,
                "expert_params": shape.expert_params,
                "sizes": sizes,
                "stored": _stored(name),
                "kv_cache_bytes": {str(tokens): size for tokens, size in caches.items()},
                "weights": word,
                "context": context,
                "batch": batch,
                "machines": [
                    one._asdict() | {"memory": one.memory._asdict(), "memory_total": one.memory.total, "fits": one.fits}
                    for one in found
                ],
            }
        )
        return int(not any(one.fits for one in found))
    console.table(shape.name, ["what", "value"], _facts(shape, sizes, caches, name))
    title = f"{word}, {context} tokens of context" + (f", {batch} sequences" if batch > 1 else "")
    console.table(title, COLUMNS, [_row(one) for one in found])
    console.tell(_sentence(shape, found, word, context, measured))
    said = basis(calibrated=len(measured) == len(machines))
    console.tell(
        f"Speeds are {said}, between every expert copied and none; real routing repeats itself, so a cache does better "
        "than even routing. Where misses are computed on the CPU (recommend tries it) the last column is the end."
    )
    return int(not any(one.fits for one in found))


COLUMNS = (
    "machine",
    "engine",
    "device GiB",
    "takes GiB",
    "experts resident",
    "all missing",
    "even routing",
    "none missing",
    "CPU helping, at most",
)


def _row(one: "Prospect") -> list[str]:
    cells = [one.machine, one.engine, f"{one.room / GIB:.0f}", f"{one.memory.total / GIB:.1f}"]
    if not one.fits:
        return [*cells, "does not fit", "-", "-", "-", "-"]
    share = f"{one.slots} of {one.experts} ({percent(one.slots / one.experts, 0)})"
    speeds = [one.missing, one.even, one.resident, *([] if one.helped is None else [one.helped])]
    return [*cells, share, *(f"{speed:.1f} tok/s" for speed in speeds), *(["-"] if one.helped is None else [])]


def _sentence(shape: "ModelShape", found: "list[Prospect]", word: str, context: int, measured: Collection[str]) -> str:
    fitting = [one for one in found if one.fits]
    where = f"{shape.name} in {word} with {context} tokens of context"
    if not fitting:
        least = min(found, key=lambda one: one.memory.total)
        return f"{where} fits none of these: it takes {least.memory.total / GIB:.1f} GiB with one expert of each layer."
    best = max(fitting, key=lambda one: one.even)
    whole = best.slots == best.experts
    held = "all of it" if whole else f"{best.slots} of {best.experts} experts of each layer"
    speed = f"{best.resident:.1f}" if whole else f"{best.missing:.1f} to {best.most:.1f}"
    said = "" if best.machine in measured else f", {MODELLED}"
    return (
        f"{where} runs on {', '.join(one.machine for one in fitting)}; fastest on {best.machine}, which holds {held}: "
        f"{speed} tokens/s{said}."
    )


def _facts(shape: "ModelShape", sizes: dict[str, dict[str, int]], caches: dict[int, int], name: str) -> list[list[str]]:
    dense = len(shape.dense_layers)
    rows = [
        ["parameters, all / of one token", f"{shape.total_params / 1e9:.1f} / {shape.active_params / 1e9:.1f} billion"],
        ["MoE layers", f"{len(shape.moe_layers)}" + (f" (and {dense} dense)" if dense else "")],
        ["experts", f"top-{shape.top_k} of {shape.experts}, {shape.expert_params / 1e6:.1f} million parameters each"],
    ]
    for part, size in _stored(name).items():
        rows.append([f"{part}, as the file stores them", f"{size / GIB:.1f} GiB"])
    for word, parts in sizes.items():
        rows.append(
            [f"{word}: experts / one", f"{parts['experts'] / GIB:.1f} GiB / {parts['expert'] / (1 << 20):.1f} MiB"]
        )
    rows.append(["the rest, in bf16", f"{sizes['bf16']['rest'] / GIB:.1f} GiB"])
    for tokens, size in caches.items():
        rows.append([f"key-value cache, {tokens} tokens", f"{size / GIB:.2f} GiB"])
    return rows


def _sizes(shape: "ModelShape") -> dict[str, dict[str, int]]:
    """Bytes of all experts, one, and the rest (always 16 bits here), by format that they fit."""
    from engine.plan.weights import WeightFormat
    from engine.shapes.sizes import STATED, dense_bytes
    from tracekit.errors import PlanError

    found = {}
    for word in FORMATS:
        try:
            expert = shape.expert_bytes(WeightFormat.parse(word))
        except PlanError:
            continue
        every = len(shape.moe_layers) * shape.experts * expert
        found[word] = {"experts": every, "expert": expert, "rest": dense_bytes(shape, STATED, STATED)}
    return found


def _stored(name: str) -> dict[str, int]:
    """Bytes of experts and of the rest in a GGUF."""
    if not name.endswith(".gguf"):
        return {}
    from engine.shapes.gguf import read_gguf
    from engine.shapes.gguf_shape import stored_parts

    parts = stored_parts(read_gguf(name))
    return {"experts": parts.experts, "the rest": parts.rest}
