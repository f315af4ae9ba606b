"""The state of a training run: one safetensors file with weights, optimizer moments and progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps taken, the seed they were taken with, and the seconds they took over all parts of the run."""

    steps: int
    seed: int
    seconds: float


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, progress: Progress) -> None:
    """Write beside `path`, then rename it there: a kill leaves the old state or the new one, whole."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():  # tied weights appear once
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    metadata = {name: str(value) for name, value in asdict(progress).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, seed: int) -> Progress:
    """Load `path` into model and optimizer; without the file, nothing is loaded and no step is done.

    Raises ValueError when the state was made with another seed than `seed`.
    """
    if not path.exists():
        return Progress(steps=0, seed=seed, seconds=0.0)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        progress = Progress(int(metadata["steps"]), int(metadata["seed"]), float(metadata["seconds"]))
        if progress.seed != seed:
            raise ValueError(f"{path} has seed {progress.seed}, not {seed}; remove it to start again")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(progress.steps)),
                **{moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS},
            }
    return progress
