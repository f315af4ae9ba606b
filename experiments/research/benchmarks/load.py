"""The load that benchmarks share: routing of Qwen3-30B-A3B's shape, with a cache of a quarter of its experts."""

from collections.abc import Sequence

import numpy as np

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.cache_state import Batch
from tracekit.manifest import Manifest, ModelInfo

LAYERS, EXPERTS, TOP_K, SLOTS = 48, 128, 8, 32
CHUNK = 100  # steps decided at once


def manifest(
    layers: int = LAYERS, experts: int = EXPERTS, top_k: int = TOP_K, expert_bytes: Sequence[int] = ()
) -> Manifest:
    """Of a trace with this load, or with another's shape."""
    return Manifest(
        source="synthetic",
        model=ModelInfo(id="benchmark"),
        moe_layers=list(range(layers)),
        model_layers=layers,
        experts_per_layer=[experts] * layers,
        top_k=top_k,
        expert_bytes=list(expert_bytes),
    )


def log_popularity(rng: np.random.Generator) -> np.ndarray:
    """Logarithms f32 [layers, experts] of popularities rank^-0.8, each layer's in its own order."""
    popularity = 1 / np.arange(1, EXPERTS + 1) ** 0.8
    weights: np.ndarray = np.log(np.stack([rng.permutation(popularity) for _ in range(LAYERS)])).astype(np.float32)
    return weights


def routing(steps: int, seed: int = 0) -> np.ndarray:
    """Keys i32 [steps, layers, top_k]: independent draws by popularity. A load, no model."""
    rng = np.random.default_rng(seed)
    weights = log_popularity(rng)
    keys = np.empty((steps, LAYERS, TOP_K), np.int32)
    for step in range(steps):
        scores = rng.gumbel(size=(LAYERS, EXPERTS)).astype(np.float32) + weights
        keys[step] = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
    return keys + (np.arange(LAYERS, dtype=np.int32) * EXPERTS)[None, :, None]


def batches(keys: np.ndarray) -> list[Batch]:
    """The routing as batches of whole steps."""
    none = np.empty(0)
    made = []
    for first in range(0, len(keys), CHUNK):
        part = keys[first : first + CHUNK]
        visits = len(part) * LAYERS
        flat = np.ascontiguousarray(part.reshape(-1)).astype(np.uint32)
        start = np.arange(visits + 1, dtype=np.int64) * TOP_K
        layer = np.tile(np.arange(LAYERS, dtype=np.int32), len(part))
        made.append(Batch(layer, start, flat, flat, none, none, np.full((visits, 1), -1, np.int32)))
    return made


def new_cache(policy: str = "lru", slots: int = SLOTS) -> ExpertCache:
    """An empty cache of `slots` experts per layer."""
    return ExpertCache(CacheSpec(LAYERS, EXPERTS, (slots,) * LAYERS, np.ones(LAYERS * EXPERTS, np.int64), policy))
