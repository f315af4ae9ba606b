"""`DomainWatch`: of which domain the requests are that the engine serves, as engine.decisions.domains says of a
trace's."""

from collections.abc import Sequence

import numpy as np

from engine.decisions.domains import log_shares, majority, nearest
from policies.switching import Domains, Kept
from tracekit.errors import PlanError
from tracekit.labels import numbered


class DomainWatch:
    """Told of each forward pass, it says when the cache has to switch, and to what.

    By labels: `serve` is given those of the requests to come; each pass that begins requests takes as many. By
    detection: the choices of a request's first tokens are counted, of one request at a time.
    """

    def __init__(self, domains: Domains, experts: int) -> None:
        """`experts`: the most of a layer."""
        self._domains, self._experts = domains, experts
        self._shares = log_shares(domains.counts, experts)
        self._labels: list[int] = []
        self.reset()

    def serve(self, labels: Sequence[str | None]) -> None:
        """The labels of the requests to come, in order; None of one that has none. Raises PlanError."""
        names = [kept.name for kept in self._domains.kept]
        self._labels = numbered([label or "" for label in labels], names, "the requests to serve")
        self._served = 0

    def reset(self) -> None:
        """Begin again, with the first of the requests to come."""
        self._served, self._now = 0, -1
        self._counts = np.zeros(self._shares.shape[1], np.int64)
        self._seen, self._rows = 0, 0

    def begin(self, requests: int, rows: int, *, begins: bool) -> Kept | None:
        """A pass of so many requests and rows; returns what the cache has to keep from now on, if that changes.

        `begins`: it is the requests' first one. Raises PlanError for several requests where routing tells.
        """
        detect = self._domains.detect
        votes = np.zeros(len(self._domains.kept), np.int64)
        if detect is None:
            if begins:
                for label in self._labels[self._served : self._served + requests]:
                    votes[label] += label >= 0
                self._served += requests
            return self._switched(votes)
        if requests > 1:
            raise PlanError(
                f"placement.detect: {requests} requests of a step are routed together; give them one by one, or labels"
            )
        if begins:
            self._counts[:] = 0
            self._seen = 0
        elif self._seen < detect <= self._seen + self._rows:
            votes[nearest(self._shares, self._counts)] = 1
        self._seen += 0 if begins else self._rows
        self._rows = rows
        return self._switched(votes)

    def observe(self, layer: int, ids: np.ndarray) -> None:
        """What the pass's tokens chose at a layer: ids [rows, k], others than its experts unused."""
        detect = self._domains.detect
        if detect is not None and self._seen < detect:
            chosen = ids[: detect - self._seen]
            chosen = chosen[chosen < self._experts].astype(np.int64)
            first = layer * self._experts
            self._counts[first : first + self._experts] += np.bincount(chosen, minlength=self._experts)

    def _switched(self, votes: np.ndarray) -> Kept | None:
        chosen = majority(votes, self._now)
        if chosen == self._now:
            return None
        self._now = chosen
        return self._domains.kept[chosen]
