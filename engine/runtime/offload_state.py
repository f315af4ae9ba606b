"""`OffloadState`: what serves one offloaded model: it decides, has experts copied and computed, and keeps the log."""

import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from engine.decisions.run import first_cache
from engine.runtime.clocks.device_time import DeviceTime, HostTime
from engine.runtime.clocks.timing import Clock, Timings
from engine.runtime.cpu_lane import CpuLane
from engine.runtime.domains import DomainWatch
from engine.runtime.experts.eager import compute, expert_forward, serve_experts
from engine.runtime.experts.visits import GroupedVisits
from engine.runtime.foresight import Foresight
from engine.runtime.links.queued_link import Link
from engine.runtime.links.thread_link import EmulatedLink
from engine.runtime.loader import Loader
from engine.runtime.pool import Pool
from engine.runtime.rewriting import Rewriting, Told
from engine.runtime.step_rows import StepRows, begins_requests, check_alone, requests_in, rows_of
from engine.runtime.storage.store import Store
from engine.runtime.tiered_visit import decide_tiered, weighs
from engine.runtime.visit_experts import VisitExperts
from engine.runtime.visit_routing import Choices, read_back, sort_by_expert
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.events import Events
from policies.ranking import rank_lookahead
from policies.rerouting import Altered
from policies.tiered_cache import AnyCache, TieredCache, cache_of
from policies.visit_order import weight_of
from tracekit.errors import ModelError, PlanError
from tracekit.recorder.seam import MoeLayer, router_logits

STATE = "_tracekit_offload"  # the attribute of an offloaded model that holds its state


