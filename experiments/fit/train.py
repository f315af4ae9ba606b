"""Training: every layer's module at once, deterministic by seed, resumable after each epoch."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional

from experiments.fit.examples import Data
from experiments.fit.modules import Predictor, Shape
from tracekit.durable import write_synced
from tracekit.errors import PolicyError
from tracekit.opening import checked

CHECKPOINT = "fitting.safetensors"


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a predictor is trained."""

    epochs: int
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    batch: int = 512
    validation: float = 0.1
    """Share of the fitted requests, the last ones, that choose the best epoch."""
    seed: int = 0


def make_modules(
    kind: type[Predictor], shape: Shape, sources: int, seed: int, given: Mapping[str, object]
) -> nn.ModuleList:
    """A fresh module for each source layer; `given` are its hyperparameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(kind(shape, **given) for _ in range(sources))


def train(
    modules: nn.ModuleList,
    data: Data,
    shape: Shape,
    options: Training,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Callable[[int], object] = lambda amount: None,
) -> list[float]:
    """Train in place; returns the validation loss before training and after each epoch, and leaves the best in place.

    `checkpoint` is where the state is kept after each epoch; one of the same `identity` is continued, with the same
    result as without the interruption. `progress` is told of each finished epoch.
    """
    requests = np.unique(data.request)
    kept_back = requests[len(requests) - int(len(requests) * options.validation) :]
    tested = np.isin(data.request, kept_back)
    if not (~tested).any():
        raise PolicyError("there is nothing to fit on: give more requests")
    with one_thread():
        own, test = (_tensors(data, rows) for rows in (~tested, tested if tested.any() else ~tested))
        for source, module in enumerate(_predictors(modules)):
            with torch.no_grad():
                module.begin(own[0][:, source], own[1], own[2][:, source], own[3][:, source], shape)
        optimiser = torch.optim.AdamW(modules.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        state = _State(identity, modules, optimiser, [_loss_of(modules, test)], _snapshot(modules))
        if checkpoint is not None and options.epochs:
            state.resume(checkpoint)
            progress(len(state.losses) - 1)
        for epoch in range(len(state.losses) - 1, options.epochs):
            _epoch(modules, own, optimiser, options, epoch)
            loss = _loss_of(modules, test)
            if not np.isfinite(loss):
                raise PolicyError("training diverged: the loss is no number; fit with a smaller learning rate")
            if loss < min(state.losses):
                state.best = _snapshot(modules)
            state.losses.append(loss)
            if checkpoint is not None:
                state.keep(checkpoint)
            progress(1)
        modules.load_state_dict(state.best)
    return state.losses


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """With one thread sums are added in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scores_of(modules: nn.ModuleList, features: Tensor, token: Tensor) -> list[Tensor]:
    """Scores of every source layer, [n, experts] each; features [n, sources, features]."""
    found = []
    state = None
    for source, module in enumerate(_predictors(modules)):
        names = forward_names(type(module))
        known = {"x": features[:, source], "token": token, "state": state}
        if module.state and state is None:
            known["state"] = features.new_zeros(len(features), module.state)
        given = module(**{name: known[name] for name in names})
        scores, state = given if module.state else (given, None)
        found.append(scores)
    return found


def forward_names(kind: type[Predictor]) -> list[str]:
    """The names of what `forward` takes."""
    code = kind.forward.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _loss(modules: nn.ModuleList, features: Tensor, token: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    scores = torch.stack(scores_of(modules, features, token), dim=1)
    eviction = _predictors(modules)[0].purpose == "eviction"
    each = (
        functional.smooth_l1_loss(scores, wanted, reduction="none")
        if eviction
        else functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    )
    return (each * counts).sum() / counts.sum().clamp(min=1)


def _loss_of(modules: nn.ModuleList, part: Sequence[Tensor]) -> float:
    with torch.no_grad():
        modules.eval()
        return float(_loss(modules, *part))


def _epoch(
    modules: nn.ModuleList, part: Sequence[Tensor], optimiser: torch.optim.Optimizer, options: Training, epoch: int
) -> None:
    modules.train()
    order = torch.from_numpy(np.random.default_rng([options.seed, epoch]).permutation(len(part[0])))
    # Falling to nothing lets the last epochs settle.
    for group in optimiser.param_groups:
        group["lr"] = options.learning_rate * (1 - epoch / options.epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed * 1_000_003 + epoch)  # dropout in a user's module
        for first in range(0, len(order), options.batch):
            rows = order[first : first + options.batch]
            optimiser.zero_grad()
            torch.autograd.backward(_loss(modules, *(tensor[rows] for tensor in part)))
            optimiser.step()


def _predictors(modules: nn.ModuleList) -> list[Predictor]:
    return [module for module in modules if isinstance(module, Predictor)]


def _tensors(data: Data, rows: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array[rows]) for array in (data.features, data.token, data.wanted, data.counts)]


def _snapshot(modules: nn.ModuleList) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}


def is_checkpoint_of(path: Path, identity: str) -> bool:
    """Whether `path` is a whole checkpoint of the fit `identity`."""
    try:
        with safe_open(checked(path), "numpy") as file:
            return bool((file.metadata() or {}).get("identity") == identity)
    except (OSError, ValueError, KeyError, SafetensorError):
        return False


@dataclass(slots=True)
class _State:
    """What a checkpoint of the fit `identity` holds; `best` are the tensors of the epoch with the least loss."""

    identity: str
    modules: nn.ModuleList
    optimiser: torch.optim.Optimizer
    losses: list[float]
    best: dict[str, Tensor]

    def keep(self, path: Path) -> None:
        """Write the checkpoint."""
        tensors = {f"now.{name}": tensor for name, tensor in self.modules.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        arrays["losses"] = np.array(self.losses)
        write_synced(path, lambda file: file.write(save(arrays, metadata={"identity": self.identity})))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same fit, if there is one."""
        if not is_checkpoint_of(path, self.identity):
            return
        try:
            arrays = {name: torch.from_numpy(array) for name, array in load(path.read_bytes()).items()}
        except (OSError, ValueError, KeyError, SafetensorError):  # none, or one that was not finished
            return
        try:
            self._restore(arrays)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise PolicyError(f"{path} is damaged: {error}; remove it and fit again") from None

    def _restore(self, arrays: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for name, tensor in arrays.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = tensor
        self.modules.load_state_dict(parts["now"])
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.losses, self.best = [float(loss) for loss in arrays["losses"]], parts["best"]
