"""The tables of a plan's file, each with its keys; those of misses and admission are in `engine.plan.misses`."""

from typing import Annotated, Literal

import msgspec

Scalar = str | int | float | bool
KEEP, RESET = "keep", "reset"
"""Words of `cache.warm`."""


class CachePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`cache`: how much device memory holds experts."""

    # "4/layer", "512", "2000MiB", "25%"; layers by themselves: ["6/layer", {layers = "0-3", slots = 12}], or the same
    # as text, "6/layer; layers 0-3: 12" (MoE layers from 0)
    capacity: str
    # how the slots of the capacity, all together, are shared by layers: `even`, or `curve`, where an LRU cache of each
    # layer gains most; None: as `capacity` says
    split: Literal["even", "curve"] | None = None
    # for `curve`: the trace that says what a layer gains
    split_from: str | None = None
    # what is there when a request begins. "keep": what the one before left, and nothing before the first. "reset":
    # nothing, and policies that know nothing. A path, NAME.placement.toml or a trace: as "keep", but before the first
    # request there is what the file names, or what this plan leaves at the trace's end
    warm: str = "keep"

    @property
    def resets(self) -> bool:
        """Whether each request begins with an empty cache."""
        return self.warm == RESET

    @property
    def warm_file(self) -> str | None:
        """The file that names what is there at the beginning, if one does."""
        return self.warm if self.warm.endswith(".toml") else None

    @property
    def warm_trace(self) -> str | None:
        """The trace at whose end the cache begins, if it does so."""
        return None if self.warm in (KEEP, RESET) or self.warm_file is not None else self.warm


class PlacementPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`placement`: experts that are on the device from the start and never leave, out of the cache's capacity."""

    # "layers 0-5" (MoE layers from 0), "popular:16/layer", or the path of a placement (tracekit place)
    pinned: str | None = None
    # for `popular`: a trace, or a file of counts (tracekit.popularity)
    profile: str | None = None
    # how a request's domain is known, where the placement (or `cache.warm`) has domains: by its label, or by the
    # routing of so many of its first tokens
    by: Literal["label"] | None = None
    detect: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    # for traces that carry no labels: a file of JSON lines with the `domain` of each request
    labels: str | None = None


class EvictionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`eviction`: a policy's name and, beside it, the policy's own parameters."""

    policy: str = "lru"
    # a trace, or a file of counts (tracekit.popularity), whose most popular experts `static` keeps
    profile: str | None = None
    # a fitted predictor's directory (tracekit fit), for `learned`
    artefact: str | None = None
    parameters: dict[str, int | float | bool] = {}


class PrefetchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`prefetch`: a predictor's name, how it is used and, beside these, the predictor's own parameters."""

    predictor: str = "none"
    # MoE layers to look ahead
    distance: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    # whether the last layers prefetch for the first ones of the next step
    wrap: bool = False
    # how many suggested experts are considered per visit; those already on the device are not loaded again
    count: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 2
    # where a prefetched expert goes
    target: Literal["staging", "cache"] = "staging"
    # buffers outside the cache, for prefetches and overflow
    staging: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    # a fitted predictor's directory (tracekit fit), for `learned`
    artefact: str | None = None
    parameters: dict[str, int | float | bool] = {}


class RoutingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`routing`: a policy that alters what the gates choose, given what is there and, beside it, its own parameters."""

    policy: str = "none"
    # a trace, or a file of counts (tracekit.popularity), for policies that rank experts by it, as `prune`
    profile: str | None = None
    parameters: dict[str, int | float | bool] = {}

    @property
    def alters(self) -> bool:
        """Whether anything but the gates chooses."""
        return self.policy != "none"


class WeightsPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`weights`: storage formats (engine.plan.weights); None keeps what the model has."""

    experts: str | None = None
    attention: str | None = None


class PrecisionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`precision`: each expert in two formats, and which copy serves a choice; a rule's own parameters stand beside.

    The high copies live in the plan's cache, the low ones in a cache of their own, under the same eviction policy.
    """

    # weights.experts by another name; None: as that says
    high: str | None = None
    # the format of the low copies
    low: str
    # of the low copies, as cache.capacity is of the high ones
    capacity: str
    # which copy a demanded expert needs: a name, or a user's own, "./mine.py:Mine" (policies.precision)
    rule: str = "miss-below"
    # a trace, or a file of counts (tracekit.popularity), for rules that rank experts by it
    profile: str | None = None
    parameters: dict[str, int | float | bool] = {}


class ComputePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`compute`: how a visit's experts are computed, and by what."""

    # each as it arrives, while others are still on their way; or all in one call, which begins when the last is there
    experts: Literal["each", "fused"] = "each"
    # what computes them: transformers' own operations, an expert at a time, or kernels over several at once, which also
    # expand quantised weights; None: what `experts` asks for, since only the latter can compute all in one call
    kernels: Literal["eager", "grouped"] | None = None

    def __post_init__(self) -> None:
        if self.experts == "fused" and self.kernels == "eager":
            raise ValueError('compute.kernels = "eager" computes one expert at a time: "fused" experts need "grouped"')

    @property
    def grouped(self) -> bool:
        """Whether kernels compute several experts at once."""
        return self.kernels == "grouped" or self.experts == "fused"


class ServePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`serve`: what device memory is kept for beside weights (None: what a trace's own requests need), and the host."""

    # tokens of each sequence's key-value cache
    context: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] | None = None
    # sequences at once
    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] | None = None
    # format of the key-value cache (bf16 if not given): fp16, fp8, q8_0, q4_0, ...
    kv_cache: str | None = None
    # where all experts lie: in host memory, or on disk behind what the host caches; None: as the machine's profile says
    host: Literal["memory", "disk"] | None = None
