"""What a miss may be, written slowly from the rules alone: what `policies.misses` and the admission policies do must
equal it."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor, inf
from typing import Any


class ReferenceMisses:
    """Whose a miss is, and whether it may be kept. Told of what leaves the cache; asked in order of first reference."""

    def __init__(
        self,
        layers: int,
        where: str = "copy",
        copied: int | None = None,
        most_tokens: Sequence[int] = (),
        admission: str = "always",
        parameters: Mapping[str, Any] | None = None,
        per_step: int | None = None,
        even: bool = False,
    ) -> None:
        self.layers, self.where, self.most_tokens = layers, where, most_tokens
        self.share = Fraction(copied or 0, 10**6)
        self.admission, self.parameters, self.per_step, self.even = admission, dict(parameters or {}), per_step, even
        self.left: float = inf if per_step is None else per_step
        self.carried = 0  # in parts of which `layers` are one admission
        self.missed_since_it_left: set[int] = set()

    def begin(self, layer: int) -> None:
        """A visit begins; at layer 0, a step does."""
        if self.per_step is None:
            return
        if self.even:
            if layer == 0:
                self.carried = 0
            self.left, self.carried = divmod(self.carried + self.per_step, self.layers)
        elif layer == 0:
            self.left = self.per_step

    def hosted(self, layer: int, missing: Sequence[int], tokens: Mapping[int, int]) -> set[int]:
        """The missing experts that the host computes."""
        if self.where == "host":
            return set(missing)
        if self.where == "auto":
            return {key for key in missing if tokens[key] <= self.most_tokens[layer]}
        if self.where == "split":
            by_tokens = sorted(missing, key=lambda key: -tokens[key])  # stable: ties by first reference
            return set(by_tokens[floor(self.share * len(missing) + Fraction(1, 2)) :])
        return set()

    def wants(self, key: int, hosted: bool, share: float) -> bool:
        """Whether the policy would have the missing expert in the cache."""
        if hosted and self.where == "split":
            return False
        if self.admission == "second-miss":
            before = key in self.missed_since_it_left
            self.missed_since_it_left.add(key)
            return before
        return self.admission != "score" or share >= self.parameters["threshold"]

    def left_the_cache(self, key: int) -> None:
        self.missed_since_it_left.discard(key)
