"""`Foresight`: what a plan's fitted predictors say at each visit, from what has been read back of the gates.

They run on the host, where the gate's choice has just arrived and the decisions are made: for the few rows of a decode
step that takes less than launching their operations on a device would. `policies.learned.session` takes arrays on
either.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from engine.decisions.foresight import Ranking, estimator_of, predictor_of
from policies.learned.session import Session
from policies.learned.verdict import steps_until
from policies.tiered_cache import AnyCache
from tracekit.errors import PlanError
from tracekit.recorder.describe import config_digest, identity
from tracekit.rows import UNUSED


class Foresight:
    """Sessions of the predictors that a cache's policies read; there may be none."""

    def __init__(self, cache: AnyCache, model: PreTrainedModel, experts_per_layer: list[int], top_k: int) -> None:
        spec = cache.spec
        self._predictor = predictor_of(spec) if cache.prefetch_class.reads == "predicted" else None
        self._estimator = estimator_of(spec) if cache.eviction_class.reads == "predicted-use" else None
        self._ranking = Ranking(spec, top_k)
        self._experts_per_layer = experts_per_layer
        used = [artefact for artefact in (self._predictor, self._estimator) if artefact is not None]
        for artefact in used:
            artefact.check_layers(self._experts_per_layer)
            name, config = identity(model)[0], config_digest(model.config.to_dict())
            if not artefact.is_of(name, config, top_k):
                raise PlanError(
                    f"predictor {artefact.path} was fitted on {artefact.card.fitted.model}, the model is "
                    f"{type(model).__name__} {name} (top-{top_k}): fit one on its routing"
                )
        self.works = bool(used)
        self.reads = {block for artefact in used for block in artefact.card.blocks}
        self.reset()

    def reset(self) -> None:
        """Forget every step."""
        self._prefetch_session = None if self._predictor is None else Session(self._predictor)
        self._reuse_session = None if self._estimator is None else Session(self._estimator)

    def visit(
        self,
        layer: int,
        ids: np.ndarray,
        weights: np.ndarray | None,
        lookahead: np.ndarray | None,
        tokens: np.ndarray,
        demand: Sequence[int],
    ) -> tuple[list[int] | None, list[float] | None]:
        """Ranked experts of the layer ahead, and steps until each demanded expert's next use; None if nothing reads it.

        ids u16 [tokens, k], weights and lookahead f16 as read back; tokens [tokens] are vocabulary ids, -1 if unknown.
        """
        own = self._experts_per_layer[layer]
        ids = np.where(ids < own, ids, UNUSED)
        hint = signal = None
        if self._prefetch_session is not None:
            hint = []
            scores = self._prefetch_session.visit(layer, ids, weights, lookahead, tokens)
            if scores is not None:
                target = self._experts_per_layer[layer + self._prefetch_session.card.distance]
                ranked = self._ranking.of(scores[:, :target], np.array([0, len(scores)], np.int64))[0]
                hint = [expert for expert in ranked.tolist() if expert >= 0]
        if self._reuse_session is not None:
            scores = self._reuse_session.visit(layer, ids, weights, None, tokens)
            assert scores is not None  # of its own layer there always are
            steps = steps_until(scores)
            signal = [float(steps[expert]) for expert in demand]
        return hint, signal
