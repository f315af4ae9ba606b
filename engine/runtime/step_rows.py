"""`StepRows`: what the host has to know of the rows of a step: which are padding, and their vocabulary ids.

It comes from the device together with what the step's first visit reads back, so that the host waits for it no extra
time.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from tracekit.errors import PlanError


class StepRows:
    """The rows of one forward pass. `ids` [rows] are vocabulary ids, `real` bool [rows] which rows are no padding.

    Either is None where it is unknown or not asked for. `tokens` counts the rows that are no padding, once that is
    known.
    """

    def __init__(self, rows: int = 0, ids: Tensor | None = None, real: Tensor | None = None) -> None:
        self.tokens = rows
        self._ids, self._real = ids, real
        self.ids: np.ndarray | None = None
        self.real: np.ndarray | None = None

    def pending(self) -> list[Tensor]:
        """What has still to be read back, as columns i16 [rows, columns]."""
        columns = []
        if self._ids is not None:
            columns.append(self._ids.to(torch.int32)[:, None].view(torch.int16))  # [rows, 2]
        if self._real is not None:
            columns.append(self._real.to(torch.int16)[:, None])
        return columns

    def take(self, columns: list[np.ndarray]) -> None:
        """What was pending, now on the host."""
        if self._ids is not None:
            self.ids = np.ascontiguousarray(columns[0]).view(np.int32)[:, 0]
        if self._real is not None:
            real = columns[-1][:, 0] != 0
            self.tokens = int(real.sum())
            self.real = None if self.tokens == len(real) else real
        self._ids = self._real = None

    def without_padding(
        self, chosen: np.ndarray, lookahead: np.ndarray | None, experts: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Choices u16 [rows, k] of which padding's are `experts`, and logits of which padding's are NaN."""
        if self.real is None:
            return chosen, lookahead
        real = self.real[:, None]
        hidden = None if lookahead is None else np.where(real, lookahead, np.float16(np.nan))
        return np.where(real, chosen, np.uint16(experts)), hidden


def rows_of(inputs: object, mask: object, *, with_ids: bool) -> StepRows:
    """The rows of a model's inputs, ids [requests, tokens] or embeddings, under a 2-d attention mask, if it has one."""
    if not isinstance(inputs, Tensor):
        return StepRows()
    tokens = inputs.shape[1]
    ids = inputs.reshape(-1) if with_ids and not inputs.is_floating_point() else None
    real = mask[:, -tokens:].reshape(-1).bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
    return StepRows(inputs.shape[0] * tokens, ids, real)


def begins_requests(past: object) -> bool:
    """Whether a forward pass is the first of its requests: there are no keys and values of earlier tokens."""
    return not isinstance(past, Cache) or past.get_seq_length() == 0


def requests_in(inputs: object) -> int:
    """How many requests a forward pass serves."""
    return len(inputs) if isinstance(inputs, Tensor) else 1


def check_alone(inputs: object) -> None:
    """PlanError where a forward pass serves several requests, and each is to find an empty cache."""
    if (requests := requests_in(inputs)) > 1:
        raise PlanError(f'cache.warm = "reset": {requests} requests of a step share a cache; give them one by one')