class OffloadState:
    """What `offloaded(model)` returns.

    `spec` is what decides, `link`, `pool` and `store` are what moves, `emulated` the speed of a link that is
    only emulated (every result must say so) or None, `lane` the CPU's and `grouped` the kernels over several experts,
    if the plan wants them, `rewriting` what alters the gates' choices, if it wants that. `forced`, where set, chooses
    in place of the gates. One model, one thread, one CUDA stream at a time.

    Padding: positions that a 2-d attention mask marks as padding demand no expert, and their experts' output
    is zero. No other position attends to them, so this changes nothing that is kept; but products over fewer
    rows may round differently, so only unpadded batches equal the un-offloaded model bit for bit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[MoeLayer],
        spec: CacheSpec,
        store: Store,
        pool: Pool,
        link: Link,
        accumulate: Sequence[str],
        emulated: EmulatedLink | None,
        lane: CpuLane | None = None,
        grouped: GroupedVisits | None = None,
        rewriting: Rewriting | None = None,
    ) -> None:
        self.layers, self.spec, self.accumulate = tuple(layers), spec, tuple(accumulate)
        self.store, self.pool, self.link, self.lane, self.grouped = store, pool, link, lane, grouped
        self.device, self.emulated, self.rewriting = pool.device, emulated, rewriting
        self.top_k = max(layer.top_k for layer in layers)
        check_policies(spec)
        self.cache = first_cache(spec)
        self._low_base = len(layers) * spec.experts
        self._foresight = Foresight(self.cache, model, [layer.num_experts for layer in self.layers], self.top_k)
        self._watch = None if spec.domains is None else DomainWatch(spec.domains, spec.experts)
        self._rows = StepRows()
        self._loader = Loader(store, pool, link)
        self._forward = [expert_forward(layer.experts) for layer in layers]
        self._timed_by: Callable[[], DeviceTime] = HostTime
        self._clock = Clock(self._timed_by())
        self._events: list[Events] = []
        self._lookahead: dict[int, Tensor] = {}  # layer -> logits [tokens, experts] of the layer `distance` further on
        self._failure: str | None = None
        self.forced: Choices | None = None
        # However the model ends, forgotten or with the interpreter: no copy may run from memory that is given back.
        self._end = weakref.finalize(self, _end, link, store)
        self._hooks: list[RemovableHandle] = self._attach(model)
        self._fill()

    @property
    def log(self) -> Events:
        """Every decision so far, in order: exactly what `ExpertCache.visit` returned."""
        return Events.join(self._events)

    @property
    def altered(self) -> Altered | None:
        """What has become of the gates' choices so far; None where nothing alters them."""
        return None if self.rewriting is None else self.rewriting.altered

    @property
    def predicts(self) -> bool:
        """Whether a fitted predictor runs at each visit."""
        return self._foresight.works

    @property
    def timings(self) -> Timings:
        """When each step and visit ran."""
        return self._clock.timings()

    @property
    def bytes_loaded(self) -> dict[str, int]:
        """Bytes asked of the link: "load" (on demand, kept), "bypass" (on demand, not kept), "prefetch"; "admit" (kept,
        while the host computes)."""
        return dict(self._loader.bytes)

    @property
    def prefetches(self) -> dict[str, int]:
        """How many prefetches were "useful" (copied when demanded), "late" (on their way) and "wasted" (given up)."""
        fates = dict(self._loader.prefetches)
        fates["wasted"] += self._loader.unused if self.spec.wrap else 0  # for a step that never came
        return fates

    @property
    def expert_bytes(self) -> list[int]:
        """Bytes of one expert of each layer, as stored: what a load copies and what capacities in bytes count."""
        return [layout.bytes for layout in self.store.layouts]

    def reset(self) -> None:
        """Start again: an empty cache, log and clock. Also what makes a model usable after a failure."""
        self._loader.forget()
        if self.lane is not None:
            self.lane.forget()
        self.cache = first_cache(self.spec)
        self._clock = Clock(self._timed_by())
        self._events = []
        self._rows, self._failure = StepRows(), None
        self._lookahead.clear()
        self._foresight.reset()
        if self._watch is not None:
            self._watch.reset()
        if self.rewriting is not None:
            self.rewriting.reset()
        self._fill()

    def serve(self, domains: Sequence[str | None]) -> None:
        """Say of what domain the requests to come are, in order; None of one that has none (docs/placement.md).

        A plan that does not choose by label has no use for it. `reset` begins with the first of them again. Raises
        PlanError for a domain that the plan's placement has not.
        """
        if self._watch is not None and self.spec.domains is not None and self.spec.domains.detect is None:
            self._watch.serve(domains)

    def time_by(self, make: Callable[[], DeviceTime]) -> None:
        """Have `timings` made by such a clock from now on, a new one for each start. Starts again, as `reset`."""
        self._timed_by = make
        self.reset()

    def close(self) -> None:
        """End the copy thread and unpin memory. The model cannot run afterwards."""
        self._failure = "it has been closed"
        for hook in self._hooks:
            hook.remove()
        self._loader.forget()
        if self.lane is not None:
            self.lane.close()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """Copy the experts that are there before the first visit: what is pinned, and what a warm cache holds."""
        for key, slot in self.cache.held():
            source = self.store.slab(key)
            target = self.pool.slab(slot, source.numel())
            self.link.wait(*self.link.copies([(source, target, True)]))

    def visit(self, layer: int, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Serve one visit. hidden [tokens, hidden], index and weights [tokens, k]. Returns [tokens, hidden]."""
        self._check_running()
        try:
            if not torch.is_grad_enabled():
                return self._visit(layer, hidden, top_k_index, top_k_weights)
            # Weights elsewhere keep asking for gradients, since torch picks other kernels where none does.
            with torch.no_grad():
                return self._visit(layer, hidden, top_k_index, top_k_weights)
        except BaseException as error:
            # The cache believes that loads have happened which now may not.
            self._fail(error)
            raise

    def _check_running(self) -> None:
        if self._failure is not None:
            raise ModelError(f"the offloaded model cannot run: {self._failure}")

    def _fail(self, error: BaseException) -> None:
        self._failure = f"a visit failed ({type(error).__name__}: {error}); call offloaded(model).reset()"

    def _visit(self, layer: int, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if self.forced is not None:
            top_k_index, top_k_weights = self.forced.choice(layer, top_k_weights)
        altered = None if self.rewriting is None else self.rewriting.take()
        ids, weights, lookahead = altered or self._read_back(layer, top_k_index, top_k_weights)
        start = self._clock.mark()
        # Grouped kernels are told of the routing in a table of their own, which the host makes.
        device = hidden.device if self.grouped is None else torch.device("cpu")
        routing = sort_by_expert(ids, self.layers[layer].num_experts, device)
        hint, signal = self._read(layer, ids, weights, lookahead, routing.demand)
        lows: Collection[int] = ()
        if isinstance(self.cache, TieredCache):
            events, lows = decide_tiered(self.cache, layer, ids, weights, routing, hint, signal)
        else:
            tokens = [routing.count(expert) for expert in routing.demand] if self.spec.counts_tokens else ()
            gate = weight_of(ids, weights, routing.demand) if self._weighs_admission and weights is not None else ()
            events = self.cache.visit(layer, routing.demand, routing.recency, hint, signal, tokens, gate)
        self._events.append(events)
        base, layout, forward = layer * self.spec.experts, self.store.layouts[layer], self._forward[layer]
        if self.grouped is not None:
            out = self.grouped.visit(layer, base, self._loader, self._clock, events, routing, hidden, top_k_weights)
            self._clock.add_visit(layer, start)
            return out
        where = (base, layout, forward, lows, self._low_base)
        experts = VisitExperts(self._loader, self.pool, self.lane, self._clock, *where)
        order = experts.begin(layer, events, routing, hidden)
        out = compute(order, experts.compute, hidden, top_k_weights, routing, self.accumulate[layer])
        self._clock.add_visit(layer, start)
        return out

    def _read_back(self, layer: int, top_k_index: Tensor, top_k_weights: Tensor, own: Tensor | None = None) -> Told:
        """`own` logits [tokens, experts] come before those looked ahead to."""
        lookahead = self._lookahead.pop(layer, None)
        if lookahead is None and self._looks_ahead(layer):
            raise ModelError(f"the router of {self.layers[layer].name} was not called: its lookahead is unknown")
        if own is not None:
            parts = [own] if lookahead is None else [own, lookahead]
            lookahead = torch.cat([part.detach().to(torch.float16) for part in parts], dim=1)
        weighed = (
            self.rewriting is not None
            or self.cache.eviction_class.reads == "gate-weight"
            or "weights" in self._foresight.reads
            or self._weighs_admission
            or weighs(self.cache)
        )
        more = self._rows.pending()
        ids, weights, logits, columns = read_back(top_k_index, top_k_weights if weighed else None, lookahead, more)
        if more:
            self._rows.take(columns)
            self._clock.count_tokens(self._rows.tokens)
        ids, logits = self._rows.without_padding(ids, logits, self.layers[layer].num_experts)
        if self._watch is not None:
            self._watch.observe(layer, np.where(ids < self.layers[layer].num_experts, ids, self.spec.experts))
        return ids, weights, logits

    @property
    def _weighs_admission(self) -> bool:
        return self.cache.admission_class.reads == "gate-share"

    @property
    def lookahead_distance(self) -> int | None:
        """How many MoE layers ahead a gate is asked, if any is."""
        asked = self.cache.prefetch_class.reads == "lookahead" or "lookahead" in self._foresight.reads
        return self.spec.distance if asked else None

    def _looks_ahead(self, layer: int) -> bool:
        return self.lookahead_distance is not None and layer + self.lookahead_distance < len(self.layers)

    def _read(
        self,
        layer: int,
        ids: np.ndarray,
        weights: np.ndarray | None,
        lookahead: np.ndarray | None,
        demand: list[int],
    ) -> tuple[list[int], Sequence[float]]:
        """What the prefetcher and the eviction policy read at this visit."""
        hint: list[int] | None = None
        signal: Sequence[float] | None = None
        if self._foresight.works:
            hint, signal = self._foresight.visit(layer, ids, weights, lookahead, self._token_ids(len(ids)), demand)
        if hint is None:
            hint = self._hint(layer, lookahead)
        if signal is None:
            gate = weights is not None and self.cache.eviction_class.reads == "gate-weight"
            signal = weight_of(ids, weights, demand) if gate and weights is not None else ()
        return hint, signal

    def _token_ids(self, tokens: int) -> np.ndarray:
        """Vocabulary ids of this step's rows, -1 where the model was given embeddings."""
        if self.forced is not None:
            return self.forced.token_ids
        return np.full(tokens, -1) if self._rows.ids is None else self._rows.ids

    def _hint(self, layer: int, lookahead: np.ndarray | None) -> list[int]:
        """The experts of layer `layer + distance`, as its gate ranks them for this visit's tokens."""
        if lookahead is None:
            return []
        starts = np.array([0, len(lookahead)], np.int64)
        ranked = rank_lookahead(lookahead, starts, self.top_k, self.spec.count)[0]
        return [expert for expert in ranked.tolist() if expert >= 0]

    def _attach(self, model: nn.Module) -> list[RemovableHandle]:
        for layer in self.layers:
            serve_experts(layer.experts, partial(self.visit, layer.index))
        hooks = [
            model.register_forward_pre_hook(self._begin_step, with_kwargs=True),
            model.register_forward_hook(self._end_step, always_call=True),
        ]
        if self.rewriting is not None:
            hooks += self.rewriting.attach(self._read_back, self._there, self._fail)
        for layer in filter(lambda layer: self._looks_ahead(layer.index), self.layers):
            hook = partial(self._look_ahead, layer.index)
            hooks.append(layer.router.register_forward_pre_hook(hook, with_kwargs=True))
        return hooks

    def _look_ahead(self, layer: int, router: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        hidden = next(iter((*args, *kwargs.values())))
        # Computed even if a trace says what to foresee: it takes time.
        logits = router_logits(self.layers[layer + self.spec.distance], hidden)
        self._lookahead[layer] = logits if self.forced is None else self.forced.lookahead(layer, self.spec.distance)

    def _there(self, layer: int) -> np.ndarray:
        """Which of a layer's experts are there: not those of 0, [experts]."""
        self._check_running()
        if self.forced is not None:
            raise ModelError("a trace chooses in place of the gates: give a plan without a routing policy")
        return self.cache.there(layer)

    def _begin_step(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        ids = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
        ids = args[0] if ids is None and args else ids
        with_ids = self._foresight.works and self.forced is None
        self._rows = rows_of(ids, kwargs.get("attention_mask"), with_ids=with_ids)
        begins = begins_requests(kwargs.get("past_key_values"))
        if self.spec.reset:
            check_alone(ids)
            if begins:
                self.cache.restart()
                self._foresight.reset()
                if self.rewriting is not None:
                    self.rewriting.restart()
        if self._watch is not None:
            kept = self._watch.begin(requests_in(ids), self._rows.tokens, begins=begins)
            if kept is not None and isinstance(self.cache, ExpertCache):
                self.cache.switch(kept)
        self._clock.begin_step(self._rows.tokens)

    def _end_step(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the host waits for the next token's id anyway
        self._clock.end_step()


def _end(link: Link, store: Store) -> None:
    link.close()
    store.close()


def offloaded(model: nn.Module) -> OffloadState:
    """The state of an offloaded model. ModelError for any other."""
    state = getattr(model, STATE, None)
    if not isinstance(state, OffloadState):
        raise ModelError(f"this {type(model).__name__} is not offloaded: call offload(model, plan) first")
    return state


def check_policies(spec: CacheSpec) -> AnyCache:
    """An empty cache that decides by `spec`. PlanError for policies that read what hardware cannot know."""
    cache = cache_of(spec)
    for kind, name, policy, known in (
        ("eviction policy", spec.eviction, cache.eviction_class, ("nothing", "gate-weight", "predicted-use")),
        ("prefetcher", spec.prefetch, cache.prefetch_class, ("nothing", "lookahead", "predicted")),
    ):
        if policy.reads not in known:
            future = policy.reads in ("next-use", "future")
            why = (
                "reads the future: it is a bound for replay" if future else f"reads {policy.reads!r}: not yet supported"
            )
            raise PlanError(f"{kind} {name!r} {why}, and cannot run in the engine")
    if cache.prefetch_class.reads in ("lookahead", "predicted") and spec.distance >= spec.layers:
        raise PlanError(f"prefetch distance {spec.distance} is impossible: the model has {spec.layers} MoE layers")
    return cache
