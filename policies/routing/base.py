"""The contract of a routing policy."""

from typing import ClassVar

import numpy as np

from policies.fields import Policy, per_expert


class RoutingPolicy(Policy):
    """Alters what the gate chose, given which experts are there: it makes a model faster and another model.

    Before a visit is decided, `rewrite` is called for each of its tokens, in order. What it leaves in `ids` and
    `weights` is what the experts compute, what the cache is asked for, and what a recorded trace holds.

    `reads` declares what it is told: "weights" (the choice and its weights), "logits" (also the gate's logits, rounded
    to half precision as traces hold them) or "scores" (also what every expert would weigh); what it does not read is
    empty. With "nothing" it is never called.

    `looks` declares whether it looks at what is there: without, `present` is all zeros, and what it makes of a model
    does not depend on the cache.

    One that `needs_profile` finds in `place`, at `layer * self.experts + expert`, each expert's place in its layer by
    what tokens gave it in the plan's `routing.profile`: 0 for the one that weighed most.
    """

    READABLE: ClassVar[tuple[str, ...]] = ("nothing", "weights", "logits", "scores")
    reads: ClassVar[str] = "nothing"
    looks: ClassVar[bool] = True
    needs_profile: ClassVar[bool] = False

    place = per_expert(np.int64, -1)

    def rewrite(
        self,
        layer: int,
        ids: np.ndarray,
        weights: np.ndarray,
        logits: np.ndarray,
        scores: np.ndarray,
        present: np.ndarray,
    ) -> None:
        """One token's choice, rewritten in place.

        Args:
            layer: the MoE layer.
            ids: i64 [k], the experts that the gate chose, 65535 (`tracekit.rows.UNUSED`) for none. To drop a choice
                write that; an expert may stand there once.
            weights: f64 [k], their weights, as in half precision; 0 where there is no choice.
            logits: f64 [experts], to be read only.
            scores: f64 [experts], to be read only: the weights that the gate would have given, in proportion to its
                score function of the logits; of those chosen, exactly their weights.
            present: u8 [experts], to be read only: 1 for an expert that is there (resident or loaded ahead), 2 for one
                that is not and that an earlier token of the visit has been given, so that it is copied anyway.
        """
