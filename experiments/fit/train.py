"""Training: every layer's module at once, deterministic by seed, resumable after each epoch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
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
    kind: type[Predictor], shape: Shape, sources: int, seed: int, given: dict[str, object]
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
        losses = [_loss_of(modules, test)]
        best = _snapshot(modules)
        if checkpoint is not None and options.epochs:
            losses, best = _resumed(checkpoint, identity, modules, optimiser, losses, best)
            progress(len(losses) - 1)
        for epoch in range(len(losses) - 1, options.epochs):
            _epoch(modules, own, optimiser, options, epoch)
            losses.append(_loss_of(modules, test))
            if not np.isfinite(losses[-1]):
                raise PolicyError("training diverged: the loss is no number; fit with a smaller learning rate")
            if losses[-1] < min(losses[:-1]):
                best = _snapshot(modules)
            if checkpoint is not None:
                _keep(checkpoint, identity, modules, optimiser, losses, best)
            progress(1)
        modules.load_state_dict(best)
    return losses


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
            _loss(modules, *(tensor[rows] for tensor in part)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _predictors(modules: nn.ModuleList) -> list[Predictor]:
    return [module for module in modules if isinstance(module, Predictor)]


def _tensors(data: Data, rows: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array[rows]) for array in (data.features, data.token, data.wanted, data.counts)]


def _snapshot(modules: nn.ModuleList) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}


def _keep(
    path: Path,
    identity: str,
    modules: nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    losses: list[float],
    best: dict[str, Tensor],
) -> None:
    tensors = {f"now.{name}": tensor for name, tensor in modules.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    arrays["losses"] = np.array(losses)
    write_synced(path, lambda file: file.write(save(arrays, metadata={"identity": identity})))


def _resumed(
    path: Path,
    identity: str,
    modules: nn.ModuleList,
    optimiser: torch.optim.Optimizer,
    losses: list[float],
    best: dict[str, Tensor],
) -> tuple[list[float], dict[str, Tensor]]:
    """The state of a checkpoint of the same fit, if there is one; as given otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checked(path), "numpy") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return losses, best
        arrays = {name: torch.from_numpy(array) for name, array in load(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, SafetensorError):  # none, one that was not finished, or another's
        return losses, best
    try:
        return _restored(arrays, modules, optimiser)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise PolicyError(f"{path} is damaged: {error}; remove it and fit again") from None


def _restored(
    arrays: dict[str, Tensor], modules: nn.ModuleList, optimiser: torch.optim.Optimizer
) -> tuple[list[float], dict[str, Tensor]]:
    """Put what a checkpoint holds into modules and optimiser; returns losses and the best weights."""
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
    for name, tensor in arrays.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["adam"].items():
        number, _, rest = name.partition(".")
        state.setdefault(int(number), {})[rest] = tensor
    modules.load_state_dict(parts["now"])
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return [float(loss) for loss in arrays["losses"]], parts["best"]
