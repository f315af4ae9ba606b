"""What the fields of a router dump mean, whatever their names, and which of those not known may tell requests apart."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.rows import DECODE, PREFILL

NAMES = {
    "layer": ("layer", "layer_id", "layer_idx", "layer_number", "l"),
    "ids": (
        "ids",
        "experts",
        "expert_ids",
        "topk_ids",
        "topk_idx",
        "topk_experts",
        "topk_indices",
        "top_indices",
        "indices",
        "selected_experts",
        "e",
    ),
    "weights": (
        "weights",
        "topk_weights",
        "topk_weight",
        "expert_weights",
        "gate_weights",
        "gating_probs",
        "scores",
        "router_scores",
        "probs",
        "selected_probs",
        "selected_probabilities",
        "s",
    ),
    "token": ("token", "token_idx", "token_index", "token_pos", "token_position", "position", "pos", "t"),
    "request": (
        "request",
        "request_id",
        "req_id",
        "prompt",
        "prompt_id",
        "problem_id",
        "sample",
        "sample_id",
        "batch_id",
        "sequence",
        "sequence_id",
        "seq_id",
        "p",
    ),
    "phase": ("phase", "ph"),
    "step": ("step", "step_id", "forward_pass"),
    "rank": ("rank", "tp_rank"),
    "token_id": ("token_id", "ti"),
}
MEANING = {name: key for key, names in NAMES.items() for name in names}
PHASES = {
    "prefill": PREFILL,
    "prompt": PREFILL,
    "decode": DECODE,
    "generated": DECODE,
    "decoding": DECODE,
    "generation": DECODE,
    PREFILL: PREFILL,
    DECODE: DECODE,
}
MODEL = ("model_id", "model_name", "model")
EXPERTS = ("num_experts", "n_experts", "num_routed_experts")
_OF_NO_REQUEST = {"type", "record_type", "num_tokens", "n_tokens", "batch_size", "top_k", "topk", "k", "stage", "block"}
_NAMED = 64
_MOST = 1 << 20  # different values of a field, beyond which it is none of requests


@dataclass(slots=True)
class Unread:
    """Fields that mean nothing here: their values, so that one of them may be found to tell requests apart."""

    values: dict[str, "array[int]"] = field(default_factory=dict)
    known: dict[str, dict[str | int, int]] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    """All of them, in order of appearance."""
    rows: int = 0

    def add(self, entry: dict[str, Any], rows: int) -> None:
        """The fields of a line that stands for so many rows."""
        for name, value in entry.items():
            if name in MEANING or name in _OF_NO_REQUEST:
                continue
            if len(self.names) <= _NAMED:
                self.names[name[:40]] = None
            if type(value) not in (int, str):
                continue
            known = self.known.setdefault(name, {})
            if len(known) < _MOST and len(self.known) <= 64:
                column = self.values.setdefault(name, array("q", [-1]) * self.rows)
                column.extend([-1] * (self.rows - len(column)))
                column.extend([known.setdefault(value, len(known))] * rows)
        self.rows += rows

    def notes(self) -> list[str]:
        """The note that names them."""
        names = list(self.names)
        rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
        return [f"fields not read: {', '.join(names[:12])}{rest}"] if names else []

    def telling(self, passes: NDArray[np.int64]) -> list[str]:
        """The fields that change with passes, [rows], and never within one: those of requests are among them."""
        found = []
        for name, column in self.values.items():
            if not 1 < len(self.known[name]) < _MOST:
                continue
            value = np.concatenate([np.array(column), np.full(self.rows - len(column), -1)])
            pairs = np.unique(passes * (int(value.max()) + 2) + value + 1)
            if len(pairs) == len(np.unique(passes)):
                found.append(name[:40])
        return found
