"""Choices read line by line, one (token, layer) each, gathered into requests: what line formats have in common."""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.defects import refuse_ragged
from tracekit.importers.passes import Passes, phases_of
from tracekit.importers.sequences import ABSENT, Sequence
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K
from tracekit.shards import installed_memory


@dataclass(slots=True)
class Lines:
    """Columns of choices in the order they were read. `add` checks ranges; `sequences` makes requests of them."""

    source: Path
    request: "array[int]" = field(default_factory=lambda: array("q"))
    token: "array[int]" = field(default_factory=lambda: array("q"))
    layer: "array[int]" = field(default_factory=lambda: array("q"))
    line: "array[int]" = field(default_factory=lambda: array("q"))
    size: "array[int]" = field(default_factory=lambda: array("H"))
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    weights: "array[float]" = field(default_factory=lambda: array("f"))
    token_id: "array[int]" = field(default_factory=lambda: array("i"))

    def add(
        self,
        line: int,
        request: int,
        token: int,
        layer: int,
        ids: list[int],
        weights: list[float] | None,
        token_id: int = -1,
    ) -> None:
        """One token's choice at one layer; `token` -1 where it has no number, until `passes` say its place.

        Raises ImportFormatError, naming the line, for what cannot be.
        """
        where = f"{self.source}, line {line}"
        if not 0 <= layer < MAX_LAYERS or not -1 <= token < 2**31:
            raise ImportFormatError(f"{where}: token {token} at layer {layer} is out of range")
        if not 1 <= len(ids) <= MAX_TOP_K:
            raise ImportFormatError(f"{where}: {len(ids)} experts, expected 1 to {MAX_TOP_K}")
        if min(ids) < 0 or max(ids) >= MAX_EXPERTS:
            raise ImportFormatError(f"{where}: expert ids {min(ids)} to {max(ids)}, expected 0 to {MAX_EXPERTS - 1}")
        if len(set(ids)) != len(ids):
            raise ImportFormatError(f"{where}: an expert is listed twice in {ids[:16]}: not what a gate chooses")
        if weights is not None:
            if len(weights) != len(ids):
                raise ImportFormatError(f"{where}: {len(weights)} weights for {len(ids)} experts")
            self.weights.extend(weights)
        self.request.append(request)
        self.token.append(token)
        self.layer.append(layer)
        self.line.append(line)
        self.size.append(len(ids))
        self.ids.extend(ids)
        self.token_id.append(token_id)

    def sequences(
        self,
        names: list[str],
        prompt: NDArray[np.int64] | None = None,
        passes: Passes | None = None,
        phase: NDArray[np.int8] | None = None,
        *,
        alone: bool = False,
    ) -> tuple[list[Sequence], list[int]]:
        """Every request's tokens in order, and the layers there are; `names` of the requests, by number.

        `prompt` says how many tokens of each request belong to its prompt, unless `passes` say which pass each row is
        of; then `phase` is the phase of each row, -1 where unknown, and `alone` says that what a pass holds of a
        request are its own tokens, not those of a batch that the log does not tell apart. Raises ImportFormatError when
        a choice is given twice, or is missing (a layer with fewer rows than the others).
        """
        if not self.line:
            raise ImportFormatError(f"{self.source} holds no routing")
        request, layer = np.frombuffer(self.request, np.int64), np.frombuffer(self.layer, np.int64)
        token = np.frombuffer(self.token, np.int64) if passes is None else passes.place
        if token.max() >= 2**31:
            raise ImportFormatError(f"{self.source}: token {token.max()} is out of range")
        layers = np.unique(layer)
        key, row = np.unique(request << 31 | token, return_inverse=True)
        row = row.reshape(-1)
        top_k = max(self.size)
        # A whole file has a line for each cell of the table; one that is not is refused before the table is made.
        if len(key) * len(layers) != len(row):
            self._refuse_incomplete(request, token, layer, layers, row)
        place = row * len(layers) + np.searchsorted(layers, layer)
        if len(np.unique(place)) != len(place):
            self._refuse_incomplete(request, token, layer, layers, row)
        if len(place) * top_k * 24 > installed_memory():
            raise ImportFormatError(f"{self.source} does not fit into this machine's memory: split it")
        shape = (len(key), len(layers), top_k)
        experts = np.full((len(key) * len(layers), top_k), ABSENT, np.int32)
        sizes = np.frombuffer(self.size, np.uint16)
        filled = np.arange(top_k) < sizes[:, None]
        spread = np.full(filled.shape, ABSENT, np.int32)
        spread[filled] = np.frombuffer(self.ids, np.int32)
        experts[place] = spread
        weights = None
        if len(self.weights) == len(self.ids):
            spread_weights = np.zeros(filled.shape, np.float32)
            spread_weights[filled] = np.frombuffer(self.weights, np.float32)
            flat = np.zeros_like(spread_weights)
            flat[place] = spread_weights
            weights = flat.reshape(shape)
        token_id = np.full(len(key), -1, np.int64)
        token_id[row] = np.array(self.token_id)
        steps, phases = np.zeros(len(key), np.int64), np.full(len(key), -1, np.int8)
        number = None if passes is None else passes.number
        if number is not None:
            steps[row] = number
            if (steps[row] != number).any():
                at = int((steps[row] != number).argmax())
                raise ImportFormatError(
                    f"{self.source}, line {self.line[at]}: token {token[at]} is of another forward pass at layer "
                    f"{layer[at]} than at others: rows were dropped; record again without sampling or filtering"
                )
        if phase is not None:
            phases[row] = phase
        edges = np.searchsorted(key >> 31, np.arange(len(names) + 1))
        found = []
        for owner, name in enumerate(names):
            rows = slice(int(edges[owner]), int(edges[owner + 1]))
            if rows.start == rows.stop:
                continue
            part = None if weights is None else weights[rows]
            known = token_id[rows] if (token_id[rows] >= 0).any() else None
            first = int(key[rows.start] & (2**31 - 1))
            chosen = experts.reshape(shape)[rows]
            if number is None:
                inside = 0 if prompt is None else max(0, int(prompt[owner]) - first)
                found.append(Sequence(name, chosen, inside, first, known, part))
                continue
            own = np.where(phases[rows] < 0, phases_of(steps[rows], chosen, alone=alone), phases[rows])
            found.append(Sequence(name, chosen, 0, first, known, part, steps=steps[rows], phase=own))
        return found, layers.tolist()

    def _refuse_incomplete(
        self,
        request: NDArray[Any],
        token: NDArray[Any],
        layer: NDArray[Any],
        layers: NDArray[Any],
        row: NDArray[Any],
    ) -> None:
        order = np.lexsort((np.array(self.line), layer, row))
        same = (row[order][1:] == row[order][:-1]) & (layer[order][1:] == layer[order][:-1])
        if same.any():
            first, again = order[:-1][same][0], order[1:][same][0]
            raise ImportFormatError(
                f"{self.source}, line {self.line[again]}: token {token[again]} at layer {layer[again]} was given in "
                f"line {self.line[first]} already; give each request its own id"
            )
        refuse_ragged(self.source, {int(number): int((layer == number).sum()) for number in layers})
        held = np.bincount(row)
        lacking = int(held.argmin())
        at = int(np.flatnonzero(row == lacking)[0])
        raise ImportFormatError(
            f"{self.source}: token {token[at]} (line {self.line[at]}) has {held[lacking]} of {len(layers)} layers: "
            "rows were dropped; record again without sampling or filtering"
        )
