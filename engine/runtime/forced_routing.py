"""Forced routing: a recorded trace chooses the experts of a running model, in place of its gates.

A model's time depends on sizes and on which experts are demanded. Random weights of a real model's shapes, routed as
that model was, copy the same bytes and run the same kernels in the same order.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from engine.runtime.offload_state import offloaded
from tracekit.demand import step_starts
from tracekit.errors import ModelError, PlanError
from tracekit.rows import UNUSED
from tracekit.trace import Trace


class ForcedRouting:
    """The `Choices` of a trace, in place of what the running model's gates choose.

    `begin(step)` prepares a step, before its forward pass and its clock begin; `choice` and `lookahead` are then
    asked for layer by layer. PlanError for a trace that a model with these layers cannot have made.
    """

    def __init__(self, trace: Trace, layers: int, experts: int, top_k: int, distance: int | None) -> None:
        manifest = trace.manifest
        theirs = (trace.layers, trace.num_experts, trace.top_k)
        if theirs[:2] != (layers, experts) or trace.top_k > top_k:
            raise PlanError(
                f"{trace.path} routes top-{theirs[2]} of {theirs[1]} experts in {theirs[0]} MoE layers, the model "
                f"top-{top_k} of {experts} in {layers}: give a trace of a model of these shapes"
            )
        self.trace, self.top_k = trace, top_k
        self.starts = step_starts(trace.step)
        self.steps = len(self.starts) - 1
        requests = trace.request
        if any(len(np.unique(requests[a:b])) > 1 for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)):
            raise PlanError(
                f"{trace.path} has steps of several requests: record with --batch-size 1 to force its routing"
            )
        self._lookahead = None if distance is None else f"lookahead-{distance}"
        if self._lookahead is not None and self._lookahead not in trace.kinds:
            raise PlanError(
                f"{trace.path} holds no lookahead at distance {distance}, which the plan's prefetcher reads"
            )
        self._limits = manifest.experts_per_layer
        self._ids = self._weights = self._logits = torch.empty(0)
        self.token_ids = np.zeros(0, np.int32)  # of this step, as recorded

    def begin(self, step: int, device: torch.device) -> None:
        """Bring a step's choices to the device."""
        rows = slice(int(self.starts[step]), int(self.starts[step + 1]))
        self.token_ids = self.trace.token_id[rows]
        chosen = self.trace.experts[rows].astype(np.int64)  # [tokens, layers, k]
        known = self.trace.weights
        weights = np.full(chosen.shape, 1 / chosen.shape[2], np.float32) if known is None else known[rows]
        weights = np.where(chosen == UNUSED, 0, weights).astype(np.float32)
        missing = self.top_k - chosen.shape[2]
        pad = ((0, 0), (0, 0), (0, missing))
        chosen, weights = np.pad(chosen, pad, constant_values=UNUSED), np.pad(weights, pad)
        self._ids = torch.from_numpy(np.ascontiguousarray(chosen.transpose(1, 0, 2))).to(device)
        self._weights = torch.from_numpy(np.ascontiguousarray(weights.transpose(1, 0, 2))).to(device)
        if self._lookahead is not None:
            foreseen = self.trace.dense_of(self._lookahead, rows.start, rows.stop)
            assert foreseen is not None
            ahead = np.array(foreseen.transpose(1, 0, 2), order="C")  # a copy: what is read is read-only
            self._logits = torch.from_numpy(ahead).to(device)

    def choice(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Ids i64 and weights [tokens, k] of this step at a layer; weights in the type of `like`."""
        return self._ids[layer], self._weights[layer].to(like.dtype)

    def lookahead(self, layer: int, distance: int) -> Tensor:
        """Logits f16 [tokens, experts] of the layer `distance` after `layer`, foreseen at `layer`."""
        return self._logits[layer][:, : self._limits[layer + distance]]

    def tokens(self, step: int) -> tuple[int, int, int]:
        """(request, position of the first token, tokens) of a step."""
        first, last = int(self.starts[step]), int(self.starts[step + 1])
        return int(self.trace.request[first]), int(self.trace.position[first]), last - first


def forced_steps(model: PreTrainedModel, forced: ForcedRouting, steps: int, seed: int) -> Iterator[int]:
    """Run the first `steps` steps of a trace through an offloaded model, on random tokens; yields each one done."""
    state = offloaded(model)
    rng = np.random.default_rng(seed)
    vocabulary = int(model.config.get_text_config().vocab_size)
    state.forced = forced
    caches: dict[int, Cache] = {}
    try:
        for step in range(steps):
            request, position, tokens = forced.tokens(step)
            if position == 0:
                caches = {}  # recorded one after the other
            ids = torch.from_numpy(rng.integers(0, vocabulary, (1, tokens))).to(state.device)
            where = torch.arange(position, position + tokens, device=state.device)[None]
            forced.begin(step, state.device)
            with torch.inference_mode():
                output = model(
                    input_ids=ids,
                    position_ids=where,
                    past_key_values=caches.get(request),
                    use_cache=True,
                    logits_to_keep=1,
                )
            if output.past_key_values is None:
                raise ModelError(f"{type(model).__name__} returned no key-value cache")
            caches[request] = output.past_key_values
            yield step
    finally:
        state.forced = None
