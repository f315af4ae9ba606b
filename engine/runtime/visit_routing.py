"""`Routing`: what one visit's gate chose, brought to the host in a single copy and sorted by expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from policies.visit_order import orders_of


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """The assignments of one visit: token t's choice number c fell on expert e.

    `demand` are the distinct experts in (token, choice) order of first reference, `recency` the same in order
    of last reference. `token` and `choice` [assignments] i64 on the device name each assignment's token and
    its place among the flattened choices (t * k + c), sorted by expert and then (c, t), which is the order of
    transformers' eager loop. `span[e]` is expert e's part of them, experts ascending.
    """

    demand: list[int]
    recency: list[int]
    token: Tensor
    choice: Tensor
    span: dict[int, slice]

    def rows(self, hidden: Tensor, expert: int) -> Tensor:
        """What the expert computes: the rows of `hidden` [tokens, hidden] that chose it."""
        return hidden[self.token[self.span[expert]]]

    def count(self, expert: int) -> int:
        """How many tokens chose the expert."""
        span = self.span[expert]
        return int(span.stop - span.start)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRouting:
    """The assignments of a visit of one token, which chose no expert twice: `place[e]` is the choice that fell on e.

    A decode step has nothing to sort, and on small models sorting would take as long as computing.
    """

    demand: list[int]
    place: dict[int, int]

    @property
    def recency(self) -> list[int]:
        return self.demand

    def rows(self, hidden: Tensor, expert: int) -> Tensor:
        return hidden

    def count(self, expert: int) -> int:
        return 1


class Choices(Protocol):
    """Choices that are made in place of the gates', such as those of a trace (`forced_routing`)."""

    token_ids: np.ndarray
    """Vocabulary ids of this step [tokens]."""

    def choice(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Ids i64 and weights [tokens, k] of this step at a layer; weights in the type of `like`."""

    def lookahead(self, layer: int, distance: int) -> Tensor:
        """Logits f16 [tokens, experts] of the layer `distance` after `layer`, foreseen at `layer`."""


def read_back(
    top_k_index: Tensor, weights: Tensor | None, lookahead: Tensor | None, more: Sequence[Tensor] = ()
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[np.ndarray]]:
    """The gate's choices u16 [tokens, k], their weights f16 [tokens, k] and lookahead logits f16 [tokens, experts].

    And `more` of i16 [tokens, columns] each. From a device in one copy. Halves, as traces hold them, so that engine and
    simulator decide by the same numbers.
    """
    halves = [None if part is None else part.detach().to(torch.float16) for part in (weights, lookahead)]
    if top_k_index.device.type == "cpu":
        found = [None if half is None else half.numpy() for half in halves]
        return top_k_index.numpy().astype(np.uint16), found[0], found[1], [part.numpy() for part in more]
    parts = [top_k_index.to(torch.int16)]  # [tokens, k]; ids above 32767 wrap, and wrap back as u16
    parts += [half.view(torch.int16) for half in halves if half is not None]
    parts += more
    host = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).cpu().numpy()
    ids, *rest = np.split(host, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
    found = [None if half is None else np.ascontiguousarray(rest.pop(0)).view(np.float16) for half in halves]
    return np.ascontiguousarray(ids).view(np.uint16), found[0], found[1], rest


def sort_by_expert(ids: np.ndarray, num_experts: int, device: torch.device) -> Routing | TokenRouting:
    """Sort choices u16 [tokens, k] by expert; ids of `num_experts` or more mark choices that do not count."""
    tokens, k = ids.shape
    if tokens == 1:
        place = {expert: c for c, expert in enumerate(ids[0].tolist()) if expert < num_experts}
        if len(place) == k or len(place) == np.count_nonzero(ids < num_experts):
            return TokenRouting(list(place), place)
    demand, recency = orders_of(ids, num_experts)
    chosen = int(np.count_nonzero(ids < num_experts))
    by_choice = ids.T.ravel()  # assignment (c, t) at c * tokens + t
    order = np.argsort(by_choice, kind="stable")[:chosen]  # those that do not count sort last
    choice, token = np.divmod(order, tokens)
    ascending = sorted(demand)
    edges = [*np.searchsorted(by_choice[order], ascending).tolist(), chosen]
    # Pinned, so that the host does not wait for the copy; torch keeps it until the copy has landed.
    host = torch.empty(2, chosen, dtype=torch.int64, pin_memory=device.type == "cuda")
    host.numpy()[:] = token, token * k + choice
    both = host.to(device, non_blocking=True)  # [2, assignments]
    spans = {expert: slice(edges[i], edges[i + 1]) for i, expert in enumerate(ascending)}
    return Routing(demand, recency, both[0], both[1], spans)
