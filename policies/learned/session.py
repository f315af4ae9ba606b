"""A predictor at work, visit by visit: what an engine calls. It knows the past and this visit, and nothing else."""

from collections.abc import Callable, Mapping

import numpy as np

from policies.learned.arithmetic import Array
from policies.learned.artefact import Artefact
from policies.learned.features import RATES, assemble, in_units, many_hot, padded, remember, remembered, share_of


class Session:
    """Scores of every visit in turn. Layers come in order, layer 0 begins a step.

    Arrays may be numpy's or torch's, on any device, as long as it is one kind throughout; `zeros` makes one of a shape,
    float64, and `tensors` are the artefact's as that kind.
    """

    def __init__(
        self,
        artefact: Artefact,
        tensors: Mapping[str, Array] | None = None,
        zeros: Callable[[tuple[int, ...]], Array] = np.zeros,
    ) -> None:
        self.card, self._zeros = artefact.card, zeros
        self._tensors = artefact.tensors if tensors is None else tensors
        experts = self.card.num_experts
        self._memory = [zeros((len(RATES), experts)) for _ in self.card.experts_per_layer]
        self._chosen: Array = None
        self._state: Array = None

    def visit(
        self, layer: int, ids: Array, weights: Array | None, lookahead: Array | None, tokens: Array
    ) -> Array | None:
        """Scores in units: [tokens, experts] of the layer ahead, NaN for tokens that chose nothing.

        None where there is no layer so far ahead.
        For eviction [experts] of this layer. ids [tokens, k], those of `experts_per_layer` or more are none; weights
        [tokens, k] and lookahead [tokens, experts] in half precision, if the predictor reads them; tokens [tokens].
        """
        card = self.card
        rows, experts, target = len(ids), card.num_experts, layer + card.distance
        chosen = many_hot(ids, None, experts)
        real = (ids < experts).any(1)  # [tokens]
        count = int(real.sum())
        share = share_of(chosen.sum(0), count)
        earlier = self._chosen if layer and self._chosen is not None else self._zeros((rows, experts))
        if card.own_layer:
            self._memory[layer] = remember(self._memory[layer], share)
        scores = None
        if target < len(self._memory):
            sources: dict[str, Callable[[], Array]] = {
                "recent": lambda: remembered(self._memory[target]).reshape(-1),
                "chosen": lambda: chosen,
                "weights": lambda: many_hot(ids, in_units(weights), experts),
                "earlier": lambda: earlier,
                "lookahead": lambda: padded(lookahead, experts),
            }
            known = {block: sources[block]() for block in card.blocks}
            if card.own_layer:
                for block in set(known) - {"recent"}:
                    known[block] = share_of(known[block].sum(0), count)
            features = assemble(card.blocks, known, 1 if card.own_layer else rows, chosen)
            scores = self._scores(layer, features, tokens)
            if card.own_layer:
                scores = scores[0]
            else:
                scores[~real] = float("nan")
        if not card.own_layer:
            self._memory[layer] = remember(self._memory[layer], share)
        self._chosen = chosen
        return scores

    def _scores(self, layer: int, features: Array, tokens: Array) -> Array:
        values = {"x": features, "token": tokens}
        size = self.card.program.state
        if size:
            fresh = layer == 0 or self._state is None
            values["state"] = self._zeros((len(features), size)) if fresh else self._state
        outputs = self.card.program.run(self._tensors, layer, values)
        if size:
            self._state = outputs[1]
        return outputs[0]
