"""The predictors that there are, as torch modules of one source layer each, and the contract of a user's own.

A module is made of what `experiments.fit.export` can make exact: Linear, Embedding, ReLU, clamp, sums, parts and joins
of columns. Its numbers are those of training; what serves is its rounding to whole numbers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from policies.learned.features import width


@dataclass(frozen=True, slots=True)
class Shape:
    """What a module is made for. `blocks` are its features' names; `tokens` the rows of an embedding, 0 for unknown."""

    blocks: tuple[str, ...]
    experts: int
    tokens: int

    @property
    def features(self) -> int:
        """Columns of x."""
        return sum(width(block, self.experts) for block in self.blocks)

    def columns(self, block: str) -> slice:
        """Where a block stands among them."""
        first = sum(width(other, self.experts) for other in self.blocks[: self.blocks.index(block)])
        return slice(first, first + width(block, self.experts))


class Predictor(nn.Module):
    """Base of predictors: `forward(x)` gives log odds [rows, experts] of the experts of the layer ahead.

    x [rows, features] holds `blocks` side by side (`policies.learned.features`). `forward` may also name `token`
    [rows], rows of an embedding, and `state` [rows, `state`], zero at the first layer; then it returns (scores, next
    state). For eviction (`purpose`) rows are visits, and scores log2 of the steps until each expert's next use.

    `begin` may look at the examples before training, which `epochs = 0` leaves out. Everything else that `__init__`
    takes beside the shape is a hyperparameter with a default.
    """

    purpose: ClassVar[str] = "prefetch"
    blocks: ClassVar[tuple[str, ...]] = ("recent", "chosen", "weights", "lookahead")
    state: ClassVar[int] = 0
    epochs: ClassVar[int] = 12

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        """Start from what examples say at once: x [n, features], token [n], wanted and counts [n, experts]."""


class Linear(Predictor):
    """Logistic regression on recent routing, this layer's choice, its weights and the lookahead's logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.scores = nn.Linear(shape.features, shape.experts)

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        start_simple(self.scores, wanted, counts, shape)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(x)
        return scores


class Routing(Linear):
    """The same without lookahead or weights: what any trace holds."""

    blocks = ("recent", "chosen", "earlier")


class Mlp(Linear):
    """A small multi-layer perceptron beside the regression: the job of ProMoE's predictors (arXiv 2410.22134)."""

    def __init__(self, shape: Shape, hidden: int = 64) -> None:
        super().__init__(shape)
        self.inner = nn.Linear(shape.features, hidden)
        self.outer = nn.Linear(hidden, shape.experts)

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        super().begin(x, token, wanted, counts, shape)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        more: Tensor = self.outer(torch.relu(self.inner(x)))
        return super().forward(x) + more


class Recurrent(Predictor):
    """A state handed from layer to layer of a step: MoE-Beyond's job (arXiv 2508.17137) at a fraction of its size."""

    blocks = ("recent", "chosen", "weights", "lookahead")
    state = 32

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.scores = nn.Linear(shape.features, shape.experts)
        self.inward = nn.Linear(shape.features, self.state)
        self.onward = nn.Linear(self.state, self.state)
        self.outward = nn.Linear(self.state, shape.experts)

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        start_simple(self.scores, wanted, counts, shape)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.clamp(self.inward(x) + self.onward(state), -1.0, 1.0)
        return self.scores(x) + self.outward(state), state


class TokenPopularity(Predictor):
    """How often each expert went with the token at hand: counted, not trained."""

    blocks = ()
    epochs = 0

    def __init__(self, shape: Shape, worth: float = 4.0) -> None:
        super().__init__()
        self.worth = worth  # of the layer's popularity, in occurrences of the token
        self.odds = nn.Embedding(shape.tokens, shape.experts)

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        seen, rows = wanted * counts, shape.tokens
        overall = (seen.sum(0) + 0.5) / (counts.sum(0) + 1)
        chosen = torch.zeros(rows, shape.experts).index_add_(0, token, seen)
        shown = torch.zeros(rows, shape.experts).index_add_(0, token, counts.float())
        share = (chosen + self.worth * overall) / (shown + self.worth)
        share[0] = overall
        self.odds.weight.data = torch.logit(share, 1e-4)

    def forward(self, token: Tensor) -> Tensor:
        odds: Tensor = self.odds(token)
        return odds


class ReuseDistance(Mlp):
    """Regression of the steps until an expert's next use: the job of CECAR's and FlashMoE's feed-forward nets."""

    purpose = "eviction"
    blocks: ClassVar[tuple[str, ...]] = ("recent", "chosen", "weights")

    def __init__(self, shape: Shape, hidden: int = 32) -> None:
        super().__init__(shape, hidden)

    def begin(self, x: Tensor, token: Tensor, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
        nn.init.zeros_(self.scores.weight)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.scores.bias.data = (wanted * counts).sum(0) / counts.sum(0).clamp(min=1)


class ReuseRouting(ReuseDistance):
    """The same without gate weights: what any trace holds."""

    blocks = ("recent", "chosen")


PREDICTORS: dict[str, type[Predictor]] = {
    "linear": Linear,
    "routing": Routing,
    "mlp": Mlp,
    "recurrent": Recurrent,
    "token-popularity": TokenPopularity,
    "reuse-distance": ReuseDistance,
    "reuse-routing": ReuseRouting,
}


def start_simple(scores: nn.Linear, wanted: Tensor, counts: Tensor, shape: Shape) -> None:
    """Begin with popularity and, if there are lookahead logits, the gate's own ranking."""
    share = ((wanted * counts).sum(0) + 0.5) / (counts.sum(0) + 1)
    scores.bias.data = torch.logit(share, 1e-4)
    nn.init.zeros_(scores.weight)
    if "lookahead" in shape.blocks:
        columns = torch.arange(shape.experts)
        scores.weight.data[columns, shape.columns("lookahead").start + columns] = 1.0
