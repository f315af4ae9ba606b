"""What fitted predictors say of a whole trace, piece by piece: hints for prefetching, signals for eviction.

The same numbers as `policies.learned.session.Session` finds visit by visit in the engine.
"""

import numpy as np

from policies.cache_spec import CacheSpec
from policies.learned.artefact import Artefact, load_artefact
from policies.learned.features import RATES, Piece
from policies.learned.verdict import least_score, steps_until
from policies.ranking import rank_scores
from tracekit.demand import Demand, step_starts
from tracekit.errors import PlanError
from tracekit.trace import Trace


class Scores:
    """Scores of a fitted predictor, layer by layer, for consecutive pieces of a trace.

    Raises PolicyError when the predictor is not for this trace's model, PlanError when the trace lacks what it reads.
    """

    def __init__(self, trace: Trace, artefact: Artefact) -> None:
        artefact.check_model(trace.manifest, str(trace.path))
        self.trace, self.card, self.tensors = trace, artefact.card, artefact.tensors
        self.starts = step_starts(trace.step)
        self._memory = np.zeros((trace.layers, len(RATES), trace.num_experts))
        self._lookahead = f"lookahead-{self.card.distance}" if "lookahead" in self.card.blocks else None
        if self._lookahead is not None and self._lookahead not in trace.kinds:
            raise PlanError(
                f"predictor {artefact.path} reads lookahead logits at distance {self.card.distance}, which "
                f"{trace.path} does not hold: record with --lookahead {self.card.distance}, or fit one that does not"
            )
        if "weights" in self.card.blocks and not trace.has_weights:
            raise PlanError(f"predictor {artefact.path} reads gate weights, which {trace.path} does not hold")
        by_token = any("token" in operation.inputs for operation in self.card.program.operations)
        if by_token and not (trace.token_id >= 0).any():
            raise PlanError(f"predictor {artefact.path} reads token ids, which {trace.path} does not hold")

    def forget(self) -> None:
        """Nothing is remembered of earlier steps."""
        self._memory = np.zeros_like(self._memory)

    def piece(self, first_step: int, last_step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Scores of these steps, [rows, experts] of each source layer (for eviction [steps, experts]), and row starts.

        Rows that chose nothing are NaN. Pieces come in order.
        """
        card, trace = self.card, self.trace
        starts = self.starts[first_step : last_step + 1]
        rows = slice(int(starts[0]), int(starts[-1]))
        weights = trace.weights_of(rows.start, rows.stop) if "weights" in card.blocks else None
        foreseen = None if self._lookahead is None else trace.dense_of(self._lookahead, rows.start, rows.stop)

        def ahead(layer: int) -> np.ndarray:
            assert foreseen is not None
            return foreseen[:, layer, : card.experts_per_layer[layer + card.distance]]

        experts = trace.experts_of(rows.start, rows.stop)
        piece = Piece(
            card.blocks, card.own_layer, self._memory, experts, weights, ahead, starts - starts[0], trace.num_experts
        )
        self._memory = piece.memory
        token = trace.token_id[rows].astype(np.int64)
        size = card.program.state
        state = np.zeros((rows.stop - rows.start, size))
        found = []
        for layer in range(card.sources):
            values = {"x": piece.features(layer, layer + card.distance), "token": token, "state": state}
            outputs = card.program.run(self.tensors, layer, values)
            state = outputs[1] if size else state
            scores = outputs[0]
            if not card.own_layer:
                scores[~piece.real[layer]] = np.nan
            found.append(scores)
        return found, starts - starts[0]


class Foresight:
    """Ranked keys of the target layer for each visit, as the plan's predictor ranks them."""

    def __init__(self, trace: Trace, spec: CacheSpec) -> None:
        self.scores, self.ranking = Scores(trace, predictor_of(spec)), Ranking(spec, trace.top_k)

    def hints(self, demand: Demand) -> np.ndarray:
        """i32 [steps, layers, count], padded with -1."""
        card, ranking = self.scores.card, self.ranking
        hints = np.full((demand.steps, demand.layers, ranking.count), -1, np.int32)
        found, starts = self.scores.piece(demand.first_step, demand.first_step + demand.steps)
        for layer, scores in enumerate(found):
            target = layer + card.distance
            ranked = ranking.of(scores[:, : card.experts_per_layer[target]], starts)
            hints[:, layer] = np.where(ranked >= 0, ranked + target * demand.experts, -1)
        return hints


class Ranking:
    """How scores become suggestions; the same in the engine."""

    def __init__(self, spec: CacheSpec, top_k: int) -> None:
        self.count = min(spec.count, spec.experts)
        self.picks = max(top_k, self.count)
        self.least = least_score(float((spec.prefetch_parameters or {}).get("least", 0.0)))

    def of(self, scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Ranked experts i32 [visits, count] from scores [tokens, experts] of one layer's visits."""
        return rank_scores(scores, starts, self.picks, self.count, self.least)


class ReuseEstimate:
    """In how many steps each demanded expert will be demanded again, as the plan's predictor expects."""

    def __init__(self, trace: Trace, spec: CacheSpec) -> None:
        self.scores = Scores(trace, estimator_of(spec))

    def signal(self, demand: Demand) -> tuple[np.ndarray, np.ndarray]:
        """f64 per lookup, in order of `demand.keys` and of `demand.recency`."""
        found, _ = self.scores.piece(demand.first_step, demand.first_step + demand.steps)
        steps = steps_until(np.stack(found, axis=1)).reshape(demand.visits, demand.experts)
        visit = np.repeat(np.arange(demand.visits), np.diff(demand.start))
        return steps[visit, demand.keys % demand.experts], steps[visit, demand.recency % demand.experts]


def predictor_of(spec: CacheSpec) -> Artefact:
    """The predictor that a cache prefetches by. Raises PolicyError or PlanError when it is not for this cache."""
    assert spec.predictor is not None
    artefact = load_artefact(spec.predictor, "prefetch")
    if artefact.card.distance != spec.distance:
        raise PlanError(
            f"predictor {artefact.path} looks {artefact.card.distance} MoE layers ahead, prefetch.distance is "
            f"{spec.distance}: make them agree"
        )
    return artefact


def estimator_of(spec: CacheSpec) -> Artefact:
    """The predictor that a cache evicts by. Raises PolicyError."""
    assert spec.estimator is not None
    return load_artefact(spec.estimator, "eviction")
