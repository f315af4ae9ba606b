"""Small traces for tests: `make_trace(path, experts)` writes one, `random_experts` routes one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from tracekit.manifest import Manifest, ModelInfo
from tracekit.rows import COLUMNS, DECODE, Columns
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


def make_manifest(layers: int = 2, experts: int | Sequence[int] = 8, top_k: int = 2, **fields: Any) -> Manifest:
    """A manifest of a small model; `fields` replaces or adds any field of Manifest."""
    per_layer = [experts] * layers if isinstance(experts, int) else list(experts)
    settings: dict[str, Any] = {
        "source": "synthetic",
        "model": ModelInfo(id="test/tiny", family="test"),
        "moe_layers": list(range(layers)),
        "model_layers": layers,
        "experts_per_layer": per_layer,
        "top_k": top_k,
    }
    return Manifest(**(settings | fields))


@dataclass(frozen=True)
class MemoryRows:
    """The rows of a trace that has no files, as its `RowSource`."""

    columns: Columns
    chosen: NDArray[np.uint16]
    gates: NDArray[np.float16] | None = None
    scores: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)  # logits and lookahead, by kind

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset([*self.scores, *([] if self.gates is None else ["weights"])])

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        return self.chosen[first:last]

    def weights(self, first: int, last: int) -> NDArray[np.float16] | None:
        return None if self.gates is None else self.gates[first:last]

    def residency(self, first: int, last: int) -> None:
        return None

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        return self.scores[kind][first:last] if kind in self.scores else None

    def scan(self) -> pl.LazyFrame:
        arrays = {"experts": self.chosen} | ({} if self.gates is None else {"weights": self.gates})
        flat = {name: array.reshape(len(array), -1) for name, array in arrays.items()}
        return pl.LazyFrame({name: getattr(self.columns, name) for name in COLUMNS} | flat)

    def digest(self, manifest: Manifest) -> str:
        return hashlib.sha256(manifest.encode() + self.chosen.tobytes()).hexdigest()


def make_trace(
    path: Path,
    experts: ArrayLike,
    *,
    num_experts: int | Sequence[int] | None = None,
    step: ArrayLike | None = None,
    request: ArrayLike = 0,
    position: ArrayLike | None = None,
    phase: ArrayLike = DECODE,
    token_id: ArrayLike = -1,
    weights: ArrayLike | None = None,
    logits: ArrayLike | None = None,
    lookahead: Mapping[int, ArrayLike] | None = None,
    residency: ArrayLike | None = None,
    **manifest: Any,
) -> Trace:
    """Write the trace `path` and open it.

    `experts` [tokens, layers, k] is all it needs: by default every token is its own decode step of one
    request, and a layer has as many experts as the largest id asks for. `manifest` holds further fields of
    Manifest, such as `expert_bytes=[100, 100]`.
    """
    chosen = np.asarray(experts, dtype=np.uint16)
    tokens, layers, top_k = chosen.shape
    if num_experts is None:
        used = chosen[chosen != 65535]
        num_experts = max(int(used.max()) + 1 if used.size else 1, top_k)
    order = np.arange(tokens)
    with TraceWriter(path, make_manifest(layers, num_experts, top_k, **manifest)) as writer:
        writer.append(
            step=order if step is None else step,
            request=request,
            position=order if position is None else position,
            phase=phase,
            token_id=token_id,
            experts=chosen,
            weights=weights,
            logits=logits,
            lookahead=lookahead,
            residency=residency,
        )
    return Trace.open(path)


def random_experts(
    rng: np.random.Generator, tokens: int, layers: int = 2, experts: int = 8, top_k: int = 2
) -> NDArray[np.uint16]:
    """Distinct experts [tokens, layers, top_k], uniform and independent."""
    return rng.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k].astype(np.uint16)


def prompted_trace(path: Path) -> Trace:
    """A prompt of 6 tokens and 30 decode steps, numbered from 100; 3 layers, top-2 of 8, with lookahead."""
    rng = np.random.default_rng(0)
    return make_trace(
        path,
        random_experts(rng, tokens=36, layers=3),
        num_experts=8,
        step=np.concatenate([[100] * 6, np.arange(101, 131)]),
        phase=[0] * 6 + [1] * 30,
        lookahead={1: rng.normal(size=(36, 2, 8))},
        expert_bytes=[3_000_000] * 3,
        expert_params=[1_500_000] * 3,
    )


def skewed_trace(path: Path, seed: int, tokens: int = 240) -> Trace:
    """Requests of 40 tokens over 3 layers of 8 experts, each layer's of its own popularity, with bursts."""
    rng = np.random.default_rng(seed)
    bias = np.random.default_rng(1).gumbel(size=(3, 8)) * 1.5
    chosen = np.argsort(-(bias + rng.gumbel(size=(tokens, 3, 8))), axis=2)[:, :, :2]
    for token in range(1, tokens):
        if rng.random() < 0.4:
            chosen[token] = chosen[token - 1]
    return make_trace(
        path,
        chosen,
        num_experts=8,
        request=np.arange(tokens) // 40,
        position=np.arange(tokens) % 40,
        token_id=rng.integers(0, 1000, tokens),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(file: Path, at: int | None = None, bit: int = 1) -> None:
    """Change one byte of a file, in the middle unless said otherwise."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if at is None else at] ^= bit
    file.write_bytes(data)


def domain_trace(
    path: Path, seed: int, *, requests: int = 12, labels: tuple[str, ...] = ("code", "prose"), apart: float = 1.5
) -> Trace:
    """Requests of 40 tokens, of two domains in turn, over 3 layers of 8 experts; each domain is as popular with experts
    as it pleases, the more so the further they are `apart`."""
    rng = np.random.default_rng(seed)
    bias = np.random.default_rng(1).gumbel(size=(2, 3, 8)) * apart
    tokens = np.arange(requests * 40)
    chosen = np.argsort(-(bias[tokens // 40 % 2] + rng.gumbel(size=(len(tokens), 3, 8))), axis=2)[:, :, :2]
    return make_trace(
        path,
        chosen,
        num_experts=8,
        request=tokens // 40,
        position=tokens % 40,
        token_id=rng.integers(0, 1000, len(tokens)),
        domains=[labels[number % 2] for number in range(requests)],
    )
