"""What is to be measured: a model, plans for it, and the way text is read; checked before any weight is."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from engine.decisions.routing_places import routing_places
from engine.decisions.spec import cache_spec
from engine.plan.misses import AdmissionPlan, MissPlan
from engine.plan.plan import Plan
from engine.plan.tables import (
    CachePlan,
    ComputePlan,
    EvictionPlan,
    PlacementPlan,
    PrefetchPlan,
    RoutingPlan,
    WeightsPlan,
)
from engine.runtime.memory import dtype_of, expert_bytes, fit_checkpoint
from engine.runtime.offload import offload
from engine.runtime.offload_state import check_policies, offloaded
from engine.runtime.storage.slab_files import fingerprint
from experiments.quality.text import Tokens
from policies.rerouting import Rerouter, RoutingSpec
from tracekit.errors import ModelError, PlanError
from tracekit.popularity import profile_digest
from tracekit.recorder.describe import config_digest
from tracekit.recorder.generation import UNDIVIDED
from tracekit.recorder.layers import family, is_encoder_decoder
from tracekit.recorder.models import (
    check_experts,
    empty_model,
    find_model,
    load_config,
    parse_device,
    parse_dtype,
)
from tracekit.recorder.seam import moe_layers
from tracekit.version import own_version

MOST_WINDOW = 2048
"""Tokens of a window where nothing else is said and the model reads that many."""
PASS_BYTES = 64 << 20
"""Of a pass's logits in 32 bits, where nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How quality is measured; None: what suits the model.

    `window`: tokens read together, without what lies before them; by default the model's positions, 2048 at most.
    `chunk`: tokens of a pass, each a step of the engine; 1 is as in decoding; by default what 64 MiB of logits hold.
    `scratch`: bytes on disk for the unaltered model's logits (4 GiB). `memory`: bytes of device memory, as `offload`
    takes it. `level`: of intervals.
    """

    dtype: str = "auto"
    device: str = "auto"
    memory: int | None = None
    window: int | None = None
    chunk: int | None = None
    scratch: int | None = None
    level: float = 0.95


class Work:
    """A checkpoint and the plans it is to be measured under, by name; `unaltered` is what they are compared with.

    Raises TracekitError for what cannot be measured here.
    """

    def __init__(
        self, model: str | Path, plans: Mapping[str, Plan], options: Options, say: Callable[[str], object]
    ) -> None:
        self.options, self.plans, self._say = options, dict(plans), say
        self.unaltered = _unaltered(next(iter(plans.values()), Plan("auto")))
        self.directory = find_model(model)
        self.config: PreTrainedConfig = load_config(self.directory)
        self.device = str(parse_device(options.device))
        self.dtype = dtype_of(self.config, parse_dtype(options.dtype))
        check_experts(self.config, self.directory)
        self.empty: PreTrainedModel = empty_model(self.config, self.directory, self.dtype)
        if is_encoder_decoder(self.empty) or not self.empty.can_generate():
            raise ModelError(f"{self.directory} predicts no text token by token: there is nothing to measure")
        text = self.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        positions = getattr(text, "max_position_embeddings", None) or MOST_WINDOW
        self.window = options.window or min(positions, MOST_WINDOW)
        at_once = max(1, PASS_BYTES // (4 * self.vocabulary))
        chunk = options.chunk or (self.window if family(self.empty) in UNDIVIDED else at_once)
        self.chunk = min(chunk, self.window)
        for plan in (self.unaltered, *self.plans.values()):
            self._check(plan)
        self._profiles = {path: profile_digest(Path(path)) for plan in plans.values() for path in profiles_of(plan)}
        weights = fingerprint(self.directory)
        self.digest = hashlib.sha256(f"{config_digest(self.config.to_dict())} {weights}".encode()).hexdigest()

    def _check(self, plan: Plan) -> None:
        """Raise what would keep a plan from running here."""
        if plan.miss.where != "copy":
            raise PlanError('quality does not depend on who computes: measure with miss.where = "copy"')
        fitted = fit_checkpoint(
            self.directory,
            plan,
            dtype=self.options.dtype,
            device=self.device,
            limit=self.options.memory,
            quantising=True,
        )
        experts = [layer.num_experts for layer in moe_layers(self.empty)]
        spec = cache_spec(experts, self.expert_bytes(plan), fitted)
        check_policies(spec)
        # What its gates make of logits is known once the model is loaded; all else of the policy can be checked now.
        places = routing_places(plan.routing, experts)
        Rerouter(RoutingSpec(tuple(experts), plan.routing.policy, plan.routing.parameters, "softmax", places), spec)

    def expert_bytes(self, plan: Plan) -> list[int]:
        """Bytes of one expert of each layer, as the plan stores it."""
        return expert_bytes(moe_layers(self.empty), plan.formats)

    def key(self, plan: Plan, tokens: Tokens) -> str:
        """A digest of all that the figures of a document under a plan follow from."""
        meaning = {
            "version": own_version(),
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
            "model": self.digest,
            "dtype": str(self.dtype),
            "device": torch.device(self.device).type,
            "window": self.window,
            "chunk": self.chunk,
            "text": tokens.document.digest,
            "ids": hashlib.sha256(tokens.ids.tobytes()).hexdigest(),
            # With whatever cache it ran, the unaltered model is the same.
            "plan": None if plan is self.unaltered else plan.to_dict(),
            "profiles": [] if plan is self.unaltered else [self._profiles[path] for path in profiles_of(plan)],
        }
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()

    @contextmanager
    def loaded(self, plan: Plan) -> Iterator[PreTrainedModel]:
        """The model under a plan. What it holds can be given back once the caller has let go of it (`release`)."""
        options = self.options
        model = offload(
            self.directory, plan, dtype=options.dtype, device=self.device, memory=options.memory, say=self._say
        )
        with offloaded(model):
            yield model


def profiles_of(plan: Plan) -> list[str]:
    """The traces, or counts, that tables of the plan name as their profile, in order."""
    return [str(table["profile"]) for table in plan.to_dict().values() if "profile" in table]


def _unaltered(like: Plan) -> Plan:
    """The model as it is stored, through the engine, with a cache as large as that of `like`."""
    return like.replace(
        cache=CachePlan(capacity=like.cache.capacity),
        placement=PlacementPlan(),
        eviction=EvictionPlan(),
        prefetch=PrefetchPlan(),
        routing=RoutingPlan(),
        weights=WeightsPlan(),
        precision=None,
        compute=ComputePlan(),
        miss=MissPlan(),
        admission=AdmissionPlan(),
    )
