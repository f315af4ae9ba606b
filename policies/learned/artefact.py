"""A fitted predictor on disk: `predictor.json` says what it is, `predictor.safetensors` holds its whole numbers.

Nothing is pickled, and neither torch nor the model is needed to read one.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from policies.learned.arithmetic import Program
from policies.learned.features import BLOCKS, width
from tracekit.durable import write_synced
from tracekit.errors import PolicyError
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, Manifest
from tracekit.opening import read_file

CARD, TENSORS = "predictor.json", "predictor.safetensors"
VERSION = 1
MOST_BYTES, MOST_CARD_BYTES = 1 << 32, 64 << 20
MOST_WORK = 1 << 53
"""Parameters, and operations of a row: more than any predictor, and exact in every arithmetic."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose routing a predictor learned from. `requests` are digests (`tracekit.requests`), sorted."""

    model: str
    config_sha256: str | None
    trace_digest: str
    requests: list[str]
    held_out: list[int] = []
    """Numbers of the trace's requests that were kept for testing."""
    tokens: int


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a predictor is. `layers` and `distance` are of MoE layers; distance 0 is for eviction."""

    version: int = VERSION
    predictor: str
    purpose: Literal["prefetch", "eviction"]
    experts_per_layer: list[int]
    top_k: int
    distance: int
    blocks: tuple[str, ...]
    program: Program
    fitted: Fitted
    seed: int
    hyperparameters: dict[str, int | float | str | bool] = {}
    versions: dict[str, str] = {}
    parameters: int
    operations_per_row: int
    """Multiply-adds of one row, counted as two operations each."""
    tensors_sha256: str
    held_out: dict[str, Any] = {}
    """What testing on the held-out requests found."""
    measured_ns_per_visit: int = 0
    """One decode visit, ranking included, on the machine that fitted it: a statement, not what replays charge."""

    @property
    def num_experts(self) -> int:
        """Experts of the layer that has most."""
        return max(self.experts_per_layer)

    @property
    def own_layer(self) -> bool:
        """Whether it predicts of the layer just visited: for eviction."""
        return self.purpose == "eviction"

    @property
    def sources(self) -> int:
        """Layers at which it predicts."""
        return len(self.experts_per_layer) - self.distance


@dataclass(frozen=True, slots=True)
class Artefact:
    """A predictor that has been read and checked; tensors are f64 of whole numbers (indices i64)."""

    path: Path
    card: Card
    tensors: dict[str, np.ndarray]

    def check_layers(self, experts_per_layer: list[int]) -> None:
        """Raise PolicyError unless it is for a model of these MoE layers."""
        ours = self.card.experts_per_layer
        if ours != list(experts_per_layer):
            raise PolicyError(
                f"predictor {self.path} is for {len(ours)} MoE layers of {_named(ours)} experts, not for "
                f"{len(experts_per_layer)} of {_named(list(experts_per_layer))}: fit one on this model's routing"
            )

    def check_model(self, manifest: Manifest, where: str) -> None:
        """Raise PolicyError unless the routing is of the model that it was fitted on."""
        self.check_layers(manifest.experts_per_layer)
        model = manifest.model
        if not self.is_of(model.id, model.config_sha256, manifest.top_k):
            raise PolicyError(
                f"predictor {self.path} was fitted on {self.card.fitted.model} (top-{self.card.top_k}), {where} is of "
                f"{model.id} (top-{manifest.top_k}): fit one on this model's routing"
            )

    def is_of(self, model: str, config_sha256: str | None, top_k: int) -> bool:
        """Whether it was fitted on this model, told by its configuration where that is known, else by its name."""
        fitted = self.card.fitted
        digests = (fitted.config_sha256, config_sha256)
        same = digests[0] == digests[1] if all(digests) else fitted.model == model
        return same and self.card.top_k == top_k


def load_artefact(path: str | Path, purpose: Literal["prefetch", "eviction"]) -> Artefact:
    """Read and check the predictor in directory `path`. PolicyError, one line, for what cannot be trusted."""
    folder = Path(path)
    where = f"predictor {folder}"
    try:
        text, data = read_file(folder / CARD, MOST_CARD_BYTES), read_file(folder / TENSORS, MOST_BYTES)
        found = msgspec.json.decode(text, type=_Version).version
        if found != VERSION:
            raise PolicyError(f"{where} is of version {found}, this release reads {VERSION}: fit it again")
        card = msgspec.json.decode(text, type=Card)
        if hashlib.sha256(data).hexdigest() != card.tensors_sha256:
            raise PolicyError(f"{where} is damaged: {TENSORS} is not the file that {CARD} describes; fit it again")
        stored = load(data)
        del data  # what is stored is a copy, and what is computed with another
    except (FileNotFoundError, NotADirectoryError):
        raise PolicyError(f"{where}: no directory with {CARD} and {TENSORS}; tracekit fit makes one") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SafetensorError) as error:
        raise PolicyError(f"{where} is damaged: {error}") from None
    except (KeyError, ValueError) as error:  # a type or a shape that numpy does not have
        raise PolicyError(f"{where} is damaged: {TENSORS} holds what numpy has not: {error}") from None
    except OSError as error:
        raise PolicyError(f"{where} cannot be read: {error.strerror or error}") from None
    if card.purpose != purpose:
        raise PolicyError(f"{where} was fitted for {card.purpose}, the plan uses it for {purpose}")
    if any(tensor.dtype != np.int32 for tensor in stored.values()):
        raise PolicyError(f"{where} is damaged: its tensors are not whole numbers of 32 bits")
    indices = {name for op in card.program.operations if op.kind == "embedding" for name in op.tensors[:1]}
    tensors = {name: stored.pop(name).astype(np.int64 if name in indices else np.float64) for name in sorted(stored)}
    try:
        check_card(card, tensors)
    except PolicyError as error:
        raise PolicyError(f"{where} is damaged: {error}") from None
    return Artefact(folder, card, tensors)


def check_card(card: Card, tensors: dict[str, np.ndarray]) -> None:
    """Raise PolicyError unless the card's numbers agree with each other and with the tensors."""
    layers = card.experts_per_layer
    if not (0 <= card.parameters <= MOST_WORK and 0 <= card.operations_per_row <= MOST_WORK):
        raise PolicyError("its parameters and operations make no sense")
    if len(layers) > MAX_LAYERS or max(layers, default=0) > MAX_EXPERTS:
        raise PolicyError(f"at most {MAX_LAYERS} layers of {MAX_EXPERTS} experts make sense")
    if not layers or min(layers) < 1 or not 1 <= card.top_k <= max(layers):
        raise PolicyError("its layers and experts make no sense")
    if not (card.distance == 0 if card.own_layer else 1 <= card.distance < len(layers)):
        raise PolicyError(f"a distance of {card.distance} among {len(layers)} MoE layers")
    if not set(card.blocks) <= set(BLOCKS) or len(set(card.blocks)) != len(card.blocks):
        raise PolicyError(f"it reads {', '.join(card.blocks)}; there are {', '.join(BLOCKS)}")
    by_token = any("token" in operation.inputs for operation in card.program.operations)
    if card.own_layer and ({"earlier", "lookahead"} & set(card.blocks) or by_token or card.program.state):
        raise PolicyError("for eviction there is no lookahead, no earlier layer and no single token")
    features = sum(width(block, card.num_experts) for block in card.blocks)
    card.program.check(tensors, card.sources, features, card.num_experts)


def save_artefact(folder: Path, card: Card, tensors: dict[str, np.ndarray]) -> None:
    """Write a predictor; `card.tensors_sha256` is filled in. The card comes last: without it there is no predictor."""
    data = save({name: np.ascontiguousarray(tensor, np.int32) for name, tensor in sorted(tensors.items())})
    card = msgspec.structs.replace(card, tensors_sha256=hashlib.sha256(data).hexdigest())
    text = msgspec.json.format(msgspec.json.encode(card, order="deterministic"), indent=1) + b"\n"
    write_synced(folder / TENSORS, lambda file: file.write(data))
    write_synced(folder / CARD, lambda file: file.write(text))


class _Version(msgspec.Struct, frozen=True):
    version: int


def _named(experts: list[int]) -> str:
    return str(experts[0]) if len(set(experts)) == 1 else f"{min(experts)} to {max(experts)}"
